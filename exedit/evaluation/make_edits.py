"""The edits of a benchmark, made by weights: over devices and processes, and never made twice.

Edit `id` has the random numbers of (seed, id), so it depends on no batch, device, process or kill.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from exedit import images, systems
from exedit.editing import repaint, session
from exedit.evaluation.benchmark import Edit
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.runtime import files, parallel, progress
from exedit.runtime.errors import UserError
from exedit.weights.found import Weights

PER_DEVICE = 8
PICTURES, CLAIM = 'results', 'sampling.json'


def folder(output: str) -> str:
  """Where the pictures of an evaluation lie: {id:012d}.png, as the paper's own code leaves them."""
  return os.path.join(output, PICTURES)


# What a benchmark gives for an input of each kind.
GIVEN = dict(photo='source', mask='mask', picture='exemplar')


def edit_settings(found: Weights, **given: Any) -> dict[str, Any]:
  """Return the settings of `System.edit`: those given, else the weights' own, else the defaults.

  Raises:
    UserError: for a setting that is not allowed, and for a system that edits from other inputs than
      a benchmark has.
  """
  system = systems.of(found)
  others = [entry.name for entry in system.inputs if entry.required and entry.kind not in GIVEN]
  if others:
    raise UserError(
      f'{found.where} edits from {", ".join(others)}, but a benchmark has only'
      f' {", ".join(GIVEN.values())}: use weights of another system'
    )
  return systems.edit_settings(system, found.config, found.where, **given)


def to_record(found: Weights, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Return the settings that results name: the common ones, and others unless they are defaults."""
  fields = {field.name: field for field in dataclasses.fields(systems.of(found).settings)}
  return {
    name: value
    for name, value in settings.items()
    if name in ('steps', 'scale', 'sampler') or value != fields[name].default
  }


def arrays(system: systems.System, **given: Any) -> dict[str, Any]:
  """Return the arrays of `System.edit` by the system's names, from those of `GIVEN`."""
  return {entry.name: given[GIVEN[entry.kind]] for entry in system.inputs if entry.kind in GIVEN}


def claim(output: str, made_with: dict[str, Any]) -> None:
  """Note in the output what its pictures are made with: one process, before any of them is made.

  Raises:
    UserError: where there are pictures already that were made with something else.
  """
  path, pictures = os.path.join(output, CLAIM), folder(output)
  if os.path.exists(path):
    _compare(path, made_with)
  elif os.path.isdir(pictures) and os.listdir(pictures):
    raise UserError(
      f'{pictures} holds pictures and {output} no {CLAIM} that says what made them: name another'
      ' --output, or score them with --images'
    )
  else:
    os.makedirs(pictures, exist_ok=True)
    files.write_json(path, made_with)
  for name in os.listdir(pictures):  # what a killed run left half-written
    if re.fullmatch(r'\d+\.png\.\d+\.\d+\.tmp', name):
      os.remove(os.path.join(pictures, name))


def _compare(path, made_with):
  try:
    with open(path, encoding='utf-8') as file:
      before = json.load(file)
    known = dict(before)
  except (OSError, ValueError, TypeError):
    raise UserError(f'{path} cannot be read: name another --output') from None
  for name, value in json.loads(json.dumps(made_with)).items():
    if known.get(name) != value:
      raise UserError(
        f'{os.path.dirname(path)} holds edits made with {name} {known.get(name)!r}, now it is'
        f' {value!r}: name another --output, for they are not mixed'
      )


def sample(
  found: Weights,
  bench: Bench,
  edits: Sequence[Edit],
  output: str,
  *,
  seed: int,
  batch_size: int | None,
  precision: str | None,
  paste: bool,
  say: Callable[[str], None] = print,
  **settings: Any,
) -> int:
  """Make the pictures of these edits that `folder(output)` has not; returns how many this process.

  Args:
    bench: where they are read; its exemplars at the size that the weights see.
    batch_size: over this process's devices; None: 8 a device.
    paste: keep the source's own bytes where the mask is below 128; else the raw decode.
    settings: steps, scale and sampler of `edit`.
  Raises:
    UserError: for a result that is not finite.
  """
  index, count = jax.process_index(), jax.process_count()
  there = set(os.listdir(folder(output)))
  ours = edits[index::count]
  left = [edit for edit in ours if edit.name not in there]
  if not left:
    return 0
  devices, rows, notes = session.share_out(batch_size, PER_DEVICE, len(ours))
  for note in notes:
    say(note)
  model: Any = systems.load(found, dtype=precision)
  program = repaint.program(model, devices)
  # As many rows whatever is left of a group: what a killed run left goes through the same program.
  groups = {size: [e for e in ours if e.size == size] for size in {e.size for e in ours}}
  sized = {size: min(rows, -(-len(g) // len(devices)) * len(devices)) for size, g in groups.items()}
  batches = [
    (group[i : i + sized[size]], sized[size])
    for size in sorted(groups)
    for group in [[edit for edit in left if edit.size == size]]
    for i in range(0, len(group), sized[size])
  ]

  def start(loaded, rows):
    return _start(loaded, rows, program, seed, model.multiple(), settings)

  def write(edit, loaded, raw):
    pixels = finished(raw, loaded['source'], loaded['mask'], paste, edit.name)
    images.save(pixels, os.path.join(folder(output), edit.name))

  before = len(ours) - len(left)
  bar = progress.bar(what='edits', initial=before, total=len(ours), unit='edit', process=index)
  with bar, session.workers() as pool:
    for made in _run(batches, bench, start, write, pool):
      bar.update(made)
  return len(left)


def keys(seed: int, ids: Sequence[int]) -> Key[Array, ' n']:
  """One key per edit, a function of (seed, id); an id may have 63 bits."""
  wide = np.asarray(ids, np.uint64)
  high, low = (np.uint32(part) for part in (wide >> np.uint64(32), wide & np.uint64(2**32 - 1)))
  own = lambda h, l: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), h), l)
  return jax.vmap(own)(jnp.asarray(high), jnp.asarray(low))


def finished(
  raw: np.ndarray, source: UInt8[np.ndarray, 'h w 3'], mask: np.ndarray, paste: bool, name: str
) -> UInt8[np.ndarray, 'h w 3']:
  """The picture to save; UserError for a result that is not finite."""
  if not np.isfinite(raw).all():
    raise UserError(f'{name} is not written: the result is not finite; are the weights sound?')
  pixels = images.to_uint8(raw)
  return np.where(mask[..., None] >= 128, pixels, source) if paste else pixels


def _run(batches, bench, start, write, pool: Executor) -> Iterator[int]:
  """Each batch's count once its files are written, while the device works on the next."""
  todo = [edit.position for edits, _ in batches for edit in edits]
  depth = 2 * max(rows for _, rows in batches)
  read = parallel.ahead(pool, bench.__getitem__, todo, depth)
  waiting = None
  for edits, rows in batches:
    loaded = list(islice(read, len(edits)))
    if bad := [item for item in loaded if isinstance(item, str)]:
      raise UserError(bad[0])
    started = edits, loaded, start(loaded, rows)
    if waiting is not None:
      yield _written(pool, write, *waiting)
    waiting = started
  if waiting is not None:
    yield _written(pool, write, *waiting)


def _written(pool, write, edits, loaded, raw):
  writing: list[Future] = [
    pool.submit(write, edit, inputs, row[: edit.size[0], : edit.size[1]])
    for edit, inputs, row in zip(edits, loaded, np.asarray(raw))
  ]
  for future in writing:
    future.result()
  return len(edits)


def _start(loaded, rows, program, seed, multiple, settings):
  """Hand one batch to the device; its last edit fills the empty rows."""
  filled = [*loaded, *[loaded[-1]] * (rows - len(loaded))]
  pad = lambda arrays: np.stack([images.pad_to_multiple(a, multiple) for a in arrays])
  return program(
    pad(images.from_uint8(item['source']) for item in filled),
    pad(np.float32(item['mask'][..., None]) / np.float32(255) for item in filled),
    np.stack([images.from_uint8(item['exemplar']) for item in filled]),
    keys(seed, [item['id'] for item in filled]),
    **settings,
  )
