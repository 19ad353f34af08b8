"""A store on this machine that speaks as much of Google Cloud Storage's JSON API as runs need.

  python -m tests.fake_gcs PORT   # gs://bucket is there, empty

gcsfs, Orbax and TensorStore talk to it as to the real one, by the variables of `environment`.
https://cloud.google.com/storage/docs/json_api/v1
"""

import contextlib
import email
import hashlib
import http.server
import json
import re
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator


class Store:
  """Objects by name, written whole, with generations; what was asked of it is counted."""

  def __init__(self):
    self.objects: dict[str, tuple[bytes, int]] = {}  # 'bucket/name': bytes and generation
    self.asked: Counter[str] = Counter()
    self.refuses = self.hides = ''  # patterns: what may not be written, or read
    self._uploads: dict[str, tuple[str, bytearray]] = {}
    self._generation = 0
    self._lock = threading.RLock()

  def put(self, name: str, data: bytes, generation: str | None = None) -> dict | None:
    """The object's entry; None where it is not of the generation that the writer expects."""
    with self._lock:
      if generation is not None and int(generation) != self.objects.get(name, (b'', 0))[1]:
        return None
      self._generation += 1
      self.objects[name] = bytes(data), self._generation
      return self.entry(name)

  def entry(self, name: str) -> dict:
    data, generation = self.objects[name]
    bucket, _, key = name.partition('/')
    return dict(
      kind='storage#object',
      id=f'{name}/{generation}',
      bucket=bucket,
      name=key,
      size=str(len(data)),
      generation=str(generation),
      metageneration='1',
      etag=str(generation),
      md5Hash=hashlib.md5(data).hexdigest(),
      storageClass='STANDARD',
      timeCreated='2026-01-01T00:00:00.000Z',
      updated='2026-01-01T00:00:00.000Z',
    )

  def listing(self, bucket: str, prefix: str, delimiter: str, after: str, most: int) -> dict:
    """Entries and, where there is a delimiter, the folders; a page at a time."""
    with self._lock:
      start = f'{bucket}/{prefix}'
      names = sorted(name for name in self.objects if name.startswith(start))
      found: dict[str, dict | None] = {}  # a folder has no entry
      for key in (name[len(bucket) + 1 :] for name in names):
        inside, slash, _ = key[len(prefix) :].partition(delimiter or '\0')
        folder = bool(delimiter and slash)
        found[prefix + inside + slash if folder else key] = (
          None if folder else self.entry(f'{bucket}/{key}')
        )
      page = [(key, entry) for key, entry in found.items() if key > after]
      items = [entry for _, entry in page[:most] if entry is not None]
      folders = [key for key, entry in page[:most] if entry is None]
      more = dict(nextPageToken=page[most - 1][0]) if len(page) > most else {}
      return dict(items=items, prefixes=folders, **more)


class Handler(http.server.BaseHTTPRequestHandler):
  """One connection; `store` is set by `serve`."""

  store: Store
  protocol_version = 'HTTP/1.1'
  wbufsize = -1  # headers and body in one packet, or each waits 40 ms for the other's receipt

  def log_message(self, *_):
    pass

  def handle_one(self) -> None:
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    if self.headers.get('Transfer-Encoding') == 'chunked':
      body = b''.join(self.chunks())
    parts = [urllib.parse.unquote(part) for part in url.path.strip('/').split('/')]
    status, reply, headers = self.answer(self.command, parts, query, body)
    data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    self.send_response(status)
    kind = 'application/octet-stream' if isinstance(reply, bytes) else 'application/json'
    for name, value in dict({'Content-Type': kind, 'Content-Length': len(data)}, **headers).items():
      self.send_header(name, str(value))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data)

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_one

  def chunks(self) -> Iterator[bytes]:
    while size := int(self.rfile.readline(), 16):
      yield self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()

  def answer(self, method, parts, query, body) -> tuple[int, bytes | dict, dict]:
    store = self.store
    path = '/'.join(parts)
    if '/b/bucket/' not in f'{path}/':
      return 404, dict(error=dict(code=404, message='The specified bucket does not exist.')), {}
    if match := re.fullmatch(r'upload/(?:storage/v1|.*)/b/([^/]+)/o', path):
      return self.upload(match[1], query, body)
    if match := re.fullmatch(r'(?:download/)?storage/v1/b/([^/]+)/o/(.+)', path):
      store.asked[f'{method} object'] += 1
      if method == 'GET' and store.hides and re.search(store.hides, match[2]):
        return 403, dict(error=dict(code=403, message='no storage.objects.get')), {}
      return self.object(method, match[1], match[2], query, body)
    if match := re.fullmatch(r'storage/v1/b/([^/]+)/o', path):
      store.asked['list'] += 1
      page = query.get('pageToken', query.get('startOffset', '')) or ''
      most = int(query.get('maxResults') or 1000)
      asked = query.get('prefix', ''), query.get('delimiter', '')
      return 200, store.listing(match[1], *asked, page, most), {}
    if re.fullmatch(r'storage/v1/b/bucket', path):
      return 200, dict(kind='storage#bucket', name='bucket', location='HERE'), {}
    return 404, dict(error=dict(code=404, message=f'nothing at {path}')), {}

  def upload(self, bucket, query, body):
    store, name = self.store, query.get('name', '')
    how, expected = query.get('uploadType'), query.get('ifGenerationMatch')
    store.asked['upload'] += 1
    if how == 'multipart':
      kind = self.headers['Content-Type']
      whole = email.message_from_bytes(b'Content-Type: ' + kind.encode() + b'\r\n\r\n' + body)
      about, content = whole.get_payload()
      name = name or json.loads(about.get_payload(decode=True))['name']
      body = content.get_payload(decode=True)
    if how == 'resumable' and 'upload_id' not in query:
      name = name or json.loads(body)['name']
      token = str(len(store._uploads))
      store._uploads[token] = f'{bucket}/{name}', bytearray()
      where = f'http://{self.headers["Host"]}/upload/storage/v1/b/{bucket}/o'
      return 200, {}, dict(Location=f'{where}?uploadType=resumable&upload_id={token}')
    if how == 'resumable':
      full, got = store._uploads[query['upload_id']]
      got += body
      if self.headers['Content-Range'].endswith('/*'):
        return 308, {}, dict(Range=f'bytes=0-{len(got) - 1}')
      name, body = full.partition('/')[2], bytes(got)
    if store.refuses and re.search(store.refuses, name):
      return 403, dict(error=dict(code=403, message='no storage.objects.create')), {}
    entry = store.put(f'{bucket}/{name}', body, expected)
    if entry is None:
      return 412, dict(error=dict(code=412, message='conditionNotMet')), {}
    return 200, entry, {}

  def object(self, method, bucket, key, query, body):
    store = self.store
    gone = 404, dict(error=dict(code=404, message=f'No such object: {bucket}/{key}')), {}
    name = f'{bucket}/{key}'
    with store._lock:
      if '/rewriteTo/' in key or '/copyTo/' in key:
        source, to = re.fullmatch(r'(.+)/(?:rewriteTo|copyTo)/b/(.+/o/.+)', key).groups()
        if f'{bucket}/{source}' not in store.objects:
          return gone
        entry = store.put(to.replace('/o/', '/', 1), store.objects[f'{bucket}/{source}'][0])
        return 200, dict(done=True, resource=entry), {}
      if '/moveTo/o/' in key:
        source, to = (f'{bucket}/{part}' for part in key.split('/moveTo/o/'))
        return (
          (200, store.put(to, store.objects.pop(source)[0]), {})
          if source in store.objects
          else gone
        )
      if name not in store.objects:
        return gone
      data, generation = store.objects[name]
      if query.get('ifGenerationMatch') not in (None, str(generation)):
        return 412, dict(error=dict(code=412, message='conditionNotMet')), {}
      if method == 'DELETE':
        del store.objects[name]
        return 204, b'', {}
      if query.get('ifGenerationNotMatch') == str(generation):
        return 304, b'', {}
      if query.get('alt') != 'media':
        return 200, store.entry(name), {}
    about = {'x-goog-generation': generation, 'x-goog-stored-content-length': len(data)}
    span = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range') or '')
    if not span:
      return 200, data, about
    if not span[1]:
      first, last = max(len(data) - int(span[2]), 0), len(data) - 1
    else:
      first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
    if first >= len(data):
      return 416, b'', {'Content-Range': f'bytes */{len(data)}'}
    about |= {'Content-Range': f'bytes {first}-{last}/{len(data)}'}
    return 206, data[first : last + 1], about


class Server(http.server.ThreadingHTTPServer):
  """Silent about clients that were killed."""

  daemon_threads = True

  def handle_error(self, request, client_address):
    if not isinstance(sys.exc_info()[1], ConnectionError):
      super().handle_error(request, client_address)


def environment(port: int) -> dict[str, str]:
  """The variables by which every client talks to this store and asks nobody for credentials."""
  host = f'http://127.0.0.1:{port}'
  return dict(
    STORAGE_EMULATOR_HOST=host,
    TENSORSTORE_GCS_HTTP_URL=host,
    NO_GCE_CHECK='true',
    GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT='false',  # asks for the kind of bucket by gRPC
  )


@contextlib.contextmanager
def serve(port: int = 0) -> Iterator[tuple[Store, dict[str, str]]]:
  """(the store, its environment), for as long as the block lasts."""
  handler = type('OneStore', (Handler,), dict(store=Store()))
  with Server(('127.0.0.1', port), handler) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield handler.store, environment(server.server_address[1])
    server.shutdown()


if __name__ == '__main__':
  with serve(int(sys.argv[1])) as (_, variables):
    print(json.dumps(variables), flush=True)
    threading.Event().wait()
