"""What the page asks of the server, `api/...`. Answers: JSON, pictures, or a stream of events."""

import asyncio
import contextlib
import dataclasses
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
from jaxtyping import Bool
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import exedit
from exedit import images, systems
from exedit.input_pipeline import codec
from exedit.page import asking, select, store
from exedit.page.editor import Editor, Worker, defaults
from exedit.page.guard import Refused
from exedit.page.orders import ENDED, Busy, Candidate, Order, Queue
from exedit.page.store import Missing, Store
from exedit.runtime.errors import UserError

PICTURES = 200  # of one session
LARGEST_JSON, LARGEST_MASK = 1 << 20, 16 << 20  # bytes
LOSSLESS = 512 * 512  # pixels; smaller previews are PNG
TICK, QUIET = 0.1, 15.0  # seconds between looks for news, and until a stream shows that it lives
FOREVER = {'Cache-Control': 'private, max-age=31536000, immutable'}
HEAVY = 4  # requests at the same time that decode pictures


@dataclasses.dataclass
class Page:
  """All that the answers need. most: bytes of an upload. token: whether there is one."""

  store: Store
  queue: Queue
  worker: Worker
  editors: Mapping[str, Editor]
  most: int
  token: bool = False
  closing: bool = False
  heavy: anyio.CapacityLimiter = dataclasses.field(
    default_factory=lambda: anyio.CapacityLimiter(HEAVY)
  )

  async def do(self, function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function that decodes pictures or writes files, in a thread."""
    return await anyio.to_thread.run_sync(function, *args, limiter=self.heavy)


def page_of(request: Request) -> Page:
  return request.app.state.page


def session_of(request: Request) -> str:
  return request.scope['state']['session']


# About


async def about(request: Request) -> Response:
  page = page_of(request)
  return JSONResponse(
    dict(
      version=exedit.__version__,
      token=page.token,
      weights=[describe(editor) for editor in page.editors.values()],
      limits=dict(
        bytes=page.most, pixels=Image.MAX_IMAGE_PIXELS, pictures=PICTURES,
        regions=asking.REGIONS, seeds=asking.SEEDS, waiting=page.queue.most_of_one,
        seconds=page.worker.seconds,
      ),
      ranking=page.worker.ranking and page.worker.ranking.name,
    )
  )  # fmt: skip


def describe(editor: Editor) -> dict[str, Any]:
  """Weights with the inputs and settings of their system, for the fields of a page."""
  own = defaults(editor)
  fields = [f for f in dataclasses.fields(editor.system.settings) if f.name != 'seed']
  return dict(
    name=editor.name,
    system=editor.system.name,
    size=editor.session.trained,
    inputs=[dataclasses.asdict(entry) for entry in editor.system.inputs],
    settings=[_setting(field, own[field.name], editor) for field in fields],
    presets=asking.presets(editor),
    concepts=[dict(word=word, name=word) for word in editor.session.found.words],
    notes=editor.session.notes(),
  )


def _setting(field: dataclasses.Field, own: Any, editor: Editor) -> dict[str, Any]:
  least, most = field.metadata['bounds'] or (None, None)
  if field.name == 'steps':
    most = editor.session.most_steps
  return dict(
    name=field.name, type=systems.kind_of(field).__name__, default=own, least=least, most=most,
    choices=field.metadata['choices'], help=field.metadata['help'],
  )  # fmt: skip


# Pictures


async def pictures(request: Request) -> Response:
  page, session = page_of(request), session_of(request)
  found = await page.do(page.store.pictures, session)
  return JSONResponse(dict(pictures=[shown(record) for record in found]))


def shown(record: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a picture's record that clients see."""
  return {name: value for name, value in record.items() if name not in ('file', 'hidden')}


async def add_picture(request: Request) -> Response:
  """Keeps an uploaded file byte for byte, or takes a result of the session as a picture."""
  page, session = page_of(request), session_of(request)
  if len(await page.do(page.store.pictures, session)) >= PICTURES:
    raise Busy(f'this session holds {PICTURES} pictures already: remove some')
  kind = request.headers.get('content-type', '').partition(';')[0]
  if kind == 'application/json':
    asked = asking.read_json(await small_body(request))
    order, index = result_of(page, session, asked.get('from_result'))
    name = f'{order.id}-{index}'
    given = page.store, session, order.result(index), name
    return JSONResponse(shown(await page.do(asking.from_result, *given)), 201)
  name = asking.base_name(request.query_params.get('name', ''))
  return JSONResponse(shown(await receive_picture(page, session, request.stream(), name)), 201)


async def receive_picture(
  page: Page, session: str, parts: AsyncIterator[bytes], name: str
) -> dict[str, Any]:
  """The record of an uploaded picture; a half upload leaves nothing."""
  with page.store.new_picture(session) as (new, folder):
    with open(folder / 'given', 'wb') as file:
      async for part in parts:
        file.write(part)
    return await page.do(page.store.describe, new, folder, folder / 'given', name)


async def small_body(request: Request, most: int = LARGEST_JSON) -> bytes:
  """The body of a request, which is kept in memory."""
  body = bytearray()
  async for part in request.stream():
    body += part
    if len(body) > most:
      raise Refused(413, f'the request has more than {most} bytes')
  return bytes(body)


async def small_file(part: UploadFile) -> bytes:
  """The content of a mask, which is kept in memory."""
  if (part.size or 0) > LARGEST_MASK:
    raise Refused(413, f'the mask has {part.size} bytes, and {LARGEST_MASK} are allowed')
  return await part.read()


async def picture_file(request: Request) -> Response:
  record, path = page_of(request).store.picture(session_of(request), request.path_params['id'])
  return FileResponse(path, media_type='application/octet-stream', filename=record['name'])


async def picture_preview(request: Request) -> Response:
  page = page_of(request)
  record, path = page.store.picture(session_of(request), request.path_params['id'])
  return await preview(request, path, store.size_of(record))


async def preview(request: Request, path: Path, size: tuple[int, int]) -> Response:
  """A smaller copy for display, lossless if it is small."""
  asked = request.query_params.get('side', '')
  if not asked.isdecimal() or not 1 <= int(asked[:6]):
    raise UserError(f'side is {asked!r:.20}: it must be a number of pixels')
  side = store.side_of(int(asked[:6]))
  scale = min(1, side / max(size))
  lossless = size[0] * size[1] * scale**2 <= LOSSLESS
  place = await page_of(request).do(store.preview, path, side, lossless)
  kind = 'image/png' if lossless else 'image/webp'
  return FileResponse(place, media_type=kind, headers=FOREVER)


async def remove_picture(request: Request) -> Response:
  page, session, name = page_of(request), session_of(request), request.path_params['id']
  _, path = page.store.picture(session, name)
  used = any(order.folder == path.parent for order in page.queue.of(session))
  await page.do(page.store.remove, session, name, used)
  return Response(status_code=204)


# Masks, windows and selections


async def form_of(request: Request, field: str) -> tuple[dict[str, Any], dict[str, bytes]]:
  """The JSON in one field of a multipart request, or its whole body, and its files by name."""
  if request.headers.get('content-type', '').startswith('application/json'):
    return asking.read_json(await small_body(request)), {}
  most = 2 * asking.REGIONS + 2
  async with request.form(max_files=most, max_fields=most, max_part_size=LARGEST_JSON) as form:
    text, parts = form.get(field), {}
    for name, part in form.multi_items():
      if isinstance(part, UploadFile):
        parts[name] = await small_file(part)
    if isinstance(text, UploadFile):
      text = parts.pop(field)[:LARGEST_JSON]
    if text is None:
      raise UserError(f'the request has no field {field!r} with JSON')
    return asking.read_json(text), parts


@contextlib.contextmanager
def temporary(page: Page, data: bytes) -> Iterator[Path]:
  """A file with this content for the time of the block."""
  with tempfile.TemporaryDirectory(dir=page.store.folder, prefix=store.ASKED) as folder:
    path = Path(folder) / 'mask.png'
    path.write_bytes(data)
    yield path


def png_of(mask: Bool[np.ndarray, 'h w']) -> Response:
  """A mask as a PNG of one bit."""
  return Response(codec.png(mask), media_type='image/png')


async def read_mask(request: Request) -> Response:
  """What any mask file means for a picture: white where it is repainted."""
  page, asked = page_of(request), request.query_params
  record, _ = page.store.picture(session_of(request), asked.get('picture'))
  data, notes = await small_body(request, LARGEST_MASK), []

  def read():
    with temporary(page, data) as path:
      of = 'picture' if asked.get('subject') else None
      return png_of(asking.mask_of(path, store.size_of(record), of=of, notes=notes))

  answer = await page.do(read)
  answer.headers['X-Notes'] = json.dumps([f'the mask {note}' for note in notes])
  return answer


async def frame(request: Request) -> Response:
  page = page_of(request)
  asked, parts = await form_of(request, 'request')
  editor = asking.editor_of(page.editors, asked.get('weights'))
  record, _ = page.store.picture(session_of(request), asked.get('picture'))

  def find():
    with temporary(page, parts.get('mask', b'')) as path:
      mask = asking.mask_of(path, store.size_of(record))
    return JSONResponse(asking.frame(editor, mask, asked.get('settings')))

  return await page.do(find)


async def select_object(request: Request) -> Response:
  page = page_of(request)
  asked, parts = await form_of(request, 'request')
  record, path = page.store.picture(session_of(request), asked.get('picture'))
  box, point = (_numbers(asked.get(name), name, n) for name, n in (('box', 4), ('point', 2)))
  if (box is None) == (point is None):
    raise UserError('give box (left, top, right, bottom) or point (x, y)')

  def find():
    surely = None
    if 'mask' in parts:
      with temporary(page, parts['mask']) as place:
        surely = asking.mask_of(place, store.size_of(record))
    rgb = np.asarray(store.upright(record, path))
    return png_of(select.object_in(rgb, box, point, surely))

  return await page.do(find)


def _numbers(given: Any, name: str, count: int) -> Any:
  """The numbers of a box or point as a tuple, or None; UserError for anything else."""
  if given is None:
    return None
  good = isinstance(given, list) and len(given) == count
  if not good or not all(type(n) in (int, float) and abs(n) < 1e6 for n in given):
    raise UserError(f'{name} is {given!r:.60}: it must be a list of {count} numbers')
  return tuple(float(n) for n in given)


# Jobs


async def add_job(request: Request) -> Response:
  page, session = page_of(request), session_of(request)
  page.queue.room(session)
  asked, parts = await form_of(request, 'job')
  order, position = await page.do(submit, page, session, asked, parts)
  return JSONResponse(dict(id=order.id, position=position), 201)


def submit(page: Page, session: str, asked: dict, parts: Mapping[str, bytes]) -> tuple[Order, int]:
  """A checked order in the queue, and how many are before it."""
  order = asking.order(
    asked, parts, session=session, places=page.store, queue=page.queue, editors=page.editors
  )
  try:
    return order, page.queue.add(order)
  except BaseException:
    order.remove()
    raise


def job_json(page: Page, order: Order) -> dict[str, Any]:
  """An order as clients see it."""
  return dict(
    id=order.id, state=order.state, position=page.queue.position(order), created=order.created,
    weights=order.asked['weights'], picture=order.asked['picture'],
    request=order.asked['request'], width=order.asked['width'], height=order.asked['height'],
    candidates=[_candidate(one) for one in order.candidates],
    progress=progress_json(order), notes=order.notes, error=order.error,
  )  # fmt: skip


def _candidate(one: Candidate) -> dict[str, Any]:
  return dataclasses.asdict(one) | dict(error=None)


def progress_json(order: Order) -> dict[str, Any] | None:
  """How far an order is that runs; None if it does not."""
  now = order.progress
  if now is None:
    return None
  return dict(
    candidate=now.candidate, region=now.region, regions=now.regions, step=now.step,
    steps=now.steps,
    preview=f'api/jobs/{order.id}/preview?v={order.version}' if now.looked else None,
  )  # fmt: skip


def order_of(request: Request) -> Order:
  return page_of(request).queue.get(session_of(request), request.path_params['id'])


async def jobs(request: Request) -> Response:
  page = page_of(request)
  found = page.queue.of(session_of(request))
  return JSONResponse(dict(jobs=[job_json(page, order) for order in found]))


async def job(request: Request) -> Response:
  return JSONResponse(job_json(page_of(request), order_of(request)))


async def cancel_job(request: Request) -> Response:
  page = page_of(request)
  await page.do(page.queue.cancel, order_of(request))
  return Response(status_code=204)


async def job_file(request: Request) -> Response:
  """The mask of a region, or that of its exemplar."""
  order, number = order_of(request), request.path_params['number']
  kind = dict(masks='mask', cuts='cutout').get(request.path_params['what'], '')
  regions = order.asked['regions']
  editor = page_of(request).editors.get(order.asked['weights'])
  if editor is None or number >= len(regions):
    raise Missing(f'the job has no region {number}')
  found = [regions[number].get(entry.name) for entry in editor.system.inputs_of(kind)]
  if not found or found[0] is None:
    raise Missing(f'region {number} of the job has no such mask')
  return FileResponse(order.folder / found[0], media_type='image/png', headers=FOREVER)


async def job_preview(request: Request) -> Response:
  page, order = page_of(request), order_of(request)
  now = order.progress
  if now is None or now.looked is None:
    raise Missing('there is no preview now')
  png = await page.do(now.looked)
  return Response(png, media_type='image/png', headers={'X-Frame': ','.join(map(str, now.frame))})


async def job_events(request: Request) -> Response:
  last = request.headers.get('last-event-id', '')
  seen = int(last) if last.isdecimal() else 0
  stream = events(page_of(request), order_of(request), seen)
  headers = {'Cache-Control': 'no-store', 'X-Accel-Buffering': 'no'}
  return StreamingResponse(stream, media_type='text/event-stream', headers=headers)


async def events(page: Page, order: Order, seen: int) -> AsyncIterator[str]:
  """The events of an order behind the first `seen` lasting ones, until it ends."""
  version, told, quiet = -1, None, 0.0
  while True:
    if version != order.version:
      version, ended = order.version, order.state in ENDED
      lasting = order.events()
      for number, (name, data) in enumerate(lasting[seen:], seen + 1):
        yield event(name, data, number)
      seen = max(seen, len(lasting))
      if ended:
        return
      name, data = order.state, progress_json(order)
      if name == 'waiting':
        data = dict(position=page.queue.position(order))
      if data is not None and (name, data) != told:
        told = name, data
        yield event(name, data)
      quiet = 0.0
    if page.closing:
      return
    await asyncio.sleep(2 * TICK)
    quiet += 2 * TICK
    if quiet >= QUIET:
      quiet = 0.0
      yield ': still here\n\n'


def event(name: str, data: Any, number: int | None = None) -> str:
  head = '' if number is None else f'id: {number}\n'
  return f'{head}event: {name}\ndata: {json.dumps(data)}\n\n'


# Results


def result_of(page: Page, session: str, name: Any) -> tuple[Order, int]:
  """The order and the number of a finished candidate of this session."""
  found = store.RESULT.fullmatch(name) if isinstance(name, str) else None
  if found is None:
    raise Missing(f'there is no result {name!r:.50}')
  order, index = page.queue.get(session, found[1]), int(found[2])
  if index >= len(order.candidates) or order.candidates[index].result is None:
    raise Missing(f'there is no result {name!r:.50}')
  return order, index


async def result(request: Request) -> Response:
  """A result's file, its recipe, a preview of it, or the picture of its words."""
  page, name = page_of(request), request.path_params['id']
  order, index = result_of(page, session_of(request), name)
  path, what = order.result(index), request.path_params.get('what', 'file')
  if what == 'file':
    return FileResponse(path, 200, FOREVER, 'image/png', filename=f'exedit-{name}.png')
  if what == 'recipe':
    place = images.recipe_path(path)
    return FileResponse(place, media_type='application/json', filename=f'exedit-{name}.json')
  if what == 'preview':
    return await preview(request, path, (order.asked['height'], order.asked['width']))
  place = Path(images.words_path(path))
  if what != 'words' or not place.exists():
    raise Missing('this result has no picture of its words: ask for it with show_words')
  return FileResponse(place, media_type='image/png')


ROUTES = [
  Route('/api/about', about),
  Route('/api/pictures', pictures),
  Route('/api/pictures', add_picture, methods=['POST']),
  Route('/api/pictures/{id}', remove_picture, methods=['DELETE']),
  Route('/api/pictures/{id}/file', picture_file),
  Route('/api/pictures/{id}/preview', picture_preview),
  Route('/api/masks', read_mask, methods=['POST']),
  Route('/api/select', select_object, methods=['POST']),
  Route('/api/frame', frame, methods=['POST']),
  Route('/api/jobs', jobs),
  Route('/api/jobs', add_job, methods=['POST']),
  Route('/api/jobs/{id}', job),
  Route('/api/jobs/{id}', cancel_job, methods=['DELETE']),
  Route('/api/jobs/{id}/events', job_events),
  Route('/api/jobs/{id}/preview', job_preview),
  Route('/api/jobs/{id}/{what:str}/{number:int}', job_file),
  Route('/api/results/{id}', result),
  Route('/api/results/{id}/{what}', result),
]
