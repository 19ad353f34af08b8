"""DOOR: draw each photo's crop and mask once, and keep latents instead of pixels.

  python -m exedit.encode --config=configs/pbe.py --config.init_from=W --config.data.root=DATA \
      --output=ENCODED
  python -m exedit.train --config=configs/pbe.py --config.init_from=W --config.data.root=ENCODED \
      --workdir=RUN

A training on them runs no autoencoder. The price is variety: a photo is seen in `--draws` crops
with as many masks and not in a new one each time; exemplars are augmented anew as ever. The same
command goes on where it was stopped. Of several processes each encodes its share of the shards.
"""

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float
from tqdm import tqdm

from exedit import paint_by_example as pbe
from exedit.input_pipeline import latents as encoded
from exedit.input_pipeline import open_images, synthetic, tf_example, tfrecord
from exedit.input_pipeline.errors import DataError, Unusable
from exedit.models import parameters
from exedit.runtime import compilation, doors, files, processes, remote, settings
from exedit.runtime import devices as device_rows
from exedit.runtime.errors import UserError
from exedit.runtime.parallel import in_parallel
from exedit.training import latent_shards as latents


class Example(NamedTuple):
  """One draw of one photo: image uint8 [h w 3], mask uint8 [h w], the mask and exemplar as PNG."""

  image: np.ndarray
  mask: np.ndarray
  pictures: dict[str, bytes]
  name: bytes


def encode(
  config: Mapping[str, Any],
  output: str,
  *,
  draws: int = 1,
  dtype: str = 'float16',
  batch_size: int = 16,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Write the split `config.data.split` into the folder `output`, shard by shard.

  Args:
    config: of the training to come; its `init_from` names the autoencoder.
    draws: crops and masks of each photo. dtype: of the moments.
    batch_size: examples at a time, on all devices of this process together.
  Returns:
    What `encoded.json` holds.
  Raises:
    UserError: for settings that cannot be, weights or data that cannot be used, a folder that was
      encoded otherwise.
  """
  for name, value in (('draws', draws), ('batch_size', batch_size)):
    if value < 1:
      raise UserError(f'--{name} is {value}: it must be at least 1')
  if dtype not in encoded.DTYPES:
    raise UserError(f'--dtype is {dtype}: use one of {", ".join(encoded.DTYPES)}')
  data = config['data']
  root, split = data.get('root'), data.get('split', 'train')
  if root and encoded.manifest(root) is not None:
    raise UserError(f'{root} is encoded already: config.data.root must name the photos')
  with settings.mendable(config):
    open_images.check_settings(**latents.drawn(data))
  if not root:
    raise UserError('data.root is not set: give --config.data.root=DIR, the folder of the shards')
  with processes.together():
    if config.get('synthetic') and jax.process_index() == 0:
      synthetic.ensure(root, **config['synthetic'])
  shards = tfrecord.shard_paths(root, split)
  graph, params = latents.autoencoder(config)
  how = dict(
    split=split,
    source=tfrecord.Source(shards).digest(),
    settings=latents.drawn(data),
    seed=config.get('seed', 0) % 2**32,
    draws=draws,
    dtype=dtype,
    autoencoder=latents.identity(config['model'], params),
  )
  with processes.together():
    if jax.process_index() == 0:
      begin(output, how, root, say)
  there = json.loads(processes.everyone(json.dumps(sorted(shards_in(output))))[0])
  left = [path for path in shards if os.path.basename(path) not in there]
  if len(left) < len(shards) and jax.process_index() == 0:
    say(f'{len(shards) - len(left)} of {len(shards)} shards are there already')
  left = processes.own_share(left)
  devices = jax.local_devices()
  size = -(-batch_size // len(devices)) * len(devices)
  network = device_rows.over_devices(functools.partial(moments, graph), params, devices)
  sources = [tfrecord.Source([path]) for path in left]
  with tqdm(total=draws * sum(map(len, sources)), unit='example', mininterval=1) as bar:
    for path, source in zip(left, sources):
      for error in source.damaged:
        if data.get('on_corrupt') == 'fatal':
          raise error
        say(f'{error}; the rest of it is left out')
      examples = drawn(source, how, shards.index(path), say, bar.update)
      target = os.path.join(output, os.path.basename(path))
      tfrecord.write_shard(target, records(examples, network, size, dtype))
  processes.wait_for_others('encoded')
  return how


def begin(output: str, how: Mapping[str, Any], root: str, say: Callable[[str], None]) -> None:
  """Make the folder, or find that it was begun in the same way; the validation split goes along."""
  found = encoded.manifest(output)
  changed = settings.differences(found, dict(how)) if found else []
  if changed:
    raise UserError(
      f'{output} was begun with other settings: {", ".join(changed[:5])}; go on with the same, or '
      'name another folder'
    )
  if not remote.is_remote(output):
    os.makedirs(output, exist_ok=True)
  there = shards_in(output)
  if not found:
    if there:
      raise UserError(f'{output} holds files already: name an empty folder')
    path = os.path.join(output, encoded.MANIFEST)
    if remote.is_remote(path):
      remote.write(path, files.json_text(how).encode())
    else:
      files.write_json(path, how)
  if how['split'] == 'validation':
    return
  try:
    others = tfrecord.shard_paths(root, 'validation')
  except DataError as error:
    if 'no shards of split' not in str(error):
      raise
    others = []  # there will be no grids of edits
  for path in others:
    name = os.path.basename(path)
    if name not in there:
      tfrecord.write_shard(os.path.join(output, name), readable(tfrecord.Source([path]), say))


def readable(source: tfrecord.Source, say: Callable[[str], None]) -> Iterator[bytes]:
  """The records of a shard, without those that are damaged."""
  for i in range(len(source)):
    try:
      yield source[i]
    except DataError as error:
      say(f'{error}; left out')


def shards_in(folder: str) -> set[str]:
  """The names in a folder, here or in a store."""
  return set(remote.listing(folder) if remote.is_remote(folder) else os.listdir(folder))


def drawn(
  source: tfrecord.Source,
  how: Mapping[str, Any],
  shard: int,
  say: Callable[[str], None],
  done: Callable[[], Any],
) -> Iterator[Example]:
  """The draws of a shard's usable photos; draw k of photo i depends on (seed, shard, i, k)."""

  def make(i: int) -> list[Example] | str:
    try:
      features = tf_example.parse_example(source[i])
      found = (one(features, i, k) for k in range(how['draws']))
      return [example for example in found if example is not None]
    except DataError as error:
      return f'{error}; left out'

  def one(features: dict, i: int, k: int) -> Example | None:
    rng = np.random.default_rng([how['seed'], shard, i, k])
    try:
      made = open_images.make_example(features, rng, augment=False, **how['settings'])
    except Unusable:  # such a draw; another one may have found a box
      return None
    name = (features.get('image/filename') or [b''])[0]
    return Example(
      made['image'], made['mask'], encoded.pictures(made['mask'], made['exemplar']), name
    )

  cv2.setNumThreads(0)  # the parallelism is over photos
  for made in in_parallel(make, range(len(source))):
    if isinstance(made, str):
      say(made)
      made = []
    yield from made
    for _ in range(how['draws']):
      done()


def records(
  examples: Iterator[Example], network: Callable, size: int, dtype: str
) -> Iterator[bytes]:
  """The examples as records, their moments computed `size` at a time.

  While the devices compute those of one batch the next one is drawn.
  """
  waiting: list[tuple[list[Example], Any]] = []
  while batch := list(itertools.islice(examples, size)):
    full = [*batch, *[batch[-1]] * (size - len(batch))]
    found = network(np.stack([e.image for e in full]), np.stack([e.mask for e in full]))
    waiting.append((batch, found))
    if len(waiting) > 1:
      yield from finished(*waiting.pop(0), dtype)
  for batch, found in waiting:
    yield from finished(batch, found, dtype)


def finished(batch: list[Example], found: Array, dtype: str) -> Iterator[bytes]:
  """The records of a batch, whose last moments may be of none."""
  for example, moments in zip(batch, np.asarray(found).astype(dtype)):
    yield encoded.record(example.pictures, moments, example.name)


def moments(
  graph: parameters.Graph, params: Mapping[str, Array], image: Array, mask: Array
) -> Float[Array, 'b 2 lh lw m']:
  """Of the latents of images uint8 [b h w 3] and of the same with their holes, uint8 [b h w]."""
  hole = mask[..., None].astype(jnp.float32) / 255
  network: Any = parameters.merge(graph, params)
  return pbe.moments(network, pbe.as_signed(image), hole)


def define_flags() -> None:
  """The arguments of `encode`, and where this process belongs."""
  flags.DEFINE_string('output', None, 'the folder to write to')
  flags.DEFINE_integer('draws', 1, 'crops and masks of each photo')
  flags.DEFINE_string('dtype', 'float16', 'of the moments: float16 or float32')
  flags.DEFINE_integer('batch_size', 16, 'examples at a time')
  processes.define_flags()


def main(_: list[str]) -> None:
  """Open the door: shards of photos in, shards of latents out."""
  values = flags.FLAGS
  if not values.config or not values.output:
    raise UserError('encode needs --config=configs/pbe.py (or another) and --output=DIR')
  processes.join_processes(**processes.place_flags(values))
  compilation.cache_compiled()
  with processes.ending_together():
    how = dict(draws=values.draws, dtype=values.dtype, batch_size=values.batch_size)
    encode(values.config.to_dict(), values.output, **how)
  if jax.process_index() == 0:
    print(f'train on it with --config.data.root={values.output}')


if __name__ == '__main__':
  doors.define_config('the settings, configs/pbe.py')
  define_flags()
  doors.run(main)
