"""Whatever weights people have: find out what they are, without reading them."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from exedit.runtime.errors import UserError
from exedit.weights import digests
from exedit.weights import fetch as hub
from exedit.weights import names as tables
from exedit.weights import settings as configs
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.tensor import Tensor
from exedit.weights.layouts import diffusers, original
from exedit.weights.layouts import exedit as folder
from exedit.weights.names import Row
from exedit.weights.tables import clip


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights that were found but not read; see tables.Found for the fields they share.

  layout: 'exedit', 'diffusers' or 'original'. where: how to name them to a person.
  """

  config: dict[str, Any]
  theirs: Mapping[str, Tensor]
  table: Sequence[Row]
  files: tuple[Path, ...]
  step: int
  kind: str
  sha256: Mapping[Path, str]
  which: str
  notes: tuple[str, ...]
  layout: str
  where: str

  @functools.cached_property
  def tensors(self) -> Mapping[str, Tensor]:
    """The tensors by our dotted paths and in our layouts; each is read when its `read` is called.

    Raises:
      UserError: with a listing of the names that no network of any size would have.
    """
    return self.fit()

  def fit(self, like: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """The tensors, all names and shapes checked against those of a model (`like`).

    Raises:
      UserError: with one listing of all differences, in the source's own names; or where a file is
        not what its maker wrote.
    """
    for file, expected in self.sha256.items():
      found = digests.sha256(file)
      if found != expected:
        raise UserError(
          f'{file} is damaged (its SHA-256 is {found[:12]}..., written was {expected[:12]}...): '
          'restore it from a copy'
        )
    tensors = tables.to_ours(self.table, self.theirs, like, self.where)
    for name, tensor in tensors.items():
      if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(
          f'{self.where} holds {tensor.dtype} numbers for {name}: weights must be floating-point; '
          'quantised ones cannot be used'
        )
    return tensors

  def digest(self) -> str:
    """SHA-256 in hexadecimal that names these weights; a file's own where there is but one."""
    try:
      return digests.together(self.files, self.which)
    except OSError as error:
      raise UserError(f'{error.filename} is gone or cannot be read: {error.strerror}') from error


def look(
  src: str | os.PathLike,
  which: str = 'ema',
  revision: str | None = None,
  *,
  heads: int | None = None,
  groups: int | None = None,
) -> Weights:
  """Find out what `src` is: Paint by Example weights of any layout.

  src: a workdir of ours or an exported folder; the folder of a diffusers pipeline; an original
  checkpoint (.ckpt or .safetensors); the id of a hub repository that holds one of these.
  which: the moving average ('ema') or the last parameters ('params'), where there are both.
  revision: of the hub repository. heads, groups: of an original checkpoint's UNet, whose file does
  not say; the published 8 and 32 if not given.
  Raises:
    UserError: for whatever is wrong with it.
  """
  weights = find(src, which, revision, heads=heads, groups=groups)
  if weights.kind == 'stable_diffusion':
    raise UserError(
      f'{src} is Stable Diffusion, which paints by words: a training can start from it '
      '(--config.init_from), an edit by exemplar needs Paint by Example'
    )
  return weights


def read_config(
  src: str | os.PathLike, which: str = 'ema', revision: str | None = None
) -> dict[str, Any]:
  """The config alone, as `look` finds it."""
  path = hub.resolve(src, revision)
  return folder.read_config(path) if layout(path) == 'exedit' else look(src, which, revision).config


def find(
  src: str | os.PathLike,
  which: str = 'ema',
  revision: str | None = None,
  *,
  heads: int | None = None,
  groups: int | None = None,
) -> Weights:
  """As `look`, and Stable Diffusion 1.x for text as well, from which a training can start."""
  path = hub.resolve(src, revision)
  kind = layout(path)
  if kind == 'diffusers':
    found = diffusers.read(path)
  elif kind == 'original':
    found = original.read(_checkpoint(path), which, heads=heads, groups=groups)
  else:
    found = folder.read(path, which)
  return Weights(**found._asdict(), layout=kind, where=os.fspath(src))


def find_clip(src: str | os.PathLike, revision: str | None = None) -> Weights:
  """CLIP's image tower: a folder of transformers (CLIPModel, CLIPVisionModel), a file, a hub id.

  Its text tower and projections are passed over.
  """
  path, where = hub.resolve(src, revision), os.fspath(src)
  if path.is_dir():
    config = diffusers.read_json(path / 'config.json')
    settings = configs.clip(config, str(path / 'config.json'))
    path = diffusers.weights_file(path, 'model')
    theirs = open_tensors(path)
  else:
    theirs = open_tensors(path)
    whole = any(name.startswith('vision_model.') for name in theirs)
    settings = original.clip_sizes(theirs, 'vision_model.' if whole else '', where)
  rest = ('text_model.*', 'visual_projection.weight', 'text_projection.weight', 'logit_scale')
  table = [*tables.under('', 'clip.', clip.TABLE), *tables.ignored(*rest)]
  data = dict(exemplar_size=settings['image_size'])
  files = tuple(diffusers.shards(path))
  found = tables.Found(dict(model=dict(clip=settings), data=data), theirs, table, files)
  return Weights(**found._asdict(), layout='transformers', where=where)


def layout(path: Path) -> str:
  """'exedit', 'diffusers' or 'original', by the names of what is there.

  Raises:
    UserError: where nothing is, or nothing known.
  """
  if path.is_file():
    return 'original'
  if not path.is_dir():
    raise UserError(f'{path} is not a folder or file here')
  if (path / 'model_index.json').exists() or (path / 'unet').is_dir():
    return 'diffusers'
  if any((path / name).exists() for name in (folder.CONFIG, 'checkpoints')):
    return 'exedit'
  if any(path.glob('*.ckpt')) or any(path.glob('*.safetensors')):
    return 'original'
  there = ', '.join(sorted(os.listdir(path))[:5]) or 'nothing'
  raise UserError(
    f'{path} holds no weights: it has {there}, and exedit looks for config.json with '
    'model.safetensors or checkpoints/, for unet/ and vae/ with image_encoder/, or for one .ckpt '
    'or .safetensors'
  )


def _checkpoint(path: Path) -> Path:
  """The one checkpoint that a path to a file or folder means."""
  if path.is_file():
    return path
  found = sorted([*path.glob('*.safetensors'), *path.glob('*.ckpt')])
  stems = {file.stem for file in found}
  if len(stems) > 1:
    names = ', '.join(file.name for file in found[:5])
    raise UserError(f'{path} holds several checkpoints ({names}): name one of them')
  return found[0]
