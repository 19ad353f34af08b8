"""For programs: `POST /v1/images/edits`, in the shape that clients of image APIs already speak.

It makes the same orders as the page, waits for them, and answers with all pictures at once.
"""

import asyncio
import base64
import dataclasses
import io
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from exedit.editing.settings import LARGEST_SEED
from exedit.input_pipeline import codec
from exedit.page import api, asking, guard, store
from exedit.page.editor import Editor
from exedit.page.orders import ENDED, Order
from exedit.runtime import decode
from exedit.runtime.errors import UserError

IGNORED = dict(  # fields of other image APIs: what they may say, because nothing else is done
  quality=('auto', 'high', 'standard', 'hd'), background=('auto', 'opaque'), output_format=('png',),
  stream=('false',), moderation=('auto', 'low'), input_fidelity=('high', 'low'),
)  # fmt: skip
MOST_FILES = 10
TEXT_BYTES = 1 << 16


@dataclasses.dataclass
class Asked:
  """The fields and the files of a request."""

  fields: dict[str, str]
  images: list[UploadFile]
  mask: bytes | None


async def read(form: FormData) -> Asked:
  """The parts of a multipart request, by their kind."""
  found = Asked({}, [], None)
  for name, part in form.multi_items():
    kind = name.partition('[')[0]
    if isinstance(part, str):
      if kind in ('image', 'mask'):
        raise UserError(f'{name!r:.40} must be a file')
      found.fields[name] = part
    elif kind == 'image':
      found.images.append(part)
    elif name != 'mask':
      raise UserError(f'{name!r:.40} is no file of this request: send image[] and mask')
    elif found.mask is not None:
      raise UserError('there are several masks: send one, for the photo')
    else:
      found.mask = await api.small_file(part)
  if not found.images:
    raise UserError('image is missing: send the photo as image[], then the exemplars')
  return found


async def edits(request: Request) -> Response:
  """Repaints the mask of a photo with an exemplar, or as a text says; answers with n pictures."""
  page, session = api.page_of(request), api.session_of(request)
  page.queue.room(session)
  async with request.form(max_files=MOST_FILES, max_fields=64, max_part_size=TEXT_BYTES) as form:
    asked = await read(form)
    links = asked.fields.pop('response_format', 'b64_json')
    if links not in ('b64_json', 'url'):
      raise UserError(f'response_format is {links!r:.40}: use b64_json or url')
    order = await _order(page, session, asked)
  await _finished(request, page, order)
  data = []
  for i, candidate in enumerate(order.candidates):
    if links == 'url':
      base = str(request.base_url).rstrip('/')
      data.append(dict(url=_url(base, page, order, i), seed=candidate.seed))
    else:
      content = await page.do(_base64, order.result(i))
      data.append(dict(b64_json=content, seed=candidate.seed))
  return JSONResponse(dict(created=int(time.time()), data=data, size=_size_of(order)))


async def _order(page: api.Page, session: str, asked: Asked) -> Order:
  """The order of a request, in the queue."""
  fields = asked.fields
  n = _count(fields.pop('n', '1'))
  editor = _editor(page, fields.pop('model', None), asked)
  job, records = _job(editor, fields, n), []
  for part in asked.images:
    name = asking.base_name(part.filename or '')
    records.append(await api.receive_picture(page, session, _chunks(part), name))
  _check_size(fields.pop('size', 'auto'), records[0])
  parts = {} if asked.mask is None else {'mask': await page.do(mask_png, asked.mask)}
  job |= _regions(editor, records, parts) | dict(picture=records[0]['id'])
  return (await page.do(api.submit, page, session, job, parts))[0]


async def _chunks(part: UploadFile) -> AsyncIterator[bytes]:
  while data := await part.read(1 << 20):
    yield data


def _editor(page: api.Page, name: str | None, asked: Asked) -> Editor:
  """The weights of this name; else the first that edit photos and take what was sent."""
  if name is not None and name in page.editors:
    return page.editors[name]
  more = len(asked.images) > 1
  for editor in page.editors.values():
    kinds = {entry.kind for entry in editor.system.inputs}
    if 'photo' in kinds and ('picture' if more else 'text') in kinds:
      return editor
  what = 'an exemplar' if more else 'a text without an exemplar'
  raise UserError(f'no weights here edit a photo with {what}: they are {", ".join(page.editors)}')


def _count(given: str) -> int:
  if not given.isdecimal() or not 1 <= int(given[:6]) <= asking.SEEDS:
    raise UserError(f'n is {given!r:.20}: it must be from 1 to {asking.SEEDS}')
  return int(given)


def _job(editor: Editor, fields: dict[str, str], n: int) -> dict[str, Any]:
  """The texts, seeds and settings among the fields; UserError for a field that has no meaning."""
  names = [field.name for field in dataclasses.fields(editor.system.settings)]
  texts = [entry.name for entry in editor.system.inputs_of('text')]
  job: dict[str, Any] = dict(weights=editor.name, settings={})
  seed = fields.pop('seed', None)
  if seed is not None:
    if not seed.isdecimal() or int(seed[:12]) > LARGEST_SEED + 1 - n:
      raise UserError(
        f'seed is {seed!r:.20}: it must be a whole number from 0 to {LARGEST_SEED + 1 - n}'
      )
    job['seeds'] = [int(seed) + i for i in range(n)]
  else:
    first = asking.seeds_of(None)[0]
    job['seeds'] = [(first + i) % (LARGEST_SEED + 1) for i in range(n)]
  for name in [*fields]:
    if name in ('user', 'size'):
      continue
    value = fields.pop(name)
    if name in texts:
      job[name] = value
    elif name == 'prompt':  # clients send one always; a system without texts has no use for it
      continue
    elif name == 'preset':
      job[name] = value
    elif name in names:
      job['settings'][name] = value
    elif value not in IGNORED.get(name, ()):
      known = ['n', 'seed', 'size', 'response_format', 'model', 'preset', *texts, *names]
      raise UserError(f'{name!r:.40} is {value!r:.40}, which is not done here: use {_list(known)}')
  return job


def _list(names) -> str:
  return ', '.join(dict.fromkeys(names))


def _regions(editor, records, parts: Mapping[str, bytes]) -> dict[str, Any]:
  """The regions of a job: one, because there is one mask."""
  pictures = [entry.name for entry in editor.system.inputs_of('picture')]
  if len(records) > 1 + len(pictures):
    raise UserError(
      f'{editor.name} takes {1 + len(pictures)} images, and {len(records)} were sent: send the '
      'photo, then one exemplar'
    )
  region: dict[str, Any] = {
    name: dict(picture=record['id']) for name, record in zip(pictures, records[1:])
  }
  if parts:
    region['mask'] = 'mask'
  return dict(regions=[region])


def _check_size(size: str, record: Mapping[str, Any]) -> None:
  own = f'{record["width"]}x{record["height"]}'
  if size not in ('auto', own):
    raise UserError(f'size is {size!r:.20}: the result has the size of the photo, auto or {own}')


def _size_of(order: Order) -> str:
  return f'{order.asked["width"]}x{order.asked["height"]}'


def mask_png(data: bytes) -> bytes:
  """A mask with transparency as ours: its transparent part is repainted. Others stay as they are.

  A file has transparency if it has an alpha channel, be it opaque everywhere.

  Raises:
    UserError: for a file that is no picture.
  """
  with decode.opened(data, 'the mask') as file:
    if not file.has_transparency_data:
      return data if data.startswith(asking.PNG) else _as_png(decode.as_stored(file))
    alpha = np.asarray(decode.as_stored(file).convert('RGBA').getchannel('A'))
    return codec.png(alpha < 128)


def _as_png(image: Image.Image) -> bytes:
  out = io.BytesIO()
  image.save(out, 'PNG')
  return out.getvalue()


async def _finished(request: Request, page: api.Page, order: Order) -> None:
  """Waits for the order; a client that goes away ends it. Raises UserError if it fails."""
  while order.state not in ENDED:
    if page.closing:
      raise guard.Refused(503, 'the server stops: ask again')
    if await request.is_disconnected():
      await page.do(page.queue.cancel, order)
      raise guard.Refused(499, 'the client has gone')
    await asyncio.sleep(api.TICK)
  if order.state != 'done':
    raise guard.Refused(500 if order.state == 'failed' else 409, order.error or 'it was cancelled')


def _base64(path: Path) -> str:
  return base64.b64encode(path.read_bytes()).decode()


def _url(base: str, page: api.Page, order: Order, index: int) -> str:
  name = f'{order.id}-{index}'
  return f'{base}/v1/results/{name}.png?key={guard.key_of(page.store.secret, name)}'


async def linked(request: Request) -> Response:
  """A result, for whoever has its whole link."""
  page, name = api.page_of(request), request.path_params['name'].removesuffix('.png')
  found = store.RESULT.fullmatch(name)
  given = request.query_params.get('key', '')
  if found and guard.same(given, guard.key_of(page.store.secret, name)):
    order = page.queue.any(found[1])
    if order is not None and order.result(int(found[2])).exists():
      return FileResponse(order.result(int(found[2])), media_type='image/png')
  raise store.Missing('there is no such result, or the key is wrong')


ROUTES = [
  Route('/v1/images/edits', edits, methods=['POST']),
  Route('/v1/results/{name}', linked),
]
