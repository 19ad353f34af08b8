"""Hub ids, tested with a local server that speaks as the hub does; no request goes out."""

import errno
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from exedit.weights.fetch import local_path, wanted
from tests.pickled import refusal

# which files

MAIN = [  # the files of the published repository
  '.gitattributes',
  'README.md',
  'model_index.json',
  'model.ckpt',
  'feature_extractor/preprocessor_config.json',
  'image_encoder/config.json',
  'image_encoder/pytorch_model.bin',
  'scheduler/scheduler_config.json',
  'unet/config.json',
  'unet/diffusion_pytorch_model.bin',
  'vae/config.json',
  'vae/diffusion_pytorch_model.bin',
]
PR3 = MAIN + [
  'model.safetensors',
  'image_encoder/model.safetensors',
  'unet/diffusion_pytorch_model.safetensors',
  'vae/diffusion_pytorch_model.safetensors',
]


def test_the_published_repository_gives_its_components_and_never_the_12_gb_pickle():
  assert set(MAIN) - set(wanted(MAIN, '')) == {'.gitattributes', 'README.md', 'model.ckpt'}
  chosen = wanted(PR3, '')
  assert [f for f in chosen if not f.endswith('.json')] == [
    'unet/diffusion_pytorch_model.safetensors',
    'vae/diffusion_pytorch_model.safetensors',
    'image_encoder/model.safetensors',
  ]
  assert 'model_index.json' in chosen and 'unet/config.json' in chosen


def test_half_size_twins_other_frameworks_and_parts_nobody_uses_stay_there():
  files = [
    'model_index.json',
    'v1-5-pruned.ckpt',
    'v1-5-pruned.safetensors',
    'safety_checker/model.safetensors',
    'text_encoder/model.safetensors',
    'unet/diffusion_pytorch_model.bin',
    'unet/diffusion_pytorch_model.fp16.safetensors',
    'unet/diffusion_pytorch_model.non_ema.safetensors',
    'unet/diffusion_pytorch_model.safetensors',
    'unet/diffusion_flax_model.msgpack',
    'vae/diffusion_pytorch_model.fp16.bin',
    'vae/diffusion_pytorch_model.bin',
    'vae/openvino_model.bin',
  ]
  assert wanted(files, '') == [
    'model_index.json',
    'unet/diffusion_pytorch_model.safetensors',
    'vae/diffusion_pytorch_model.bin',
    'text_encoder/model.safetensors',
  ]
  clip = ['config.json', 'model.safetensors', 'pytorch_model.bin', 'tf_model.h5', 'vocab.json']
  assert wanted(clip, '') == ['config.json', 'vocab.json', 'model.safetensors']
  run = ['config.json', 'model.safetensors', 'optimizer.bin', 'training_args.bin', 'metrics.jsonl']
  assert wanted(run, '') == ['config.json', 'model.safetensors']
  assert wanted(['config.json', 'model.fp16.safetensors'], '')[-1] == 'model.fp16.safetensors'


def test_shards_come_with_the_index_of_their_kind():
  shards = [f'model-0000{i}-of-00002.safetensors' for i in (1, 2)]
  others = [f'pytorch_model-0000{i}-of-00002.bin' for i in (1, 2)] + [
    'pytorch_model.bin.index.json'
  ]
  files = [*shards, 'model.safetensors.index.json', *others, 'config.json']
  assert wanted(files, '') == ['config.json', *shards, 'model.safetensors.index.json']


def test_what_is_not_for_us_and_what_is_ambiguous_is_refused():
  several = ['README.md', 'sd-v1-4.ckpt', 'sd-v1-4-full-ema.ckpt']
  assert 'sd-v1-4-full-ema.ckpt, sd-v1-4.ckpt' in refusal(wanted, several, 'CompVis/sd')
  assert 'a/b holds no weights' in refusal(wanted, ['README.md', 'data.parquet'], 'a/b')
  assert 'no weights' in refusal(wanted, ['model_index.json', 'unet/config.json'], 'a/b')


# paths and ids


def test_a_path_is_returned_as_it_is(tmp_path, monkeypatch):
  (tmp_path / 'owner').mkdir()
  (tmp_path / 'owner' / 'name').touch()
  assert local_path(tmp_path) == tmp_path and local_path(str(tmp_path)) == tmp_path
  monkeypatch.chdir(tmp_path)
  assert local_path('owner/name') == Path('owner/name')
  assert 'revision x' in refusal(local_path, 'owner/name', 'x')


@pytest.mark.parametrize(
  'name',
  [
    'nowhere',
    '/no/where',
    './owner/name',
    '../a/b',
    'a/b/c',
    'a b/c',
    'a/b.ckpt',
    'runs/x.safetensors',
    '',
    'a\0/b',
  ],
)
def test_what_is_neither_path_nor_id_is_refused_without_asking_anybody(name, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  assert 'does not exist' in refusal(local_path, name)


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('weights/tny', 'weights/tny does not exist: did you mean weights/tiny?'),
    ('weights/TINY', 'did you mean weights/tiny?'),
    ('wieghts/tiny', 'did you mean weights/tiny?'),
    ('wieghts/tinny', 'did you mean weights/tiny?'),
    ('weights/large', 'weights/large does not exist: weights has small, tiny'),
    ('./weights/tny', 'did you mean weights/tiny?'),
    ('weights/tny/model.safetensors', 'did you mean weights/tiny/model.safetensors?'),
    ('weights/a/b/c', 'weights has small, tiny'),
    ('~/tny', 'does not exist: did you mean'),
    (
      'https://huggingface.co/owner/name/tree/main',
      'address .* name .* owner/name$',
    ),
    ('hf://owner/name', 'name the repository alone, owner/name$'),
    ('https://example.com/a.ckpt', 'does not exist'),
  ],
)
def test_names_that_look_like_paths_are_not_sent_to_the_hub(name, words, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / 'weights'))
  for folder in ('tiny', 'small'):
    (tmp_path / 'weights' / folder).mkdir(parents=True)
  (tmp_path / 'weights' / 'tiny' / 'model.safetensors').touch()
  line = refusal(local_path, name)
  assert re.search(words, line), line
  if name == 'weights/tny':  # so can a repository of this name be fetched
    assert 'weights/tny@main' in line
    assert 'pip install huggingface_hub' in refusal(local_path, 'weights/tny@main')
  assert local_path('~/tiny') == tmp_path / 'weights' / 'tiny'


def test_a_folder_of_the_hubs_cache_means_what_was_downloaded(tmp_path):
  home = tmp_path / 'hub' / 'models--owner--name'
  for folder in ('refs', 'blobs', 'snapshots'):
    (home / folder).mkdir(parents=True)
  assert 'finished download: name owner/name' in refusal(local_path, home)
  for commit in ('a' * 40, 'b' * 40):
    (home / 'snapshots' / commit).mkdir()
  line = refusal(local_path, home)
  assert 'cache of owner/name with several downloads' in line and f'snapshots/{"b" * 40}' in line
  (home / 'refs' / 'main').write_text('b' * 40)
  for path in (home, home / 'snapshots', home / 'blobs', home / 'snapshots' / ('b' * 40)):
    assert local_path(path) == home / 'snapshots' / ('b' * 40)
  (home / 'refs' / 'main').write_text('c' * 40)  # this download was removed
  assert 'several' in refusal(local_path, home)
  (home / 'snapshots' / ('a' * 40)).rmdir()
  assert local_path(home) == home / 'snapshots' / ('b' * 40)


def test_two_different_revisions_are_refused():
  line = refusal(local_path, 'owner/name@main', 'refs/pr/3')
  assert 'main' in line and 'refs/pr/3' in line


def test_without_the_library_the_line_says_so(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  assert 'pip install huggingface_hub' in refusal(local_path, 'owner/name')


def test_a_full_disk_and_anything_else_the_library_raises_is_one_line(monkeypatch):
  import huggingface_hub

  def listing(*_, **__):
    return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=f) for f in MAIN])

  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', listing)
  for error, expected in [
    (OSError(errno.ENOSPC, 'No space left on device'), 'HF_HOME'),
    (RuntimeError('several\nlines of trouble'), 'several lines of trouble'),
  ]:

    def fail(*_, error=error, **__):
      raise error

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
    assert expected in refusal(local_path, 'owner/name')


# against a server


COMMIT = {'main': 'a' * 40, 'refs/pr/3': 'b' * 40}
CONTENT = {'a' * 40: MAIN, 'b' * 40: PR3}


class Server(http.server.BaseHTTPRequestHandler):
  """The hub's listing, metadata and downloads, for one public and one gated repository."""

  asked: list[str] = []

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path = re.sub(r'%2F', '/', self.path.split('?')[0])
    self.asked.append(f'{self.command} {path}')
    if 'private/name' in path:
      return self.answer(403, b'', {'X-Error-Code': 'GatedRepo'})
    if 'broken/name' in path:
      return self.answer(500, b'')
    match = re.fullmatch(r'/(?:api/models/)?owner/name(/.*)?', path)
    if not match:
      return self.answer(401, b'', {'X-Error-Code': 'RepoNotFound'})
    rest = match[1] or '/revision/main'
    kind, rest = re.fullmatch(r'/(revision|tree|resolve)/(.*)', rest).groups()
    revision = next((r for r in (*COMMIT, *CONTENT) if rest.startswith(r)), None)
    if revision is None:
      return self.answer(404, b'', {'X-Error-Code': 'RevisionNotFound'})
    commit = COMMIT.get(revision, revision)
    files = CONTENT[commit]
    if kind == 'revision':
      info = dict(id='owner/name', sha=commit, siblings=[dict(rfilename=f) for f in files])
      return self.answer(200, json.dumps(info).encode())
    if kind == 'tree':
      tree = [dict(type='file', path=f, size=len(f), oid='c' * 40) for f in files]
      return self.answer(200, json.dumps(tree).encode())
    file = rest.removeprefix(revision + '/')
    if file not in files:
      return self.answer(404, b'', {'X-Error-Code': 'EntryNotFound'})
    etag = hashlib.sha256(file.encode()).hexdigest()
    self.answer(200, file.encode(), {'ETag': f'"{etag}"', 'X-Repo-Commit': commit})

  def answer(self, status, body, headers={}):
    self.send_response(status)
    for name, value in {'Content-Length': str(len(body)), **headers}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(body)

  def log_message(self, *_):
    pass


@pytest.fixture(scope='module')
def server():
  running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
  threading.Thread(target=running.serve_forever, daemon=True).start()
  yield f'http://127.0.0.1:{running.server_port}'
  running.shutdown()


ASK = """
import sys
from exedit.runtime.errors import UserError
from exedit.weights import fetch
for src in sys.argv[1:]:
  try:
    print('found', fetch.local_path(src))
  except UserError as error:
    print('refused', error)
"""


def ask(home, endpoint, *sources, **environment):
  """Runs `local_path` for these names in a new process: [('found' or 'refused', the rest)]."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith('HF_')}
  environment = kept | dict(HF_HOME=str(home), HF_ENDPOINT=endpoint, **environment)
  done = subprocess.run(
    [sys.executable, '-c', ASK, *sources], env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return [tuple(line.split(' ', 1)) for line in done.stdout.splitlines()], done.stderr


def contents(folder):
  """{file: its content} for all files below a folder."""
  return {
    p.relative_to(folder).as_posix(): p.read_text()
    for p in Path(folder).rglob('*.*')
    if p.is_file()
  }


def test_fetch_once_then_from_the_cache_online_and_offline(tmp_path, server):
  Server.asked.clear()
  answers, progress = ask(tmp_path, server, 'owner/name', 'owner/name@refs/pr/3')
  (said, main), (_, pr3) = answers
  assert said == 'found' and main.endswith('a' * 40) and pr3.endswith('b' * 40)
  assert contents(main) == {file: file for file in wanted(MAIN, '')}
  assert contents(pr3) == {file: file for file in wanted(PR3, '')}
  assert not any('model.ckpt' in line or 'README' in line for line in Server.asked)
  assert '%' in progress  # the bar was shown

  Server.asked.clear()
  assert ask(tmp_path, server, 'owner/name')[0] == [('found', main)]
  assert not any('GET' in line and '/resolve/' in line for line in Server.asked)

  nobody = 'http://127.0.0.1:9'
  answers, warned = ask(tmp_path, nobody, 'owner/name@refs/pr/3', 'owner/name', HF_HUB_OFFLINE='1')
  assert answers == [('found', pr3), ('found', main)] and 'cache' in warned
  assert ask(tmp_path, nobody, 'owner/name')[0] == [('found', main)]


def test_refusals_of_the_hub_are_one_line_each(tmp_path, server):
  names = ['no/body', 'private/name', 'owner/name@nowhere', 'broken/name', 'weights/huge@main']
  answers, _ = ask(tmp_path, server, *names)
  for (said, line), name, expected in zip(
    answers,
    names,
    [
      'neither a path here',
      'accept its terms',
      'no such revision',
      'cannot be fetched',
      'spelling',
    ],
  ):
    assert (
      said == 'refused' and line.startswith(name) and expected in line and 'give the path' in line
    )


def test_offline_and_unreachable_with_an_empty_cache(tmp_path):
  nobody = 'http://127.0.0.1:9'
  [(said, line)], _ = ask(tmp_path, nobody, 'owner/name', HF_HUB_OFFLINE='1')
  assert said == 'refused' and 'HF_HUB_OFFLINE' in line
  [(said, line)], _ = ask(tmp_path, nobody, 'owner/name')
  assert said == 'refused' and 'check the connection' in line
