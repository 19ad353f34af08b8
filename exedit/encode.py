"""Encodes photos once, so that a training reads latents instead of running the autoencoder.

  python -m exedit.encode --config=configs/pbe.py --config.init_from=W --config.data.root=DATA \
      --output=ENCODED
  python -m exedit.train --config=configs/pbe.py --config.init_from=W --config.data.root=ENCODED \
      --workdir=RUN

The price is variety: the training sees each photo in `--draws` fixed crops and masks instead of a
new one each time. Exemplars are still augmented anew. The same command continues an interrupted
encoding. Several processes share the shards.
"""

from collections.abc import Sequence
from typing import Any

from exedit.runtime import doors, place
from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError
from exedit.runtime.settings import training

FLAGS = (
  Flag('config', None, 'the settings, configs/pbe.py', 'config'),
  Flag('output', None, 'folder to write the latents to', str),
  Flag('draws', 1, 'number of random crops and masks of each photo', least=1),
  Flag('dtype', 'float16', 'number type of the moments', ['float16', 'float32']),
  Flag('batch_size', 16, 'number of examples that are encoded together', least=1),
  *place.FLAGS,
)


def main(config: Any, output: str | None, draws: int, dtype: str, batch_size: int, **place) -> None:
  """Encodes the photos of `--config` into `--output`."""
  if not config or not output:
    raise UserError('encode needs --config=configs/pbe.py (or another) and --output=DIR')
  import jax

  from exedit.runtime import compilation, processes
  from exedit.training.encode_latents import encode

  processes.join_processes(**place)
  compilation.cache_compiled()
  with processes.ending_together():
    encode(training(config), output, draws=draws, dtype=dtype, batch_size=batch_size)
  if jax.process_index() == 0:
    print(f'train on it with --config.data.root={output}')


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
