"""Images to vectors: the networks that the metrics look through, from their publishers' files.

clip = features.load('clip_b32', 'openai/clip-vit-base-patch32')
vectors = clip(images.read(path) for path in paths)  # [n 512]
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, UInt8

from exedit import images
from exedit.evaluation import preprocess
from exedit.models import parameters
from exedit.models.clip import CLIPImageEncoder
from exedit.models.dino import DINO
from exedit.models.inception import DIM, SIZE, Inception
from exedit.models.lpips import LPIPS, SMALLEST
from exedit.runtime import devices
from exedit.runtime.errors import UserError
from exedit.runtime.parallel import in_parallel
from exedit.weights import digests, translate
from exedit.weights.layouts import published
from exedit.weights.layouts.published import Published, Recognised

Pixels = UInt8[np.ndarray, 'h w 3']


Prepared = Float[np.ndarray, 's s 3']


# What to get for each name.
NEEDED = {
  'clip_b32': (
    "OpenAI's CLIP ViT-B/32: the folder or hub id openai/clip-vit-base-patch32, or ViT-B-32.pt"
  ),
  'inception': (
    'pt_inception-2015-12-05-6726825d.pth, from the release fid_weights of mseitzer/pytorch-fid'
  ),
  'dino_s16': (
    'DINO ViT-S/16: the folder or hub id facebook/dino-vits16, or dino_deitsmall16_pretrain.pth'
  ),
  'lpips_alex': (
    "a folder with torchvision's alexnet-owt-7be5be79.pth and the file weights/v0.1/alex.pth of the"
    ' pip package lpips'
  ),
  'lpips_vgg': (
    "a folder with torchvision's vgg16-397923af.pth and the file weights/v0.1/vgg.pth of the pip"
    ' package lpips'
  ),
}


@dataclasses.dataclass(frozen=True)
class Features:
  """A network with its weights, and how it is shown an image.

  `features(pictures)` takes uint8 [h w 3] of any sizes and gives float32 [n dim]; one image's
  vector does not depend on the others', nor on how many devices share them out. `prepare` is the
  network's own preprocessing; `embed` and `stream` take images that were prepared in another way
  (see preprocess.py). Batch sizes are those of one device.
  """

  name: str  # for the names of metrics: fid_<name>
  dim: int
  size: int  # pixels a side of a prepared image
  digest: str  # SHA-256 of the weight files
  prepare: Callable[[Pixels], Prepared]
  batch: Callable[[Any], Any]  # [b size size 3] -> [b dim] on the devices, compiled once per b
  devices: int = 1  # that share out b

  def __call__(self, pictures: Iterable[Pixels], batch_size: int = 32) -> Float[np.ndarray, 'n d']:
    return self.embed(in_parallel(self.prepare, pictures), batch_size)

  def embed(self, prepared: Iterable[Prepared], batch_size: int = 32) -> Float[np.ndarray, 'n d']:
    """The vectors of prepared images, [0 dim] where there are none."""
    return np.concatenate([np.zeros((0, self.dim), np.float32), *self.stream(prepared, batch_size)])

  def stream(
    self, prepared: Iterable[Prepared], batch_size: int = 32
  ) -> Iterator[Float[np.ndarray, 'b d']]:
    """The same in pieces as they are done; two batches are in memory at a time."""
    return run_batches(self.batch, ((image,) for image in prepared), batch_size, self.devices)


@dataclasses.dataclass(frozen=True)
class PerceptualDistance:
  """LPIPS with its weights: how different two pictures of one size look.

  `distance(pairs)` takes (a, b) uint8 [h w 3]; `distance.within(triples)` takes (a, b, region),
  region [h w] True where it counts, and averages LPIPS's map there. Both give float32 [n];
  `stream_within` gives it in pieces. Batch sizes are those of one device.
  """

  name: str
  smallest: int  # pixels a side
  digest: str
  batch: Callable[..., Any]
  batch_within: Callable[..., Any]
  devices: int = 1

  def __call__(
    self, pairs: Iterable[tuple[Pixels, Pixels]], batch_size: int = 16
  ) -> Float[np.ndarray, ' n']:
    return _together(self._stream(self.batch, ((a, b, None) for a, b in pairs), batch_size))

  def within(
    self, triples: Iterable[tuple[Pixels, Pixels, Bool[np.ndarray, 'h w']]], batch_size: int = 16
  ) -> Float[np.ndarray, ' n']:
    """The distance in a region. A change outside it shows as far as the network's view reaches."""
    return _together(self.stream_within(triples, batch_size))

  def stream_within(
    self, triples: Iterable[tuple[Pixels, Pixels, Bool[np.ndarray, 'h w']]], batch_size: int = 16
  ) -> Iterator[Float[np.ndarray, ' b']]:
    """`within` in pieces as they are done; two batches are in memory at a time."""
    return self._stream(self.batch_within, triples, batch_size)

  def _stream(self, batch, triples, batch_size):
    checked = (self._checked(*triple) for triple in triples)
    return run_batches(batch, checked, batch_size, self.devices)

  def _checked(self, a, b, region):
    if a.shape != b.shape or min(a.shape[:2]) < self.smallest:
      sizes = ' and '.join(f'{x.shape[1]} x {x.shape[0]}' for x in (a, b))
      raise UserError(
        f'{self.name} compares pictures of one size of at least {self.smallest} x {self.smallest}'
        f' pixels, not {sizes}'
      )
    a, b = images.from_uint8(a), images.from_uint8(b)
    if region is None:
      return a, b
    if region.shape != a.shape[:2] or not region.any():
      what = f'{region.shape[1]} x {region.shape[0]} pixels, {int(region.sum())} of them inside'
      raise UserError(
        f'{self.name} needs a region of the pictures that is not empty: they are {a.shape[1]} x'
        f' {a.shape[0]}, the region {what}'
      )
    return a, b, region


def _together(pieces):
  return np.concatenate([np.zeros(0, np.float32), *pieces])


class Family(NamedTuple):
  """How the networks of one kind are told apart and built."""

  recognise: Callable[[Published], Recognised]
  build: Callable[..., nnx.Module]
  usual: str  # whose weights to get where the name does not say


FAMILIES = {
  'clip': Family(published.clip, CLIPImageEncoder, 'clip_b32'),
  'dino': Family(published.dino_vit, DINO, 'dino_s16'),
  'inception': Family(published.fid_inception, Inception, 'inception'),
  'lpips': Family(published.lpips_net, LPIPS, 'lpips_alex'),
}


def load(name: str, path: str | os.PathLike) -> Features:
  """A feature network from a file, folder or hub id.

  name: a published network ('clip_b32', 'inception', 'dino_s16', ...), for which other weights are
  refused; or a family ('clip', 'dino'), of which the result's `name` says the network.
  Raises:
    UserError: for a name that is none, and for other weights, saying what to get.
  """
  model, network, digest = _open(name, path, ('clip', 'dino', 'inception'))
  settings = network.settings
  if isinstance(model, CLIPImageEncoder):
    dim, size = settings['dim'], model.vision.image_size
    prepare = functools.partial(preprocess.centre, size=size)
  elif isinstance(model, DINO):
    dim, size = model.width, model.image_size
    prepare = functools.partial(preprocess.centre, size=size, shorter=size * 8 // 7)  # 256 for 224
  else:
    dim, size = DIM, SIZE
    prepare = functools.partial(preprocess.stretch, size=size)
  batch = _compiled(model, '__call__')
  return Features(network.name, dim, size, digest, prepare, batch, jax.local_device_count())


def load_lpips(name: str, path: str | os.PathLike) -> PerceptualDistance:
  """LPIPS from a folder with its two files, or a file with all: 'lpips_alex', 'lpips_vgg', 'lpips'.

  Raises:
    UserError: as `load`.
  """
  model, network, digest = _open(name, path, ('lpips',))
  distance, within = _compiled(model, '__call__'), _compiled(model, 'within')
  devices = jax.local_device_count()
  return PerceptualDistance(network.name, SMALLEST[model.net], digest, distance, within, devices)


def needed(name: str) -> str:
  """What to get for a network, in words."""
  usual = FAMILIES[name].usual if name in FAMILIES else name
  return NEEDED.get(usual, f'the weights of {name} as their authors publish them')


def _open(name, path, families) -> tuple[Any, Recognised, str]:
  """(the network with its weights, what it was recognised as, the digest of its files)."""
  family = FAMILIES.get(name.split('_')[0])
  if family is None or name.split('_')[0] not in families:
    raise UserError(f'{name!r} is not a network that can be loaded: use one of {", ".join(NEEDED)}')
  try:
    found = published.find(path)
    network = family.recognise(found)
    if name not in (network.name, network.name.split('_')[0]):
      raise UserError(f'{path} is {network.name}, not {name}')
    build = lambda: family.build(**network.settings, rngs=parameters.Keys(jax.random.key(0)))
    graph, like = parameters.flatten(nnx.eval_shape(build))
    tensors = translate.to_ours(network.table, found.theirs, like, found.where)
    arrays = {ours: _float32(ours, tensor) for ours, tensor in tensors.items()}
  except UserError as error:
    raise UserError(f'{name} needs {needed(name)}; {error.args[0]}', error.listing) from error
  except ValueError as error:  # sizes that no network can have
    raise UserError(f'{name} needs {needed(name)}; {path}: {error}') from error
  return parameters.merge(graph, arrays), network, digests.together(found.files)


def _float32(name, tensor):
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise UserError(f'{name} holds {tensor.dtype} numbers; quantised weights cannot be used')
  return jnp.asarray(tensor.read(), jnp.float32)


def _compiled(model: nnx.Module, method: str) -> Callable[..., Any]:
  """A method of the network over this process's devices, in full float32 on any kind of them."""
  graph, params = parameters.flatten(model)

  def run(params, *arrays):
    with jax.default_matmul_precision('highest'):
      return getattr(parameters.merge(graph, params), method)(*arrays)

  return devices.over_devices(run, params, jax.local_devices())


def run_batches(
  batch: Callable[..., Any],
  examples: Iterable[tuple[np.ndarray, ...]],
  batch_size: int,
  devices: int = 1,
) -> Iterator[np.ndarray]:
  """`batch` over stacked rows; each piece is fetched while the next one computes.

  Rows of one shape go together, `batch_size` to a device. A batch that is not full is filled up
  with its last row, so that few sizes are compiled, and the surplus is cut off.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size}: at least 1')
  waiting, full = None, set()
  shape = lambda row: tuple(array.shape for array in row)
  for shapes, group in itertools.groupby(examples, shape):
    while chunk := list(itertools.islice(group, batch_size * devices)):
      count = len(chunk)
      each = 1 << (-(-count // devices) - 1).bit_length()
      each = batch_size if shapes in full else min(batch_size, each)
      if count == batch_size * devices:
        full.add(shapes)
      chunk += chunk[-1:] * (each * devices - count)
      result = batch(*(np.stack(arrays) for arrays in zip(*chunk)))
      if waiting is not None:
        yield np.asarray(waiting[0])[: waiting[1]]
      waiting = result, count
  if waiting is not None:
    yield np.asarray(waiting[0])[: waiting[1]]
