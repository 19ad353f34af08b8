"""The feature networks of the metrics: images in, vectors out, from the publishers' weight files.

clip = networks.load('clip_b32', 'openai/clip-vit-base-patch32')
vectors = clip(images.read(path) for path in paths)  # [n 512]
"""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from exedit import images
from exedit.evaluation import preprocessing
from exedit.input_pipeline import tokenizer
from exedit.models import parameters
from exedit.models.clip import CLIPImageEncoder
from exedit.models.clip_text import CLIPTextEncoder
from exedit.models.dino import DINO
from exedit.models.inception import DIM, SIZE, Inception
from exedit.models.lpips import LPIPS, SMALLEST
from exedit.runtime import devices
from exedit.runtime.errors import UserError
from exedit.runtime.parallel import in_parallel
from exedit.weights import digests, fetch, translate
from exedit.weights.layouts import published
from exedit.weights.layouts.published import Published, Recognised

Pixels = UInt8[np.ndarray, 'h w 3']
Prepared = Float[np.ndarray, 's s 3']

# Which files the user needs for each network.
NEEDED = {
  'clip_b32': "OpenAI's CLIP ViT-B/32: the folder or hub id openai/clip-vit-base-patch32",
  'clip_l14': "OpenAI's CLIP ViT-L/14: the folder or hub id openai/clip-vit-large-patch14",
  'inception': (
    'pt_inception-2015-12-05-6726825d.pth, from the release fid_weights of mseitzer/pytorch-fid'
  ),
  'dino_s16': (
    'DINO ViT-S/16: the folder or hub id facebook/dino-vits16, or dino_deitsmall16_pretrain.pth'
  ),
  'dino_b8': (
    'DINO ViT-B/8: the folder or hub id facebook/dino-vitb8, or dino_vitbase8_pretrain.pth'
  ),
  'lpips_alex': (
    "a folder with torchvision's alexnet-owt-7be5be79.pth and the file weights/v0.1/alex.pth of the"
    ' pip package lpips'
  ),
  'lpips_vgg': (
    "a folder with torchvision's vgg16-397923af.pth and the file weights/v0.1/vgg.pth of the pip"
    ' package lpips'
  ),
  'lpips_squeeze': (
    "a folder with torchvision's squeezenet1_1-b8a52dc0.pth and the file weights/v0.1/squeeze.pth"
    ' of the pip package lpips'
  ),
}


@dataclasses.dataclass(frozen=True)
class Features:
  """A network with its weights and its preprocessing.

  `features(pictures)` takes uint8 [h w 3] of any sizes and returns float32 [n dim]. The vector of
  an image depends neither on the other images nor on the number of devices. `prepare` is the
  network's own preprocessing. `embed` and `stream` take images that are already prepared, for
  example by another function of `preprocessing`. Batch sizes are per device.
  """

  name: str  # as it appears in the names of metrics: fid_<name>
  dim: int
  size: int  # side of a prepared image in pixels
  digest: str  # SHA-256 of the weight files
  prepare: Callable[[Pixels], Prepared]
  batch: Callable[[Any], Any]  # [b size size 3] -> [b dim] on the devices, compiled once per b
  devices: int = 1  # the devices that share a batch

  def __call__(self, pictures: Iterable[Pixels], batch_size: int = 32) -> Float[np.ndarray, 'n d']:
    return self.embed(in_parallel(self.prepare, pictures), batch_size)

  def embed(self, prepared: Iterable[Prepared], batch_size: int = 32) -> Float[np.ndarray, 'n d']:
    """Compute the vectors of prepared images; [0 dim] without images."""
    return np.concatenate([np.zeros((0, self.dim), np.float32), *self.stream(prepared, batch_size)])

  def stream(
    self, prepared: Iterable[Prepared], batch_size: int = 32
  ) -> Iterator[Float[np.ndarray, 'b d']]:
    """Yield the vectors batch by batch; two batches are in memory at a time."""
    return run_batches(self.batch, ((image,) for image in prepared), batch_size, self.devices)


@dataclasses.dataclass(frozen=True)
class PerceptualDistance:
  """LPIPS with its weights: the perceptual distance of two pictures of one size.

  `distance(pairs)` takes (a, b), each uint8 [h w 3], and returns float32 [n]. Batch sizes are per
  device.
  """

  name: str
  smallest: int  # least side of a picture in pixels
  digest: str
  batch: Callable[..., Any]
  batch_within: Callable[..., Any]
  devices: int = 1

  def __call__(
    self, pairs: Iterable[tuple[Pixels, Pixels]], batch_size: int = 16
  ) -> Float[np.ndarray, ' n']:
    return np.concatenate([np.zeros(0, np.float32), *self.stream(pairs, batch_size)])

  def stream(
    self, pairs: Iterable[tuple[Pixels, Pixels]], batch_size: int = 16
  ) -> Iterator[Float[np.ndarray, ' b']]:
    """Yield the distances batch by batch."""
    checked = (self._checked(a, b) for a, b in pairs)
    return run_batches(self.batch, checked, batch_size, self.devices)

  def within(
    self, triples: Iterable[tuple[Pixels, Pixels, Bool[np.ndarray, 'h w']]], batch_size: int = 16
  ) -> Iterator[Float[np.ndarray, ' b']]:
    """Yield the mean of LPIPS's map over the region where the mask is True, batch by batch.

    Every region must have a True pixel. A change outside the region counts as far as the network's
    receptive field reaches.
    """
    checked = ((*self._checked(a, b), region) for a, b, region in triples)
    return run_batches(self.batch_within, checked, batch_size, self.devices)

  def _checked(self, a, b):
    if a.shape != b.shape or min(a.shape[:2]) < self.smallest:
      sizes = ' and '.join(f'{x.shape[1]} x {x.shape[0]}' for x in (a, b))
      raise UserError(
        f'{self.name} compares pictures of one size of at least {self.smallest} x {self.smallest}'
        f' pixels, not {sizes}'
      )
    return images.from_uint8(a), images.from_uint8(b)


@dataclasses.dataclass(frozen=True)
class StructureDistance:
  """DINO with its weights, as the distance of two pictures' structure.

  `distance(pairs)` takes (a, b), each uint8 [h w 3], and returns float32 [n]. Batch sizes are per
  device.
  """

  name: str
  size: int  # side of a prepared image in pixels
  digest: str
  batch: Callable[..., Any]
  devices: int = 1

  def __call__(
    self, pairs: Iterable[tuple[Pixels, Pixels]], batch_size: int = 4
  ) -> Float[np.ndarray, ' n']:
    prepared = ((self.prepare(a), self.prepare(b)) for a, b in pairs)
    return np.concatenate([np.zeros(0, np.float32), *self.stream(prepared, batch_size)])

  def prepare(self, picture: Pixels) -> Prepared:
    """Return the picture as PnPInversion's code shows it to DINO: see `preprocessing.undivided`."""
    return preprocessing.undivided(picture, self.size)

  def stream(
    self, pairs: Iterable[tuple[Prepared, Prepared]], batch_size: int = 4
  ) -> Iterator[Float[np.ndarray, ' b']]:
    """Yield the distances of prepared pictures batch by batch."""
    return run_batches(self.batch, pairs, batch_size, self.devices)


@dataclasses.dataclass(frozen=True)
class Texts:
  """The text tower of a CLIP with its weights and its tokenizer.

  `texts(strings)` returns float32 [n dim], in the space of the same CLIP's image features.
  """

  name: str
  dim: int
  digest: str  # SHA-256 of the weight files and of the tokenizer's
  prepare: Callable[[str], Int[np.ndarray, ' n']]
  batch: Callable[..., Any]
  devices: int = 1

  def __call__(self, texts: Iterable[str], batch_size: int = 32) -> Float[np.ndarray, 'n d']:
    pieces = self.stream(map(self.prepare, texts), batch_size)
    return np.concatenate([np.zeros((0, self.dim), np.float32), *pieces])

  def stream(
    self, tokens: Iterable[Int[np.ndarray, ' n']], batch_size: int = 32
  ) -> Iterator[Float[np.ndarray, 'b d']]:
    """Yield the vectors of texts that `prepare` has spelt, batch by batch."""
    return run_batches(self.batch, ((ids,) for ids in tokens), batch_size, self.devices)


class Family(NamedTuple):
  """How to recognise and build the networks of one kind."""

  recognise: Callable[[Published], Recognised]
  build: Callable[..., nnx.Module]
  usual: str  # the network whose files to recommend if the user named only the family


FAMILIES = {
  'clip': Family(published.clip, CLIPImageEncoder, 'clip_b32'),
  'dino': Family(published.dino_vit, DINO, 'dino_s16'),
  'inception': Family(published.fid_inception, Inception, 'inception'),
  'lpips': Family(published.lpips_net, LPIPS, 'lpips_alex'),
}
TEXT = Family(published.clip_text, CLIPTextEncoder, 'clip_b32')


def load(name: str, path: str | os.PathLike) -> Features:
  """Load a feature network from a file, a folder or a hub id.

  Args:
    name: a published network ('clip_b32', 'inception', 'dino_s16', ...), which refuses other
      weights; or a family ('clip', 'dino'), which accepts any network of that family and names the
      result after it.
    path: the weights.
  Raises:
    UserError: for an unknown name or other weights; the message says which files to get.
  """
  model, network, digest = _open(name, path, ('clip', 'dino', 'inception'))
  if isinstance(model, CLIPImageEncoder):
    dim, size = network.settings['dim'], model.vision.image_size
    prepare = functools.partial(preprocessing.centre, size=size)
  elif isinstance(model, DINO):
    dim, size = model.width, model.image_size
    resized = size * 8 // 7  # 256 for 224
    prepare = functools.partial(preprocessing.centre, size=size, shorter=resized)
  else:
    dim, size = DIM, SIZE
    prepare = functools.partial(preprocessing.stretch, size=size)
  batch = _compiled(model, '__call__')
  return Features(network.name, dim, size, digest, prepare, batch, jax.local_device_count())


def load_lpips(name: str, path: str | os.PathLike) -> PerceptualDistance:
  """Load LPIPS ('lpips_alex', ...; or 'lpips', any) from a folder with its two files or one file.

  Raises:
    UserError: as `load`.
  """
  model, network, digest = _open(name, path, ('lpips',))
  distance, within = _compiled(model, '__call__'), _compiled(model, 'within')
  devices = jax.local_device_count()
  return PerceptualDistance(network.name, SMALLEST[model.net], digest, distance, within, devices)


def load_structure(name: str, path: str | os.PathLike) -> StructureDistance:
  """Load a DINO ('dino_b8', ...; or 'dino', any) as the distance of structures.

  Raises:
    UserError: as `load`.
  """
  model, network, digest = _open(name, path, ('dino',))
  distance = _compiled(model, 'structure_distance')
  return StructureDistance(
    network.name, model.image_size, digest, distance, jax.local_device_count()
  )


def load_texts(name: str, path: str | os.PathLike) -> Texts:
  """Load the text tower of a CLIP ('clip_b32', ...; or 'clip', any).

  Args:
    path: the folder or hub id of the whole CLIP, with its tokenizer's files; or a file in such a
      folder.
  Raises:
    UserError: as `load`, and for a folder without a tokenizer.
  """
  model, network, digest = _open(name, path, ('clip',), TEXT)
  folder = fetch.local_path(path)
  folder = folder if folder.is_dir() else folder.parent
  if not tokenizer.is_there(folder):
    raise UserError(
      f'{path} has no tokenizer: put vocab.json and merges.txt of {needed(name)} beside the weights'
    )
  spell = tokenizer.Tokenizer(folder, model.text.vocabulary, model.text.length)
  digest = hashlib.sha256(f'{digest} {tokenizer.digest(folder)}'.encode()).hexdigest()
  batch = _compiled(model, '__call__')
  return Texts(
    network.name, network.settings['dim'], digest, spell, batch, jax.local_device_count()
  )


def needed(name: str) -> str:
  """Say which files to get for a network."""
  usual = FAMILIES[name].usual if name in FAMILIES else name
  return NEEDED.get(usual, f'the weights of {name} as their authors publish them')


def _open(name, path, families, family=None) -> tuple[Any, Recognised, str]:
  """Return the network with its weights, what it was recognised as, and its files' digest."""
  family = family or FAMILIES.get(name.split('_')[0])
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
  """Compile a method of the network over this process's devices, in full float32."""
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
  """Apply `batch` to stacked examples; fetch each result while the next batch computes.

  Examples of one shape share a batch, `batch_size` per device. The last example fills a batch that
  is not full, so that only a few sizes are compiled; the surplus results are cut off.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size}: it must be at least 1')
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
