"""Finds out what somebody's weights are, without reading them."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from exedit.runtime import files
from exedit.runtime.errors import UserError
from exedit.weights import fetch
from exedit.weights.found import Weights


def weights(
  src: str | os.PathLike,
  which: str = 'ema',
  revision: str | None = None,
  *,
  heads: int | None = None,
  groups: int | None = None,
  to_start: bool = False,
) -> Weights:
  """Finds the weights `src`, in whichever layout they are.

  src: the workdir of a run or an exported folder; the folder of a diffusers pipeline; an original
    checkpoint (.ckpt or .safetensors); the id of a hub repository, or a folder of a store
    (gs://bucket/run), that holds one of these.
  which: the moving average ('ema') or the last parameters ('params'), if there are both.
  revision: of the hub repository.
  heads, groups: of an original checkpoint's UNet, because the file does not say them; by default
    the published 8 and 32.
  to_start: also accept Stable Diffusion 1.x for text, from which a training can start.
  Raises:
    UserError: if there are no such weights, or exedit cannot use them.
  """
  path = fetch.local_path(src, revision)
  layout = layout_of(path)
  if layout == 'diffusers':
    from exedit.weights.layouts import diffusers

    found = diffusers.read(path)
  elif layout == 'original':
    from exedit.weights.layouts import original

    found = original.read(_checkpoint(path), which, heads=heads, groups=groups)
  else:
    from exedit.weights.layouts import own

    found = own.read(path, which)
  if found.kind == 'stable_diffusion' and not to_start:
    raise UserError(
      f'{src} is Stable Diffusion, which edits by text: a training can start from it '
      '(--config.init_from), an edit by exemplar needs Paint by Example'
    )
  return dataclasses.replace(found, layout=layout, where=os.fspath(src))


def config(
  src: str | os.PathLike, which: str = 'ema', revision: str | None = None
) -> dict[str, Any]:
  """Returns the config of the weights `src` alone; a run's checkpoint is then not read."""
  path = fetch.local_path(src, revision)
  if layout_of(path) != 'exedit':
    return weights(src, which, revision).config
  from exedit.weights.layouts import own

  return own.read_config(path)


def clip_tower(src: str | os.PathLike, revision: str | None = None) -> Weights:
  """Finds CLIP's image tower in a folder of transformers (CLIPModel, CLIPVisionModel) or a file.

  The text tower and the projections are ignored.
  """
  from exedit.weights import settings, translate
  from exedit.weights.formats.files import open_tensors
  from exedit.weights.formats.tensor import read_json
  from exedit.weights.layouts import diffusers, original_config
  from exedit.weights.tables import clip

  path, where = fetch.local_path(src, revision), os.fspath(src)
  if path.is_dir():
    sizes = settings.clip(read_json(path / 'config.json'), str(path / 'config.json'))
    path = diffusers.weights_file(path, 'model')
    theirs = open_tensors(path)
  else:
    theirs = open_tensors(path)
    whole = any(name.startswith('vision_model.') for name in theirs)
    sizes = original_config.clip_sizes(theirs, 'vision_model.' if whole else '', where)
  rest = ('text_model.*', 'visual_projection.weight', 'text_projection.weight', 'logit_scale')
  table = [*translate.under('', 'clip.', clip.TABLE), *translate.ignored(*rest)]
  config = dict(model=dict(clip=sizes), data=dict(exemplar_size=sizes['image_size']))
  opened = tuple(diffusers.shards(path))
  return Weights(config, theirs, table, opened, layout='transformers', where=where)


def layout_of(path: Path) -> str:
  """Returns 'exedit', 'diffusers' or 'original', told by the names of the files.

  Raises:
    UserError: if there is nothing, or nothing that exedit knows.
  """
  if path.is_file():
    return 'original'
  if not path.is_dir():
    raise UserError(f'{path} is not a folder or file here')
  if (path / 'model_index.json').exists() or (path / 'unet').is_dir():
    return 'diffusers'
  if (path / 'config.json').exists() or (path / 'checkpoints').exists():
    return 'exedit'
  if _checkpoints(path):
    return 'original'
  there = ', '.join(files.listing(path)[:5]) or 'nothing'
  raise UserError(
    f'{path} holds no weights: it has {there}, and exedit looks for config.json with '
    'model.safetensors or checkpoints/, for unet/ and vae/ with image_encoder/, or for one .ckpt '
    'or .safetensors'
  )


def _checkpoint(path: Path) -> Path:
  """The checkpoint `path`, or the only checkpoint in the folder `path`."""
  if path.is_file():
    return path
  found = _checkpoints(path)
  if len({file.stem for file in found}) > 1:
    names = ', '.join(file.name for file in found[:5])
    raise UserError(f'{path} holds several checkpoints ({names}): name one of them')
  return found[0]


def _checkpoints(folder: Path) -> list[Path]:
  """The single-file checkpoints in a folder."""
  return [folder / n for n in files.listing(folder) if n.endswith(('.safetensors', '.ckpt'))]
