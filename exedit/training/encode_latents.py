"""Encodes photos into shards of latents: crops, masks, the encoder, the records."""

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
from jaxtyping import Array, Float

from exedit import systems
from exedit.input_pipeline import latent_shards, open_images, synthetic, tfds_data, tfrecord
from exedit.input_pipeline.errors import DataError, Unusable
from exedit.latent_diffusion import as_signed
from exedit.models import parameters
from exedit.runtime import devices as device_rows
from exedit.runtime import files, processes, progress, remote, settings
from exedit.runtime.errors import UserError
from exedit.runtime.parallel import in_parallel
from exedit.training import latent_encoder

LATER = ('augment', 'affine_jitter', 'blur_kernels')  # data settings that act on stored examples


class Example(NamedTuple):
  """One crop of a photo: image uint8 [h w 3], mask uint8 [h w], mask and exemplar as PNG."""

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
  """Writes the split `config.data.split` into the folder `output`, shard by shard.

  Args:
    config: of the training to come; its `init_from` names the weights with the autoencoder.
    draws: number of random crops and masks of each photo. dtype: of the moments.
    batch_size: examples that all devices of this process encode together.

  Returns:
    The content of `encoded.json`.

  Raises:
    UserError: for invalid settings, for weights or data that cannot be used, and if the folder was
      begun with other settings.
  """
  crops = check(config, draws, dtype, batch_size)
  root, split = config['data']['root'], config['data'].get('split', 'train')
  with processes.together():
    if jax.process_index() == 0:
      synthetic.provide(root, config.get('synthetic'))
  shards = tfrecord.shard_paths(root, split)
  graph, params = latent_encoder.load(config, crops['size'])
  how = dict(
    split=split,
    source=tfrecord.Source(shards).digest(),
    settings=crops,
    seed=config.get('seed', 0) % 2**32,
    draws=draws,
    dtype=dtype,
    autoencoder=latent_encoder.identity(config, params),
  )
  with processes.together():
    if jax.process_index() == 0:
      begin(output, how, root, say)
  there = json.loads(processes.everyone(json.dumps(sorted(remote.listing(output))))[0])
  left = [path for path in shards if os.path.basename(path) not in there]
  if len(left) < len(shards) and jax.process_index() == 0:
    say(f'{len(shards) - len(left)} of {len(shards)} shards are there already')
  devices = jax.local_devices()
  size = -(-batch_size // len(devices)) * len(devices)
  encoder = functools.partial(moments, systems.get(config['system']), graph)
  network = device_rows.over_devices(encoder, params, devices)
  fatal = config['data'].get('on_corrupt') == 'fatal'
  sources = {path: tfrecord.Source([path]) for path in processes.own_share(left)}
  with progress.bar(total=draws * sum(map(len, sources.values())), unit='example') as bar:
    for path, source in sources.items():
      report_damage(source, fatal, say)
      examples = cropped(source, how, shards.index(path), say, bar.update)
      target = os.path.join(output, os.path.basename(path))
      tfrecord.write_shard(target, records(examples, network, size, dtype))
  processes.wait_for_others('encoded')
  return how


def check(config: Mapping[str, Any], draws: int, dtype: str, batch_size: int) -> dict[str, Any]:
  """Checks the settings; returns those that decide crops and masks, with their defaults.

  Raises:
    UserError: for a setting that cannot be.
  """
  for name, value in (('draws', draws), ('batch_size', batch_size)):
    if value < 1:
      raise UserError(f'--{name} is {value}: it must be at least 1')
  if dtype not in latent_shards.DTYPES:
    raise UserError(f'--dtype is {dtype}: use one of {", ".join(latent_shards.DTYPES)}')
  data, system = config['data'], systems.get(config['system'])
  if system.moments is None:
    raise UserError(f'{system.name} does not train on latents: train it on the photos')
  known = system.data.defaults().items()
  crops = {name: data.get(name, value) for name, value in known if name not in LATER}
  open_images.check_settings(**crops)
  if not data.get('root'):
    raise UserError('data.root is not set: give --config.data.root=DIR, the folder of the shards')
  if latent_shards.manifest(data['root']) is not None:
    raise UserError(f'{data["root"]} is encoded already: config.data.root must name the photos')
  prepared = tfds_data.find(data['root'])
  if prepared and prepared.file_format != 'tfrecord':
    raise UserError(
      f'{prepared.folder} was prepared as {prepared.file_format}, and exedit.encode reads TFRecord '
      'shards only: train on the pictures, or prepare them as tfrecord'
    )
  return json.loads(json.dumps(crops))  # tuples as lists, as the manifest gives them


def begin(output: str, how: Mapping[str, Any], root: str, say: Callable[[str], None]) -> None:
  """Creates the folder with its manifest and the validation split, or checks that they fit.

  Raises:
    UserError: if the folder was begun with other settings, or holds other files.
  """
  found = latent_shards.manifest(output)
  changed = settings.differences(found, dict(how)) if found else []
  if changed:
    raise UserError(
      f'{output} was begun with other settings: {", ".join(changed[:5])}; go on with the same, or '
      'name another folder'
    )
  if not remote.is_remote(output):
    os.makedirs(output, exist_ok=True)
  if not found:
    if remote.listing(output):
      raise UserError(f'{output} holds files already: name an empty folder')
    with remote.writing(os.path.join(output, latent_shards.MANIFEST)) as file:
      file.write(files.json_text(how).encode())
  if not remote.is_remote(output):
    files.sweep(output, lambda name: tfrecord.SHARD.fullmatch(name) is not None, alone=True)
  if how['split'] != 'validation':
    copy_validation(root, output, say)


def copy_validation(root: str, output: str, say: Callable[[str], None]) -> None:
  """Copies the images of the validation split, which a training edits for its grids."""
  try:
    shards = tfrecord.shard_paths(root, 'validation')
  except DataError as error:
    if 'no shards of split' not in str(error):
      raise
    return
  there = remote.listing(output)
  for path in shards:
    name = os.path.basename(path)
    if name not in there:
      tfrecord.write_shard(os.path.join(output, name), readable(tfrecord.Source([path]), say))


def readable(source: tfrecord.Source, say: Callable[[str], None]) -> Iterator[bytes]:
  """Yields the records of a shard without those that are damaged."""
  for i in range(len(source)):
    try:
      yield source[i]
    except DataError as error:
      say(f'{error}; left out')


def report_damage(source: tfrecord.Source, fatal: bool, say: Callable[[str], None]) -> None:
  """Reports that a shard is truncated, or raises the error if that is fatal."""
  for error in source.damaged:
    if fatal:
      raise error
    say(f'{error}; the rest of it is left out')


def cropped(
  source: tfrecord.Source,
  how: Mapping[str, Any],
  shard: int,
  say: Callable[[str], None],
  done: Callable[[], Any],
) -> Iterator[Example]:
  """Yields the crops of a shard's usable photos; crop k of photo i depends on (seed, shard, i, k).

  say: called with a line for each damaged photo. done: called once per crop, also if it is missing.
  """

  def make(i: int) -> list[Example] | str:
    try:
      features = tfds_data.features(source[i])
      found = (one(features, i, k) for k in range(how['draws']))
      return [example for example in found if example is not None]
    except DataError as error:
      return f'{error}; left out'

  def one(features: dict, i: int, k: int) -> Example | None:
    rng = np.random.default_rng([how['seed'], shard, i, k])
    try:
      made = open_images.make_example(features, rng, augment=False, **how['settings'])
    except Unusable:  # another crop may still find a box
      return None
    name = (features.get('image/filename') or [b''])[0]
    pictures = latent_shards.pictures(made['mask'], made['exemplar'])
    return Example(made['image'], made['mask'], pictures, name)

  cv2.setNumThreads(0)  # the photos are processed in parallel
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
  """Yields the examples as records; the network computes the moments of `size` examples at once.

  While the devices compute one batch, the next one is cropped.
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
  """Yields the records of a batch; the rows beyond it are padding."""
  for example, row in zip(batch, np.asarray(found).astype(dtype)):
    yield latent_shards.record(example.pictures, row, example.name)


def moments(
  system: systems.System,
  graph: parameters.Graph,
  params: Mapping[str, Array],
  image: Array,
  mask: Array,
) -> Float[Array, 'b 2 lh lw m']:
  """Computes the moments of images uint8 [b h w 3] and of the same images with holes [b h w]."""
  hole = mask[..., None].astype(jnp.float32) / 255
  assert system.moments is not None  # `check` refuses other systems
  return system.moments(parameters.merge(graph, params), as_signed(image), hole)
