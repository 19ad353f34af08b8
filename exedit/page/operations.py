"""For those who run the server: health, numbers, and the description of its interface."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import exedit
from exedit.page import api


async def health(request: Request) -> Response:
  """Whether the server works: it answers, and its worker lives."""
  alive = api.page_of(request).worker.alive
  return JSONResponse(dict(ok=alive), 200 if alive else 503)


async def ready(request: Request) -> Response:
  """Whether the weights are on the device."""
  page = api.page_of(request)
  ok = page.worker.ready.is_set() and page.worker.alive and not page.closing
  return JSONResponse(dict(ready=ok), 200 if ok else 503)


async def metrics(request: Request) -> Response:
  """Numbers in the text format of Prometheus."""
  page = api.page_of(request)
  count, seconds = page.worker.times
  rows = [
    ('exedit_queue_length', 'gauge', 'Jobs that wait.', [('', len(page.queue))]),
    ('exedit_ready', 'gauge', 'Weights are loaded.', [('', page.worker.ready.is_set())]),
    (
      'exedit_jobs_total', 'counter', 'Jobs by how they ended.',
      [(f'{{state="{s}"}}', page.worker.ended.get(s, 0)) for s in ('done', 'failed', 'cancelled')],
    ),
    ('exedit_edit_seconds', 'summary', 'Time of an edit.', [('_count', count), ('_sum', seconds)]),
  ]  # fmt: skip
  lines = []
  for name, kind, about, values in rows:
    lines += [f'# HELP {name} {about}', f'# TYPE {name} {kind}']
    lines += [f'{name}{label} {float(value):g}' for label, value in values]
  return PlainTextResponse('\n'.join(lines) + '\n', media_type='text/plain; version=0.0.4')


def _answer(about: str, kind: str = 'application/json') -> dict[str, Any]:
  return {'200': {'description': about, 'content': {kind: {}}}}


def _field(kind: str, about: str) -> dict[str, str]:
  return dict(type=kind, description=about)


FILE = dict(type='string', format='binary')
EDIT = {
  'summary': 'Repaints the mask of a photo with an exemplar, or as a text says',
  'requestBody': {
    'required': True,
    'content': {
      'multipart/form-data': {
        'schema': {
          'type': 'object',
          'required': ['image[]'],
          'properties': {
            'image[]': {'type': 'array', 'items': FILE, 'description': 'the photo, then exemplars'},
            'mask': {
              **FILE,
              'description': 'white is repainted; with an alpha channel, transparent is repainted',
            },
            'prompt': _field('string', 'for weights that take a text'),
            'n': _field('integer', 'pictures, whose seeds count up'),
            'seed': _field('integer', 'the first seed'),
            'size': _field('string', 'auto, or the size of the photo'),
            'response_format': _field('string', 'b64_json or url'),
            'model': _field('string', 'the name of weights of this server'),
          },
          'additionalProperties': _field('string', 'any setting of exedit.sample'),
        }
      }
    },
  },
  'responses': _answer('{created, data: [{b64_json or url, seed}], size}')
  | {'400': {'description': '{error: {message, type, param, code}}'}},
}
ABOUT = {
  ('get', '/api/about'): 'Weights with their inputs and settings, and the limits',
  ('get', '/api/pictures'): 'The pictures of this session',
  ('post', '/api/pictures'): 'Upload a picture, as the raw body; ?name= for people',
  ('delete', '/api/pictures/{id}'): 'Remove a picture',
  ('get', '/api/pictures/{id}/file'): 'The bytes of the upload',
  ('get', '/api/pictures/{id}/preview'): 'An upright copy for display; ?side=',
  ('post', '/api/masks'): 'What a mask file means for ?picture=, as a PNG of one bit',
  ('post', '/api/select'): 'The mask of the object in a box or at a point',
  ('post', '/api/frame'): 'The window that the network sees for a mask',
  ('get', '/api/jobs'): 'The jobs of this session, the newest first',
  ('post', '/api/jobs'): 'Edit regions of a picture; docs/page.md has the fields',
  ('get', '/api/jobs/{id}'): 'One job',
  ('delete', '/api/jobs/{id}'): 'Cancel a job, or remove one that has ended with its results',
  ('get', '/api/jobs/{id}/events'): 'Server-sent events: waiting, running, candidate, and the end',
  ('get', '/api/jobs/{id}/preview'): 'A rough picture of the step that is computed now',
  ('get', '/api/jobs/{id}/{what}/{number}'): 'The mask (masks) or cut-out (cuts) of a region',
  ('get', '/api/results/{id}'): 'A result, the file that exedit.sample would write',
  ('get', '/api/results/{id}/{what}'): 'Its recipe, preview (?side=), or words',
  ('get', '/v1/results/{name}'): 'A result by its link, with ?key=',
  ('get', '/healthz'): 'Whether the server works',
  ('get', '/readyz'): 'Whether the weights are loaded',
  ('get', '/metrics'): 'Numbers for Prometheus',
  ('get', '/openapi.json'): 'This description',
}


async def openapi(request: Request) -> Response:
  paths: dict[str, dict[str, Any]] = {'/v1/images/edits': {'post': EDIT}}
  for (method, path), about in ABOUT.items():
    names = [part.strip('{}') for part in path.split('/') if part.startswith('{')]
    parameters = [
      {'name': name, 'in': 'path', 'required': True, 'schema': {'type': 'string'}} for name in names
    ]
    answer = {'summary': about, 'parameters': parameters, 'responses': _answer(about)}
    paths.setdefault(path, {})[method] = answer
  root = request.scope['root_path']
  info = dict(title='exedit', version=exedit.__version__)
  return JSONResponse(
    dict(openapi='3.1.0', info=info, servers=[dict(url=root or '/')], paths=paths)
  )


ROUTES = [
  Route('/healthz', health),
  Route('/readyz', ready),
  Route('/metrics', metrics),
  Route('/openapi.json', openapi),
]
