"""What clients ask for: JSON and files that they send become the checked files of an order."""

import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from exedit import images
from exedit.editing import photo
from exedit.editing.settings import LARGEST_SEED
from exedit.page import store
from exedit.page.editor import Editor, defaults, network, plain
from exedit.page.orders import Order, Queue
from exedit.page.store import TEXTS, Store
from exedit.runtime import decode, files
from exedit.runtime.errors import UserError

REGIONS, SEEDS = 8, 16  # the most of one order
PNG = b'\x89PNG\r\n\x1a\n'
NAMES = ('weights', 'picture', 'regions', 'seeds', 'settings', 'preset')  # besides texts
QUICK = dict(sampler='dpm_solver_pp', spacing='leading', steps=12)


def presets(editor: Editor) -> dict[str, dict[str, Any]]:
  """Settings by the name of a preset: few steps of a fast sampler, or the weights' own."""
  own = defaults(editor)
  best = {name: own[name] for name in network(editor) if name in ('steps', 'sampler', 'scale')}
  quick = {name: value for name, value in QUICK.items() if name in own}
  return dict(quick=quick if 'sampler' in own else best, best=best)


def read_json(text: str | bytes) -> dict[str, Any]:
  """A JSON object; UserError if it is none."""
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise UserError('the request is no JSON object')
  return found


def editor_of(editors: Mapping[str, Editor], name: Any) -> Editor:
  """The editor of these weights; None: the first."""
  if name is None:
    return next(iter(editors.values()))
  if not isinstance(name, str) or name not in editors:
    raise UserError(f'weights is {name!r:.40}: use one of {", ".join(editors)}')
  return editors[name]


def order(
  request: dict[str, Any],
  parts: Mapping[str, bytes],
  *,
  session: str,
  places: Store,
  queue: Queue,
  editors: Mapping[str, Editor],
) -> Order:
  """A checked order with all its files; it is not yet in the queue.

  request: see docs/page.md, "For programs". parts: the files that came with it, by name.

  Raises:
    UserError: as `exedit.sample`; no file is left then.
  """
  editor = editor_of(editors, request.get('weights'))
  texts = [entry.name for entry in editor.system.inputs_of('text')]
  known = (*NAMES, *texts)
  for name in request:
    if name not in known:
      raise UserError(f'{name!r:.40} is not part of a job: its parts are {", ".join(known)}')
  seeds, regions = seeds_of(request.get('seeds')), _regions(request.get('regions'))
  settings = _settings(editor, request)
  folder, inputs, size = _photo(editor, request, session, places)
  files.require_space(places.sessions, store.FREE, 'or try again later')
  made = queue.new(session, folder, {}, seeds)
  try:
    found = [
      _region(editor, region, request, parts, made, number, inputs, places)
      for number, region in enumerate(regions)
    ]
    jobs = []
    for given in found:
      own = editor.inputs(given, folder) | settings | dict(seed=seeds[0])
      jobs.append(editor.check(own, made.path('0.png')))
      editor.check_seeds(jobs[-1], seeds)
    height, width = size or jobs[0].frame.size
    made.notes = [*dict.fromkeys(note for job in jobs for note in (*job.notes, *job.understood))]
    made.asked = dict(
      weights=editor.name, picture=request.get('picture'), regions=found, settings=settings,
      request=request, width=width, height=height,
    )  # fmt: skip
    return made
  except BaseException:
    made.remove()
    raise


def seeds_of(given: Any) -> list[int]:
  """The seeds of the candidates; one that is drawn if none are given."""
  if given is None:
    return [secrets.randbelow(LARGEST_SEED)]
  if not isinstance(given, list) or not 1 <= len(given) <= SEEDS:
    raise UserError(f'seeds must be a list of 1 to {SEEDS} whole numbers')
  for seed in given:
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
      raise UserError(f'seed is {seed!r:.40}: it must be between 0 and {LARGEST_SEED}')
  return given


def _regions(given: Any) -> list[dict[str, Any]]:
  given = [{}] if given is None else given
  good = isinstance(given, list) and 1 <= len(given) <= REGIONS
  if not good or not all(isinstance(region, dict) for region in given):
    raise UserError(f'regions must be a list of 1 to {REGIONS} objects')
  return given


def _settings(editor: Editor, request: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of the preset, and over them those given."""
  given, preset = request.get('settings') or {}, request.get('preset')
  if not isinstance(given, dict) or 'seed' in given:
    raise UserError('settings must be an object without seed: seeds is a list of its own')
  offered = presets(editor)
  if preset is not None and preset not in offered:
    raise UserError(f'preset is {preset!r:.40}: use one of {", ".join(offered)}')
  return {**offered.get(preset or '', {}), **{n: v for n, v in given.items() if v is not None}}


def _photo(editor, request, session, places):
  """The folder of the photo, its input by name, and its size; the folder of texts without one."""
  if request.get('picture') is None:
    folder = places.session(session) / TEXTS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder, {}, None
  record, path = places.picture(session, request['picture'])
  if editor.photo is None:
    raise UserError(f'{editor.name} takes no photo: leave it out')
  return path.parent, {editor.photo: path.name}, store.size_of(record)


def _region(editor, region, request, parts, made, number, photo_input, places):
  """The inputs of one region by name: texts, and names of files in the order's folder."""
  system, found = editor.system, dict(photo_input)
  known = [e.name for e in system.inputs if e.kind in ('text', 'mask', 'picture')]
  for name in region:
    if name not in known:
      raise UserError(f'{name!r:.40} is not part of a region: its parts are {", ".join(known)}')
  for entry in system.inputs_of('text'):
    text = region.get(entry.name, request.get(entry.name))
    if text is not None and not isinstance(text, str):
      raise UserError(f'{entry.name} is {text!r:.40}: it must be a text')
    if text:
      found[entry.name] = text
  for entry in system.inputs_of('mask'):
    if region.get(entry.name) is not None:
      path = made.path(f'mask-{number}.png')
      path.write_bytes(_part(parts, region[entry.name]))
      found[entry.name] = path.name
  for entry in system.inputs_of('picture'):
    if region.get(entry.name) is not None:
      cutouts = [e.name for e in system.inputs_of('cutout') if e.of == entry.name]
      given = (region[entry.name], parts, made, f'{entry.name}-{number}', places)
      found |= _exemplar(entry.name, cutouts, *given)
  return found


def _part(parts: Mapping[str, bytes], name: Any) -> bytes:
  """The mask in the part of this name."""
  if not isinstance(name, str) or name not in parts:
    raise UserError(f'there is no part {name!r:.40} with a mask: send it as a file of that name')
  if not parts[name].startswith(PNG):
    raise UserError(f'the part {name!r:.40} is no PNG file: send masks as PNG')
  return parts[name]


def _exemplar(name, cutouts, given, parts, made, stem, places) -> dict[str, str]:
  """The files of another picture: the file itself or a part of it, and the mask of its subject."""
  if not isinstance(given, dict):
    raise UserError(f'{name} is {given!r:.40}: it must be an object with a picture')
  record, path = places.picture(made.session, given.get('picture'))
  box = given.get('box')
  if box is None:
    place = made.path(f'{stem}{path.suffix}')
    store.link(path, place)
  else:
    box = checked_box(box, record)
    place = made.path(f'{stem}.png')
    store.upright(record, path).crop(box).save(place)
  found = {name: place.name}
  if given.get('mask') is not None and cutouts:
    place = made.path(f'{stem}-cut.png')
    place.write_bytes(_part(parts, given['mask']))
    if box is not None:
      whole = Image.fromarray(mask_of(place, store.size_of(record), of=name))
      whole.crop(box).save(place)
    found[cutouts[0]] = place.name
  return found


def checked_box(box: Any, record: Mapping[str, Any]) -> tuple[int, int, int, int]:
  """A box of whole pixels in a picture; UserError for one that leaves it, or is too small."""
  good = isinstance(box, list) and len(box) == 4
  good = good and all(type(n) in (int, float) and math.isfinite(n) for n in box)
  x0, y0, x1, y1 = (round(n) for n in box) if good else (0, 0, 0, 0)
  width, height, least = record['width'], record['height'], decode.SMALLEST_SIDE
  if not (0 <= x0 <= x1 - least and x1 <= width and 0 <= y0 <= y1 - least and y1 <= height):
    raise UserError(
      f'box is {box!r:.60}: it must be [left, top, right, bottom] in the picture of {width} x '
      f'{height}, of at least {least} x {least} pixels'
    )
  return x0, y0, x1, y1


def mask_of(
  path: Path, size: tuple[int, int], *, of: str | None = None, notes: list[str] | None = None
) -> Bool[np.ndarray, 'h w']:
  """What a mask file means for a picture of this (height, width); see `images.read_mask`.

  of: the name of the picture whose subject it shows; None: the photo. notes: gets what to tell.
  """
  say = (lambda line: None) if notes is None else notes.append
  try:
    return images.read_mask(path, size, of=of, scale=notes is not None, say=say)
  except UserError as error:
    raise UserError(plain(str(error), path.parent)) from None


def frame(editor: Editor, mask: Bool[np.ndarray, 'h w'], settings: Any) -> dict[str, Any]:
  """The window that the network would see of a photo with this mask, and its size there."""
  zoom = getattr(editor.session.settings(**(settings or {})), 'zoom', 'auto')
  found = photo.choose_frame(mask, editor.session.trained, zoom)
  return dict(
    x0=found.left, y0=found.top, x1=found.right, y1=found.bottom, width=found.size[1],
    height=found.size[0], repainted=float(mask.mean()),
  )  # fmt: skip


def from_result(places: Store, session: str, result: Path, name: str) -> dict[str, Any]:
  """A result as a new picture, to be edited further."""
  with places.new_picture(session) as (new, folder):
    given = folder / 'given'
    shutil.copyfile(result, given)
    return places.describe(new, folder, given, f'exedit-{name}.png', from_result=name)


def base_name(name: str) -> str:
  """The last part of a file's name, for people only; it never becomes a path."""
  name = os.path.basename(name.replace('\\', '/')).strip()
  return ''.join(c for c in name if c.isprintable())[:100] or 'picture'
