"""The weights of the metrics' networks as published: found and recognised, but not read."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from exedit.runtime import files
from exedit.runtime.errors import UserError
from exedit.weights import fetch, settings, translate
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.tensor import Tensor, read_json
from exedit.weights.layouts import diffusers, towers
from exedit.weights.settings import Known
from exedit.weights.tables import clip_image, dino, inception, lpips
from exedit.weights.tables import clip_text as clip_text_tables
from exedit.weights.translate import Row

ENDINGS = ('.safetensors', '.bin', '.pt', '.pth')

# The names of published networks, by width, layers, patch and side of the picture.
CLIPS = {
  (768, 12, 32, 224): 'clip_b32',
  (768, 12, 16, 224): 'clip_b16',
  (1024, 24, 14, 224): 'clip_l14',
  (1024, 24, 14, 336): 'clip_l14_336',
}
DINOS = {
  (384, 12, 16, 224): 'dino_s16',
  (384, 12, 8, 224): 'dino_s8',
  (768, 12, 16, 224): 'dino_b16',
  (768, 12, 8, 224): 'dino_b8',
}
VIT = Known(
  read=dict(num_attention_heads=12),
  implemented=dict(hidden_act=('gelu',), num_channels=(3,), qkv_bias=(True,)),
  strict=False,  # transformers' base class adds dozens of settings
)


class Published(NamedTuple):
  """Tensors by their publisher's names, the config.json beside them (or {}), their files."""

  theirs: Mapping[str, Tensor]
  config: Mapping[str, Any]
  files: Sequence[Path]
  where: str


class Recognised(NamedTuple):
  """The network that the tensors are of: its table, the settings to build it with, its name."""

  table: Sequence[Row]
  settings: dict[str, Any]
  name: str


def find(src: str | os.PathLike) -> Published:
  """Finds the weight file `src`, or those of a folder or hub id.

  A folder with a config.json is read as transformers reads it. Without one, the tensors of all its
  weight files are taken together.

  Raises:
    UserError: if there is none, it is damaged, or two files have tensors of the same name.
  """
  path = fetch.local_path(src)
  config = {}
  if not path.is_dir():
    found = [path]
  elif (path / 'config.json').exists():
    config = read_json(path / 'config.json')
    found = [diffusers.weights_file(path, 'model')]
  else:
    found = [path / name for name in files.listing(path) if name.endswith(ENDINGS)]
    if not found:
      raise UserError(f'{path} holds no weights ({", ".join(ENDINGS)}): put them there')
  theirs = {}
  for file in found:
    more = open_tensors(file)
    if twice := sorted(theirs.keys() & more.keys()):
      raise UserError(
        f'{file} holds {len(twice)} tensors whose names another file in its folder has too, such as'
        f' {twice[0]!r}: leave the files of one network alone in a folder'
      )
    theirs |= more
  opened = [shard for file in found for shard in diffusers.shards(file)]
  return Published(theirs, config, opened, os.fspath(src))


def clip(found: Published) -> Recognised:
  """Recognises CLIP's image tower with its projection, in transformers' or in OpenAI's layout."""
  openai = any(name.startswith('visual.') for name in found.theirs)
  table = clip_image.OPENAI if openai else clip_image.TRANSFORMERS
  ours = translate.to_ours(table, found.theirs, where=found.where)
  if found.config:
    vision = settings.clip(found.config, f'{found.where}/config.json')
  else:
    vision = towers.sizes(ours, 'vision.', found.where)
  if 'projection.kernel' not in ours or not math.prod(ours['projection.kernel'].shape):
    raise UserError(f'{found.where} holds no projection.kernel; is it the whole file?')
  dim = ours['projection.kernel'].shape[-1]
  return Recognised(table, dict(vision=vision, dim=dim), _name('clip', CLIPS, vision))


def clip_text(found: Published) -> Recognised:
  """Recognises CLIP's text tower with its projection in a file of both towers."""
  whole = clip(found)  # the name is that of the image tower
  openai = whole.table is clip_image.OPENAI
  table = clip_text_tables.OPENAI if openai else clip_text_tables.TRANSFORMERS
  ours = translate.to_ours(table, found.theirs, where=found.where)
  if found.config:
    text = settings.clip_text(found.config, f'{found.where}/config.json')
  else:
    text = towers.text_sizes(ours, 'text.', found.where)
  return Recognised(table, dict(text=text, dim=whole.settings['dim']), whole.name)


def dino_vit(found: Published) -> Recognised:
  """Recognises a DINO transformer, in transformers' layout or in that of the original code."""
  table = dino.ORIGINAL if 'cls_token' in found.theirs else dino.TRANSFORMERS
  heads, where = None, f'{found.where}/config.json'
  if found.config:
    config = settings.values(VIT, found.config, where)
    heads = settings.integer(config, 'num_attention_heads', where)
  ours = translate.to_ours(table, found.theirs, where=found.where)
  sizes = towers.sizes(ours, '', found.where, heads=heads)
  return Recognised(table, sizes, _name('dino', DINOS, sizes))


def fid_inception(found: Published) -> Recognised:
  """Recognises FID's Inception; torchvision's has other weights and another classifier."""
  classes = found.theirs['fc.weight'].shape[0] if 'fc.weight' in found.theirs else 1008
  if classes != 1008:
    raise UserError(
      f"{found.where} tells {classes} classes apart, FID's Inception 1008: it is torchvision's"
    )
  return Recognised(inception.TABLE, {}, 'inception')


def lpips_net(found: Published) -> Recognised:
  """Recognises LPIPS over AlexNet, VGG-16 or SqueezeNet by their convolutions."""
  convs = [n for n, t in found.theirs.items() if n.endswith('.weight') and t.shape[2:] > (1, 1)]
  net = 'alex' if len(convs) <= 5 else 'vgg'
  net = 'squeeze' if any('.expand3x3.' in name for name in convs) else net
  return Recognised(lpips.TABLES[net], dict(net=net), f'lpips_{net}')


def _name(kind: str, names: Mapping[tuple, str], sizes: Mapping[str, Any]) -> str:
  """The published name of a network of these sizes, or a name that spells the sizes out."""
  width, layers, patch, size = (sizes[k] for k in ('width', 'layers', 'patch', 'image_size'))
  return names.get((width, layers, patch, size), f'{kind}_{width}x{layers}p{patch}s{size}')
