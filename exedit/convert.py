"""DOOR: weights from one layout into another, so that they can be handed on.

  python -m exedit.convert --from=/tmp/tiny --to=weights/mine
  python -m exedit.convert --from=model.ckpt --to=Paint-by-Example --layout=diffusers
  python -m exedit.convert --from=/mnt/run --to=mine.safetensors --layout=original --which=params

--from takes whatever `paint_by_example.load` takes, and nothing in it is executed. Every tensor is
moved to the bit, those that no computation uses too, unless --dtype asks for another type.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from exedit import paint_by_example as pbe
from exedit.runtime import doors
from exedit.runtime.errors import UserError
from exedit.weights import find, translate
from exedit.weights.formats.tensor import Tensor
from exedit.weights.layouts import original, own, pipeline

LAYOUTS = ('exedit', 'diffusers', 'original')
FLAGS = ('from', 'to', 'layout', 'which', 'dtype', 'revision', 'heads', 'groups')
TYPES = ('float32', 'float16', 'bfloat16')


def convert(
  src: str,
  to: str,
  *,
  layout: str = 'exedit',
  which: str = 'ema',
  dtype: str | None = None,
  revision: str | None = None,
  heads: int | None = None,
  groups: int | None = None,
  say: Callable[[str], None] = print,
) -> None:
  """Write the weights `src` to the new folder or file `to`, whole or not at all.

  layout: 'exedit' and 'diffusers' are folders, 'original' is one .safetensors. which: 'ema' or
  'params', where there are both. dtype: one of TYPES, None for as they are. revision: of a hub
  repository. heads, groups: of an original checkpoint that is not of the published size.
  Raises:
    UserError: where the weights cannot be used, the layout cannot hold them, or `to` is there.
  """
  target = Path(to)
  own.check_new(target)
  weights = find.weights(src, which, revision, heads=heads, groups=groups)
  for note in weights.notes:
    say(f'{weights.where}: {note}')
  config = dict(weights.config, model=dict(weights.config['model']))
  _, shapes = pbe.abstract(config['model'], weights.where)
  require_kl(config['model'], layout, weights.where)
  tensors = translate.cast(weights.fit(shapes), dtype)
  types = ', '.join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
  size = sum(_size(tensor) for tensor in tensors.values())
  with counted(tensors, size) as reading:
    if layout == 'exedit':
      log = Path(src) / 'metrics.jsonl'
      own.write(target, config, reading, step=weights.step, log=log)
    else:
      config['model'] = pbe.complete(config['model'])
      write = original.write if layout == 'original' else in_new_folder
      write(target, config, reading)
  say(f'{to}: {layout} layout, {len(tensors)} tensors, {size / 1e6:.1f} MB in {types}')


def require_kl(model: Mapping[str, Any], layout: str, where: str) -> None:
  """Only a model with the autoencoder of Stable Diffusion means anything to PyTorch's code."""
  vae = model.get('autoencoder', {})
  if layout != 'exedit' and vae.get('kind', 'kl') != 'kl':
    raise UserError(
      f"{where} has no autoencoder (kind '{vae['kind']}'), so the {layout} layout has no place for "
      'it: only --layout=exedit can hold it'
    )


def in_new_folder(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
  """The folder of a pipeline, under its name only when it is whole."""
  with own.whole(path) as half:
    pipeline.write(half, config, tensors)


@contextlib.contextmanager
def counted(tensors: Mapping[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
  """The same tensors behind a progress bar of the bytes that were read."""
  every = 0.1 if sys.stderr.isatty() else 10
  with tqdm(total=size, unit='B', unit_scale=True, desc='converting', mininterval=every) as bar:

    def read(tensor):
      array = tensor.read()
      bar.update(_size(tensor))
      return array

    yield {
      name: tensor._replace(read=lambda tensor=tensor: read(tensor))
      for name, tensor in tensors.items()
    }


def _size(tensor: Tensor) -> int:
  size = tensor.dtype.itemsize
  for n in tensor.shape:
    size *= n
  return size


def define_flags() -> None:
  """What to read, what to write."""
  values = flags.FLAGS
  what = 'run, exported or diffusers folder, .ckpt or .safetensors file, or the id of a hub'
  flags.DEFINE_string('from', None, what, values)
  flags.DEFINE_string('to', None, 'the folder, or the .safetensors of the original layout', values)
  flags.DEFINE_enum('layout', 'exedit', LAYOUTS, 'what to write', values)
  flags.DEFINE_enum('which', 'ema', ['ema', 'params'], 'moving average or last step', values)
  flags.DEFINE_enum('dtype', None, TYPES, 'what to store them in (default: as they are)', values)
  flags.DEFINE_string('revision', None, 'of the hub repository', values)
  how = "of an original checkpoint's UNet, which does not say (published: {})"
  flags.DEFINE_integer('heads', None, how.format(original.HEADS), 1, flag_values=values)
  flags.DEFINE_integer('groups', None, how.format(original.GROUPS), 1, flag_values=values)


def main(_: list[str]) -> None:
  """Open the door: weights in, the same weights in another layout out."""
  given: dict[str, Any] = {name: flags.FLAGS[name].value for name in FLAGS}
  for name in ('from', 'to'):
    if not given[name]:
      raise UserError(f'--{name} is missing: exedit.convert --from=WEIGHTS --to=NEW')
  convert(given.pop('from'), given.pop('to'), **given)


if __name__ == '__main__':
  define_flags()
  doors.run(main)
