"""Who may ask what: hosts, origins, tokens, sessions, and limits of size and time."""

import asyncio
import io
import os
import socket
import threading
import time

import numpy as np
import pytest
import uvicorn
from PIL import Image

from exedit.input_pipeline.codec import png
from exedit.page import editor, guard, orders, server, store
from exedit.runtime.errors import UserError
from tests import small
from tests.page.serving import LOCAL, error, serving, upload

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def editors(tmp_path_factory):
  return editor.open_editors([small.export(tmp_path_factory.mktemp('weights') / 'small')])


@pytest.fixture(scope='module', autouse=True)
def idle():
  """No weights are loaded, because nothing here computes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(editor.Editor, 'load', lambda self: None)
    yield


@pytest.fixture(scope='module')
def clients(editors, tmp_path_factory):
  folder = tmp_path_factory.mktemp('data') / 'page'
  with serving(None, folder, editors=editors, most=100_000) as found:
    yield found


@pytest.fixture
def locked(editors, tmp_path):
  with serving(None, tmp_path / 'page', editors=editors, token='sesame', root='/edit') as found:
    yield found


def test_a_foreign_name_for_this_machine_is_refused(clients):
  assert clients().get('/api/about').status_code == 200
  assert clients(base_url='http://[::1]:7860').get('/api/about').status_code == 200
  told = error(clients(base_url='http://evil.example').get('/api/about'), 403)
  assert told == "this server is for this machine, not for 'evil.example': give a --token"


@pytest.mark.parametrize(
  'headers, status',
  [
    ({}, 201),
    ({'Sec-Fetch-Site': 'same-origin'}, 201),
    ({'Origin': LOCAL}, 201),
    ({'Sec-Fetch-Site': 'cross-site'}, 403),
    ({'Sec-Fetch-Site': 'same-site'}, 403),
    ({'Origin': 'http://evil.example'}, 403),
    ({'Origin': 'null'}, 403),
    ({'Origin': 'http://localhost:8080'}, 403),
    ({'Sec-Fetch-Site': 'cross-site', 'Authorization': 'Bearer any'}, 403),
  ],
)
def test_only_the_page_itself_and_programs_may_change_something(clients, headers, status):
  answer = clients().post('/api/pictures', content=png(NOISE), headers=headers)
  assert answer.status_code == status


def test_with_a_token_nobody_else_is_let_in(locked):
  client = locked(base_url='http://photos.example')
  assert error(client.get('/edit/api/about'), 401).startswith('the token is missing or wrong')
  assert error(client.get('/edit/metrics'), 401) and client.get('/edit/healthz').status_code == 200
  assert 'name="token"' in client.get('/edit/?token=wrong').text and not client.cookies
  assert error(client.get('/edit/api/about', headers={'Authorization': 'Bearer no'}), 401)
  opened = client.get('/edit/?token=sesame', follow_redirects=False)
  assert (opened.status_code, opened.headers['location']) == (303, '/edit/')
  cookie = opened.headers['set-cookie']
  assert 'HttpOnly; SameSite=Strict' in cookie and 'Path=/edit' in cookie
  assert client.get('/edit/api/about').json()['token'] is True
  cut = client.get('/api/about', headers=dict(Cookie=cookie.partition(';')[0]))
  assert cut.status_code == 200  # the proxy has cut the root off
  bearer = {'Authorization': 'Bearer sesame', 'Sec-Fetch-Site': 'cross-site'}
  program = locked(base_url='http://photos.example')
  assert program.post('/edit/api/pictures', content=png(NOISE), headers=bearer).status_code == 201


def test_a_cookie_of_another_token_or_by_somebody_else_is_worth_nothing(locked):
  first = locked(base_url='http://photos.example')
  first.get('/edit/?token=sesame')
  [(name, value)] = first.cookies.items()
  for forged in (value[:-1] + ('0' if value[-1] != '0' else '1'), value.split('.')[0], ''):
    client = locked(base_url='http://photos.example', cookies={name: forged})
    assert client.get('/edit/api/about').status_code == 401


def test_a_link_on_another_site_does_not_lose_the_session(clients, locked):
  for client, path in ((clients(), '/'), (locked(), '/edit/')):
    answer = client.get(path, headers={'Sec-Fetch-Site': 'cross-site'})
    assert answer.status_code == 200 and f'url={path}"' in answer.text and not client.cookies
  assert locked().get('/edit/?token=sesame', headers={'Sec-Fetch-Site': 'cross-site'}).is_success
  assert clients().get('/').cookies


def test_two_sessions_do_not_see_each_other(clients):
  mine, other = clients(), clients()
  picture = upload(mine, png(NOISE))['id']
  assert [p['id'] for p in mine.get('/api/pictures').json()['pictures']] == [picture]
  assert other.get('/api/pictures').json() == dict(pictures=[])
  for path in ('file', 'preview?side=64'):
    assert mine.get(f'/api/pictures/{picture}/{path}').status_code == 200
    assert other.get(f'/api/pictures/{picture}/{path}').status_code == 404
  assert other.delete(f'/api/pictures/{picture}').status_code == 404
  assert other.get('/api/jobs').json() == dict(jobs=[])
  assert mine.delete(f'/api/pictures/{picture}').status_code == 204
  assert mine.get('/api/pictures').json() == dict(pictures=[])


def test_every_answer_has_a_strict_policy(clients):
  for path in ('/', '/api/about', '/api/nothing', '/static/nothing.js'):
    headers = clients().get(path).headers
    assert headers['content-security-policy'] == guard.POLICY
    assert 'unsafe' not in guard.POLICY and "default-src 'none'" in guard.POLICY
    assert headers['x-content-type-options'] == 'nosniff'


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
  'data, status, why',
  [
    (SVG, 400, 'a.png is not an image of a kind that Pillow reads'),
    (b'', 400, 'a.png is empty (0 bytes)'),
    (png(NOISE)[:300], 400, 'a.png cannot be decoded'),
    (bytes(100_001), 413, 'the upload has 100001 bytes, and 100000 are allowed'),
    (png(np.zeros((7, 30, 3), np.uint8)), 400, 'give an image of at least 8 x 8'),
  ],
)
def test_an_upload_that_is_no_picture_leaves_nothing(clients, data, status, why):
  client = clients()
  told = error(client.post('/api/pictures', params=dict(name='../../a.png'), content=data), status)
  assert why in told and str(clients.page.store.folder) not in told
  assert client.get('/api/pictures').json() == dict(pictures=[])


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(clients, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)
  monkeypatch.setattr('exedit.runtime.decode.eight_bit', lambda *_, **__: pytest.fail('decoded'))
  data = png(np.zeros((101, 100, 3), np.uint8))
  assert 'more than the 0 million pixels' in error(clients().post('/api/pictures', content=data))


def test_an_upload_of_unknown_length_is_cut_off_at_the_limit(clients):
  parts = (bytes(10_000) for _ in range(11))
  told = error(clients().post('/api/pictures', content=parts), 413)
  assert told == 'the upload has more than the 100000 bytes allowed'
  [*left] = clients.page.store.sessions.glob('*/.*')
  assert not left


def test_the_file_stays_byte_for_byte_and_the_preview_is_upright(clients):
  out = io.BytesIO()
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(NOISE).save(out, 'JPEG', exif=exif, quality=95)
  client = clients()
  picture = upload(client, out.getvalue(), 'C:\\photos\\"a".jpg')
  assert (picture['width'], picture['height'], picture['name']) == (20, 30, '"a".jpg')
  file = client.get(f'/api/pictures/{picture["id"]}/file')
  assert (
    file.content == out.getvalue() and file.headers['content-type'] == 'application/octet-stream'
  )
  shown = client.get(f'/api/pictures/{picture["id"]}/preview?side=64')
  assert shown.headers['content-type'] == 'image/png'
  assert Image.open(io.BytesIO(shown.content)).size == (20, 30)
  assert error(client.get(f'/api/pictures/{picture["id"]}/preview?side=a'), 400).startswith('side')


def test_a_session_can_hold_so_many_pictures(clients, monkeypatch):
  monkeypatch.setattr('exedit.page.api.PICTURES', 1)
  client = clients()
  upload(client, png(NOISE))
  answer = client.post('/api/pictures', content=png(NOISE))
  assert 'holds 1 pictures already' in error(answer, 503) and answer.headers['retry-after']


def test_a_folder_of_others_is_not_taken_and_one_server_uses_it_at_a_time(tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  with pytest.raises(UserError, match='has files of others in it: name a new --folder'):
    store.Store(tmp_path)
  first = store.Store(tmp_path / 'page')
  with pytest.raises(UserError, match='is used by another server'):
    store.Store(tmp_path / 'page')
  first.close()
  again = store.Store(tmp_path / 'page')
  assert again.secret == first.secret
  again.close()


def test_old_sessions_leave_the_folder(tmp_path):
  places = store.Store(tmp_path / 'page')
  for name, days in (('a' * 32, 3), ('b' * 32, 1)):
    (places.session(name) / 'texts').mkdir(parents=True)
    for path in (places.session(name) / 'texts', places.session(name)):
      os.utime(path, (time.time() - days * 86400,) * 2)
  (places.sessions / 'notes').mkdir()  # no name of ours
  places.clean(days=2.0)
  assert sorted(path.name for path in places.sessions.iterdir()) == ['b' * 32, 'notes']
  places.close()


def test_a_full_queue_is_busy(tmp_path):
  places = store.Store(tmp_path / 'page')
  queue = orders.Queue(places, most=3, most_of_one=2)
  for session in ('a', 'a', 'b'):
    folder = places.session(session * 32) / 'texts'
    folder.mkdir(parents=True, exist_ok=True)
    queue.add(queue.new(session * 32, folder, {}, [0]))
  with pytest.raises(orders.Busy, match='2 jobs of yours wait already'):
    queue.add(queue.new('a' * 32, folder, {}, [0]))
  with pytest.raises(orders.Busy, match='3 jobs wait already'):
    queue.add(queue.new('b' * 32, folder, {}, [0]))
  (folder / f'{"0" * 32}{orders.RECORD}').write_text('{"id": "damaged"}')
  again = orders.Queue(places)
  assert len(again) == 3
  places.close()


@pytest.fixture
def port(clients, monkeypatch):
  """A port of a real server with short limits."""
  monkeypatch.setattr(server, 'HEAD_SECONDS', 0.3)
  monkeypatch.setattr(guard, 'CHUNK_SECONDS', 0.3)
  app = guard.Guard(
    server_app(clients), secret=clients.page.store.secret, token='', root='', most=10**6
  )
  config = uvicorn.Config(
    app, port=0, http=server.Connection, ws='none', lifespan='off', log_level='error'
  )
  running = uvicorn.Server(config)
  thread = threading.Thread(target=lambda: asyncio.run(running.serve()))
  thread.start()
  while not running.started:
    time.sleep(0.01)
  yield running.servers[0].sockets[0].getsockname()[1]
  running.should_exit = True
  thread.join()


def server_app(clients):
  """The application behind the guard, without its lifespan."""
  from starlette.applications import Starlette

  app = Starlette(routes=[*server.api.ROUTES], exception_handlers={UserError: server.refused})
  app.state.page = clients.page
  return app


def said(port, *parts):
  """What the server answers to a client that sends these parts, and then nothing more."""
  with socket.create_connection(('127.0.0.1', port), timeout=10) as client:
    for part in parts:
      client.sendall(part)
    answer = b''
    while data := client.recv(65536):
      answer += data
    return answer


def test_half_heads_and_half_uploads_time_out(clients, port):
  assert said(port, b'GET /api/about HTTP/1.1\r\nHost: local') == b''
  half = b'POST /api/pictures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n'
  answer = said(port, half, png(NOISE)[:100])
  assert b' 408 ' in answer and b'the upload is too slow, or has stopped' in answer
  assert not [*clients.page.store.sessions.glob('*/.*')]
  whole = b'GET /api/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'
  assert said(port, whole).endswith(b'{"jobs":[]}')
