"""Many edits through one compiled function: read ahead, batched, split over devices, written."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, UInt8

from exedit import images
from exedit import paint_by_example as pbe
from exedit.editing import edits, framing
from exedit.runtime.devices import everywhere, over_devices
from exedit.runtime.errors import UserError
from exedit.runtime.parallel import ahead

PER_COMPILATION = ('steps', 'scale', 'sampler', 'mask_resize')  # settings a program is made for


@dataclasses.dataclass(frozen=True)
class Originals:
  """The photo of one edit and its mask, in their own size."""

  photo: images.Photo
  mask: Bool[np.ndarray, 'h w']


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What the network sees of the files of one edit: little, however large they are."""

  source: Float[np.ndarray, 'sh sw 3']
  hole: Float[np.ndarray, 'sh sw 1']
  exemplar: Float[np.ndarray, 's s 3']


@dataclasses.dataclass(frozen=True)
class Result:
  """The network's answer to one job, at the size that the network worked at."""

  job: edits.Job
  raw: Float[np.ndarray, 'sh sw 3']
  rows: int  # of the batch it was in


@dataclasses.dataclass(frozen=True)
class Batch:
  """Jobs that go through one compiled function together, filled up to so many rows."""

  jobs: tuple[edits.Job, ...]
  rows: int


def originals(job: edits.Job) -> Originals:
  """Decode the photo and the mask of one job; UserError where one is damaged."""
  edit = job.edit
  photo, mask = images.read_photo(edit.image), images.read_mask(edit.mask)
  images.check_size_of_mask(edit.mask, mask.shape, photo.rgb.shape[:2])
  return Originals(photo, mask)


def see(job: edits.Job, own: Originals, exemplar_size: int) -> Inputs:
  """What the network sees; UserError where the exemplar or its mask is damaged."""
  edit = job.edit
  exemplar, subject = images.read(edit.exemplar), None
  if edit.exemplar_mask is not None:
    subject = images.read_mask(edit.exemplar_mask, 'subject of the exemplar')
    images.check_size_of_mask(edit.exemplar_mask, subject.shape, exemplar.shape[:2], 'exemplar')
  return Inputs(
    source=framing.cut(job.frame, own.photo.rgb),
    hole=framing.cut_mask(job.frame, own.mask),
    exemplar=framing.fit_exemplar(exemplar, subject, exemplar_size, edit.settings.exemplar_fit),
  )


def pixels(result: Result, own: Originals) -> UInt8[np.ndarray, 'h w c']:
  """The output's pixels: the result inside the mask, the file's own bytes outside it.

  A photo with transparency keeps it where the output's format can, and what was repainted is
  opaque. Without `paste` the whole window is the network's.

  Raises:
    UserError: for a result that is not finite.
  """
  job, settings = result.job, result.job.edit.settings
  if not np.isfinite(result.raw).all():
    raise UserError(
      f'{job.edit.output} is not written: the result is not finite; are the weights sound?'
    )
  painted, feather, match = own.mask, settings.feather, settings.match
  if not settings.paste:
    painted, feather, match = np.zeros_like(own.mask), 0.0, 'none'
    painted[job.frame.top : job.frame.bottom, job.frame.left : job.frame.right] = True
  rgb = framing.stitch(job.frame, result.raw, own.photo.rgb, painted, feather=feather, match=match)
  rgba = own.photo.rgba
  if rgba is None or not images.holds_alpha(job.edit.output):
    return rgb
  opaque = np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], -1)
  return np.where(painted[..., None], opaque, rgba)


def groups(jobs: Iterable[edits.Job], multiple: int) -> dict[tuple, list[edits.Job]]:
  """The jobs that share a compiled function: one working size, grown to multiples, and settings."""
  found: dict[tuple, list[edits.Job]] = {}
  for job in jobs:
    size = tuple(side + -side % multiple for side in job.frame.size)
    settings = job.edit.settings
    key = (size, *(getattr(settings, name) for name in PER_COMPILATION))
    found.setdefault(key, []).append(job)
  return found


def batches(
  grouped: Mapping[tuple, Sequence[edits.Job]],
  size: int,
  devices: int = 1,
  wanted: Callable[[edits.Job], bool] = lambda job: True,
) -> list[Batch]:
  """The wanted jobs of each group in batches of `size`, or of the whole group where it is smaller.

  Both are made multiples of `devices`. How many rows a batch has does not depend on what is wanted,
  so what is left of an interrupted list goes through the same program as the whole.
  """
  found = []
  for jobs in grouped.values():
    rows = min(size, len(jobs) + -len(jobs) % devices)
    left = [job for job in jobs if wanted(job)]
    found += [Batch(tuple(left[i : i + rows]), rows) for i in range(0, len(left), rows)]
  return found


def program(model: pbe.PaintByExample, devices: Sequence[Any]) -> Callable[..., jax.Array]:
  """`edit` without pasting, for arrays of as many rows as the devices share out evenly.

  The result does not depend on the number of devices, only on the rows of each (`over_devices`).
  """
  if len(devices) == 1:
    return lambda *arrays, **settings: pbe.edit(
      model, *map(jnp.asarray, arrays), **settings, paste=False
    )
  graphdef, params = nnx.split(model)
  params = everywhere(params, devices)

  @functools.cache
  def compiled(**settings):
    def share(params, *arrays):
      return pbe.edit(nnx.merge(graphdef, params), *arrays, **settings, paste=False)

    return over_devices(share, params, devices)

  return lambda *arrays, **settings: compiled(**settings)(*arrays)


def run(
  work: Sequence[Batch],
  edit: Callable[..., jax.Array],
  read: Callable[[edits.Job], Inputs],
  pool: Executor,
  *,
  multiple: int,
  bad: Callable[[edits.Job, str], Any],
) -> Iterator[list[Result]]:
  """The results of each batch, while the files of the next are decoded and the device goes on.

  Each edit has the random numbers of `edit` with the key of its own seed, so it does not depend on
  its neighbours. What cannot be decoded goes to `bad` and is left out.
  """
  depth = 2 * max((batch.rows for batch in work), default=1)
  inputs = ahead(pool, read, [job for batch in work for job in batch.jobs], depth)
  waiting = None
  for batch in work:
    ready = []
    for job, found in zip(batch.jobs, inputs):
      if isinstance(found, str):
        bad(job, found)
      else:
        ready.append((job, found))
    started = (
      ([job for job, _ in ready], start(ready, batch.rows, edit, multiple)) if ready else None
    )
    if waiting is not None:
      yield _arrived(*waiting)
    waiting = started
  if waiting is not None:
    yield _arrived(*waiting)


def start(
  ready: Sequence[tuple[edits.Job, Inputs]],
  rows: int,
  edit: Callable[..., jax.Array],
  multiple: int,
) -> jax.Array:
  """Hand one batch to the device without waiting for it; the last edit fills the empty rows."""
  filled = [*ready, *[ready[-1]] * (rows - len(ready))]
  stack = lambda arrays: np.stack([images.pad_to_multiple(a, multiple) for a in arrays])
  keys = jnp.stack([own_key(job.edit.settings.seed) for job, _ in filled])
  settings = filled[0][0].edit.settings
  return edit(
    stack(inputs.source for _, inputs in filled),
    stack(inputs.hole for _, inputs in filled),
    np.stack([inputs.exemplar for _, inputs in filled]),
    keys,
    **{name: getattr(settings, name) for name in PER_COMPILATION},
  )


def own_key(seed: int) -> jax.Array:
  """The key with which `edit` makes the first image of `jax.random.key(seed)`."""
  return jax.random.fold_in(jax.random.key(seed), 0)


def _arrived(jobs, raw) -> list[Result]:
  raw = np.asarray(raw)
  return [
    Result(job, row[: job.frame.size[0], : job.frame.size[1]], len(raw))
    for job, row in zip(jobs, raw)
  ]
