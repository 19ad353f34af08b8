r"""Image files in, edited image files out.

  python -m exedit.sample --weights=weights/tiny --image=street.jpg --mask=hole.png \
      --exemplar=bulldog.jpg --output=out.png

White in the mask is repainted with the exemplar's subject; every other pixel keeps its own bytes.
"""

import contextlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from exedit import doors, images
from exedit import paint_by_example as pbe
from exedit.errors import UserError
from exedit.training import runtime
from exedit.weights import folder

FILES = dict(
  weights='folder of a training run, or an exported one such as weights/tiny',
  image='photo to edit',
  mask='mask of the size of the photo, white where it is to be repainted',
  exemplar='picture of the subject to put there',
  output='file to write',
)
LONGEST = 4  # times the shorter side: beyond it the network sees nothing that it was trained on


def sample(
  weights: str,
  image: str,
  mask: str,
  exemplar: str,
  output: str,
  *,
  steps: int | None = None,
  scale: float | None = None,
  sampler: str | None = None,
  seed: int = 0,
  num_samples: int = 1,
  paste: bool = True,
  mask_resize: str = 'bilinear',
  say: Callable[[str], None] = print,
) -> list[str]:
  """Edit one image file `num_samples` times, with the seeds seed, seed + 1, ...; returns the paths.

  The network works on a copy whose shorter side is the one it was trained at; inside the mask the
  result is scaled back to the photo's size, outside it nothing is touched. `steps`, `scale` and
  `sampler` are the weights' own where None. Every sample is an edit by itself, so it does not
  depend on how many were asked for; at the trained size it is `paint_by_example.edit` with
  `key=jax.random.key(seed)`.

  Raises:
    UserError: for any input that the person can mend, before anything is written.
  """
  outputs = output_paths(output, num_samples)
  _keep_inputs(outputs, (image, mask, exemplar))
  source = images.load(image)
  hole = images.load_mask(mask, like=source)
  subject, profile = images.load(exemplar), images.read_icc(image)
  config = folder.read_config(weights)
  height, width = source.shape[1:3]
  size = working_size(image, (height, width), doors.trained_on(config, 'size'))
  settings = doors.edit_settings(config, steps=steps, scale=scale, sampler=sampler)
  for line in notes(hole, outputs, (height, width), size, paste):
    say(f'note: {line}')
  model = pbe.load(weights)
  small = jnp.asarray(images.resize(source, *size)), jnp.asarray(images.resize_mask(hole, *size))
  for i, path in enumerate(outputs):
    begin = time.perf_counter()
    with ticking(f'{path}  seed {seed + i}'):
      key = jax.random.key(seed + i)
      raw = pbe.edit(model, *small, subject, key, **settings, mask_resize=mask_resize, paste=False)
      raw = np.asarray(raw)
    if not np.isfinite(raw).all():
      raise UserError(f'{path} is not written: the result is not finite; is {weights} sound?')
    result = images.resize(raw, height, width)
    result = images.paste(result, source, hole) if paste else result
    images.save(result, path, icc_profile=profile)
    first = ' with compiling' if i == 0 else ''
    say(f'{path}  seed {seed + i}  {time.perf_counter() - begin:.1f} s{first}')
  return outputs


def _keep_inputs(outputs, inputs):
  for path in outputs:
    place = os.path.dirname(path) or '.'
    if not os.access(place, os.W_OK):
      raise UserError(f'{place} cannot be written to: choose another --output')
    for name in inputs:
      if os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name):
        raise UserError(f'--output {path} is also an input: choose another, so that it is kept')


def output_paths(output: str, num_samples: int) -> list[str]:
  """`out.png`, or `out-0.png`, ... for several; UserError where that cannot be written."""
  stem, ending = os.path.splitext(images.output_path(output))
  if num_samples == 1:
    return [stem + ending]
  return [images.output_path(f'{stem}-{i}{ending}') for i in range(num_samples)]


def working_size(path: str, size: tuple[int, int], trained: int) -> tuple[int, int]:
  """Height and width at which the network works: the shorter side is the trained one."""
  short, long = min(size), max(size)
  if long > LONGEST * short:
    raise UserError(
      f'{path} is {size[1]} x {size[0]} pixels, more than {LONGEST} times as long as wide: cut out'
      ' the part around the mask'
    )
  return round(size[0] * trained / short), round(size[1] * trained / short)


def notes(
  mask: np.ndarray | jax.Array,
  outputs: list[str],
  size: tuple[int, int],
  working: tuple[int, int],
  paste: bool,
) -> Iterator[str]:
  """What a person may want to know before waiting."""
  if mask.all():
    yield 'the mask is white everywhere: nothing of the photo is kept'
  if size != working:
    yield (
      f'the photo of {size[1]} x {size[0]} is repainted at {working[1]} x {working[0]}, near the'
      ' size these weights were trained at, and the hole scaled back'
    )
  if paste and outputs[0].lower().endswith(('.jpg', '.jpeg')):
    yield 'JPEG changes every pixel a little; a .png keeps the bytes outside the mask'


@contextlib.contextmanager
def ticking(text: str, every: float = 0.5) -> Iterator[None]:
  """On a terminal, the seconds that the work has taken so far."""
  out, done = sys.stdout, threading.Event()

  def tick():
    begin = time.perf_counter()
    while not done.wait(every):
      out.write(f'\r{text}  {time.perf_counter() - begin:.0f} s ')
      out.flush()
    out.write('\r\033[K')
    out.flush()

  thread = threading.Thread(target=tick, daemon=True)
  if out.isatty():
    thread.start()
  try:
    yield
  finally:
    done.set()
    if thread.is_alive():
      thread.join()


def define_flags() -> None:
  """The arguments of `sample`, as flags."""
  for name, what in FILES.items():
    flags.DEFINE_string(name, None, what, flags.FLAGS)
  own, values = "(default: the weights' own)", flags.FLAGS
  flags.DEFINE_integer('steps', None, f'denoising steps {own}', 1, 999, values)
  flags.DEFINE_float('scale', None, f'of guidance; 1 turns it off {own}', flag_values=values)
  flags.DEFINE_enum('sampler', None, sorted(pbe.SAMPLERS), own, values)
  flags.DEFINE_integer('seed', 0, 'of the first sample; the next has seed + 1', 0, 2**31, values)
  flags.DEFINE_integer('num_samples', 1, 'how many: out-0.png, out-1.png, ...', 1, None, values)
  flags.DEFINE_bool('paste', True, 'keep every pixel outside the mask', values)
  how = "the mask to the latents' size: as the original does, or as diffusers"
  flags.DEFINE_enum('mask_resize', 'bilinear', ['bilinear', 'nearest'], how, values)


def main(_: list[str]) -> None:
  """Open the door: files in, files out."""
  for name, what in FILES.items():
    if not flags.FLAGS[name].value:
      raise UserError(f'--{name} is missing: name the {what}')
  runtime.cache_compiled()
  names = [name for name in inspect.signature(sample).parameters if name != 'say']
  given: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
  sample(**given)


if __name__ == '__main__':
  define_flags()
  doors.run(main)
