"""A server of the page in this process, with the small weights, and what a client does with it."""

import contextlib
import json

import numpy as np
from starlette.testclient import TestClient

from exedit.input_pipeline import codec
from exedit.page import editor, server

LOCAL = 'http://localhost'


@contextlib.contextmanager
def serving(weights, folder, *, token='', root='', editors=None, **how):
  """A function that makes clients of a running server; its `page` holds the server's parts."""
  editors = editors or editor.open_editors([weights])
  page = server.make_page(editors, folder, token=bool(token), **how)
  app = server.make_app(page, token=token, root=root)
  with TestClient(app, LOCAL):

    def client(**kw):
      return TestClient(app, kw.pop('base_url', LOCAL), raise_server_exceptions=False, **kw)

    client.page = page
    yield client


def mask(height, width, top, left, bottom, right) -> bytes:
  array = np.zeros((height, width), bool)
  array[top:bottom, left:right] = True
  return codec.png(array)


def upload(client, data, name='photo.png') -> dict:
  answer = client.post('/api/pictures', params=dict(name=name), content=data)
  assert answer.status_code == 201, answer.text
  return answer.json()


def order(client, job, **masks):
  """The answer to a new job."""
  files = {name: (f'{name}.png', data, 'image/png') for name, data in masks.items()}
  return client.post('/api/jobs', data=dict(job=json.dumps(job)), files=files or None)


def events(client, name, **headers) -> list[tuple[str, dict]]:
  """All events of a job, until it ends."""
  text = client.get(f'/api/jobs/{name}/events', headers=headers).text
  found = []
  for block in text.strip().split('\n\n'):
    lines = dict(line.split(': ', 1) for line in block.split('\n') if not line.startswith(':'))
    if lines:
      found.append((lines['event'], json.loads(lines['data'])))
  return found


def finished(client, job, **masks) -> dict:
  """A job that has ended, as `GET api/jobs/ID` tells."""
  answer = order(client, job, **masks)
  assert answer.status_code == 201, answer.text
  name = answer.json()['id']
  events(client, name)
  return client.get(f'/api/jobs/{name}').json()


def error(answer, status=400) -> str:
  assert answer.status_code == status, answer.text
  return answer.json()['error']
