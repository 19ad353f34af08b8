"""Encodes photos once, so that a training reads latents instead of running the autoencoder.

  python -m exedit.encode --config=configs/pbe.py --config.init_from=W --config.data.root=DATA \
      --output=ENCODED
  python -m exedit.train --config=configs/pbe.py --config.init_from=W --config.data.root=ENCODED \
      --workdir=RUN

The price is variety: the training sees each photo in `--draws` fixed crops and masks instead of a
new one each time. Exemplars are still augmented anew. The same command continues an interrupted
encoding. Several processes share the shards.
"""

import jax
from absl import flags

from exedit.runtime import compilation, doors, processes
from exedit.runtime.errors import UserError
from exedit.training.encode_latents import encode


def define_flags() -> None:
  """Defines the flags of this door, except --config."""
  flags.DEFINE_string('output', None, 'folder to write the latents to')
  flags.DEFINE_integer('draws', 1, 'number of random crops and masks of each photo')
  flags.DEFINE_string('dtype', 'float16', 'number type of the moments: float16 or float32')
  flags.DEFINE_integer('batch_size', 16, 'number of examples that are encoded together')
  processes.define_flags()


def main(_: list[str]) -> None:
  """Encodes the photos of `--config` into `--output`."""
  values = flags.FLAGS
  if not values.config or not values.output:
    raise UserError('encode needs --config=configs/pbe.py (or another) and --output=DIR')
  processes.join_processes(**processes.place_flags(values))
  compilation.cache_compiled()
  with processes.ending_together():
    settings = dict(draws=values.draws, dtype=values.dtype, batch_size=values.batch_size)
    encode(values.config.to_dict(), values.output, **settings)
  if jax.process_index() == 0:
    print(f'train on it with --config.data.root={values.output}')


if __name__ == '__main__':
  doors.define_config('the settings, configs/pbe.py')
  define_flags()
  doors.run(main)
