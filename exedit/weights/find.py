"""Finds out what somebody's weights are, without reading them."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from exedit.input_pipeline import tokenizer as texts
from exedit.runtime import files
from exedit.runtime.errors import UserError
from exedit.weights import fetch
from exedit.weights.found import Weights

# Weights whose parts cannot be used alone: what they are, the files that tell them (one row of them
# is enough), and the paths of parts in them.
PARTS = (
  (
    'a diffusers pipeline',
    (('model_index.json',), ('unet', 'scheduler')),
    re.compile(rf'model_index\.json|({"|".join(fetch.COMPONENTS)}|safety_checker)(/.*)?'),
  ),
  (
    'exported weights or a run',
    (('config.json',),),
    re.compile(
      r'config\.json|metrics\.jsonl|frozen\.safetensors|checkpoints|'
      rf'(checkpoints/\d+|{texts.FOLDER})(/.*)?'
    ),
  ),
)


def weights(
  src: str | os.PathLike,
  which: str = 'ema',
  revision: str | None = None,
  *,
  heads: int | None = None,
  groups: int | None = None,
  clip_heads: int | None = None,
  to_start: bool = False,
) -> Weights:
  """Finds the weights `src`, in whichever layout they are.

  src: the workdir of a run or an exported folder; the folder of a diffusers pipeline; an original
    checkpoint (.ckpt or .safetensors); the id of a hub repository, or a folder of a store
    (gs://bucket/run), that holds one of these.
  which: the moving average ('ema') or the last parameters ('params'), if there are both.
  revision: of the hub repository.
  heads, groups: of an original checkpoint's UNet, because the file does not say them; by default
    the published 8 and 32. clip_heads: of its image tower; by default one per 64 channels.
  to_start: of Stable Diffusion leave out the text tower, which a training of another system does
    not need.
  Raises:
    UserError: if there are no such weights, or exedit cannot use them.
  """
  path = fetch.local_path(src, revision)
  layout = layout_of(path)
  if layout == 'diffusers':
    from exedit.weights.layouts import diffusers

    found = diffusers.read(path, to_start)
  elif layout == 'original':
    from exedit.weights.layouts import original

    given = dict(heads=heads, groups=groups, clip_heads=clip_heads)
    found = original.read(_checkpoint(path), which, **given, to_start=to_start)
  else:
    from exedit.weights.layouts import own

    found = own.read(path, which)
  if to_start:
    found = found.without('text')
  without = to_start or found.kind == 'paint_by_example'
  texts = None if without else _tokenizer(path)
  return dataclasses.replace(found, tokenizer=texts, layout=layout, where=os.fspath(src))


def tokenizer(src: str | os.PathLike) -> Path | None:
  """The folder of the tokenizer in or beside the weights `src`; None if there is none."""
  return _tokenizer(fetch.local_path(src))


def _tokenizer(path: Path) -> Path | None:
  folder = (path.parent if path.is_file() else path) / texts.FOLDER
  return folder if folder.is_dir() else None


def config(
  src: str | os.PathLike, which: str = 'ema', revision: str | None = None
) -> dict[str, Any]:
  """Returns the config of the weights `src` alone; a run's checkpoint is then not read."""
  path = fetch.local_path(src, revision)
  if layout_of(path) != 'exedit':
    return weights(src, which, revision).config
  from exedit.weights.layouts import own

  return own.read_config(path)


def kind(src: str | os.PathLike, revision: str | None = None) -> str | None:
  """The system of weights in exedit's own layout, from the config alone; None for others."""
  path = fetch.local_path(src, revision)
  if layout_of(path) != 'exedit':
    return None
  from exedit.weights.layouts import own

  return str(own.read_config(path).get('system', 'paint_by_example'))


def clip_tower(src: str | os.PathLike, heads: int | None = None, part: str = 'clip') -> Weights:
  """Finds a tower of CLIP in a run or an export, a folder of transformers, or a file.

  part: 'clip', the image tower, or 'text'; everything else is ignored. heads: their number if a
  file of an image tower does not tell it.
  """
  from exedit.weights import settings, translate
  from exedit.weights.formats.files import open_tensors
  from exedit.weights.formats.tensor import read_json
  from exedit.weights.layouts import diffusers, towers
  from exedit.weights.tables import clip, clip_text

  path, where = fetch.local_path(src), os.fspath(src)
  if path.is_dir() and 'model' in read_json(path / 'config.json'):
    return _own_tower(src, part)
  other, table = {
    'clip': ('text_model.*', clip.TABLE),
    'text': ('vision_model.*', clip_text.TABLE),
  }[part]
  rest = (other, 'visual_projection.weight', 'text_projection.weight', 'logit_scale')
  table = [*translate.under('', f'{part}.', table), *translate.ignored(*rest)]
  tokenizer = None
  if path.is_dir():
    read = settings.clip if part == 'clip' else settings.clip_text
    sizes = read(read_json(path / 'config.json'), str(path / 'config.json'))
    tokenizer = path if part == 'text' and texts.is_there(path) else None
    path = diffusers.weights_file(path, 'model')
    theirs = open_tensors(path)
  elif part == 'text':
    raise UserError(
      f'{where} is a file, which does not say the heads of a text tower: name a folder'
    )
  else:
    theirs = open_tensors(path)
    ours = translate.to_ours(table, theirs, where=where)
    sizes = towers.sizes(ours, 'clip.', where, fallback=heads)
  data = dict(exemplar_size=sizes['image_size']) if part == 'clip' else {}
  config, opened = dict(model={part: sizes}, data=data), tuple(diffusers.shards(path))
  found = Weights(config, theirs, table, opened, tokenizer=tokenizer)
  return dataclasses.replace(found, layout='transformers', where=where)


def _own_tower(src: str | os.PathLike, part: str, *others: str) -> Weights:
  """The tower among the weights of any system, and these other parts."""
  found = weights(src)
  there = {ours.split('.')[0] for _, ours, _ in found.table if ours}
  for name in (part, *others):
    if name not in there:
      what = dict(clip='image tower', text='text tower').get(name, name)
      raise UserError(
        f'{src} holds weights of {found.kind}, which has no {what} but {", ".join(sorted(there))}'
      )
  return found.without(*there - {part, *others})


def with_exemplars(base: Weights, clip: str | os.PathLike) -> Weights:
  """Stable Diffusion joined with CLIP's image tower and projection: Blended Diffusion's weights.

  clip: a run or an export of the system `clip`; a folder or file of transformers' CLIPModel or
    CLIPVisionModelWithProjection, or of OpenAI's tensors.
  Raises:
    UserError: for a base of another system, and for a tower without its projection.
  """
  from exedit.weights import translate
  from exedit.weights.formats.tensor import read_json
  from exedit.weights.layouts import published

  if base.kind != 'stable_diffusion':
    raise UserError(
      f'{base.where} holds weights of {base.kind}: CLIP joins those of stable_diffusion alone'
    )
  path, where = fetch.local_path(clip), os.fspath(clip)
  if path.is_dir() and 'model' in read_json(path / 'config.json'):
    found = _own_tower(clip, 'clip', 'image_projection')
    tower, opened = found.tensors, found.files
    model = {name: found.config['model'][name] for name in ('clip', 'dim')}
  else:
    network = published.clip(named := published.find(clip))
    renamed = dict(vision='clip', projection='image_projection')
    tensors = translate.to_ours(network.table, named.theirs, where=where)
    split = {name: name.partition('.') for name in tensors}
    tower = {f'{renamed[p]}.{rest}': tensors[n] for n, (p, _, rest) in split.items()}
    model, opened = dict(clip=network.settings['vision'], dim=network.settings['dim']), named.files
  edit = {name: value for name, value in base.config.get('edit', {}).items() if name != 'sampler'}
  theirs = {**base.tensors, **tower}
  return dataclasses.replace(
    base,
    config=dict(base.config, model=base.config['model'] | model, edit=edit),
    theirs=theirs,
    table=translate.identity(theirs),
    files=(*base.files, *opened),
    kind='blended_diffusion',
    where=f'{base.where} with {where}',
  )


def layout_of(path: Path) -> str:
  """Returns 'exedit', 'diffusers' or 'original', told by the names of the files.

  Raises:
    UserError: if there is nothing, or nothing that exedit knows, or only a part of weights.
  """
  _refuse_part(path)
  if path.is_file():
    return 'original'
  if not path.is_dir():
    raise UserError(f'{path} is not a folder or file here')
  if layout := _layout(path):
    return layout
  inside = [path / name for name in files.listing(path) if (path / name).is_dir()]
  known = [str(p) for p in inside if p.name.startswith('models--') or _layout(p)]
  if known:
    raise UserError(f'{path} holds no weights itself: name one of {", ".join(known[:5])}')
  there = ', '.join(files.listing(path)[:5]) or 'nothing'
  raise UserError(
    f'{path} holds no weights: it has {there}, and exedit looks for config.json with '
    'model.safetensors or checkpoints/, for unet/ and vae/ with image_encoder/, or for one .ckpt '
    'or .safetensors'
  )


def _layout(path: Path) -> str | None:
  """The layout of a folder, if it has one."""
  if (path / 'model_index.json').exists() or (path / 'unet').is_dir():
    return 'diffusers'
  if (path / 'config.json').exists() or (path / 'checkpoints').exists():
    return 'exedit'
  return 'original' if _checkpoints(path) else None


def _refuse_part(path: Path) -> None:
  """Raises UserError with the folder to name, if `path` is a file or folder within weights."""
  whole = path.absolute()
  for what, signs, parts in PARTS:
    for folder in whole.parents[:3]:
      part = parts.fullmatch(whole.relative_to(folder).as_posix())
      if part and any(all((folder / f).exists() for f in sign) for sign in signs):
        name = folder if path.is_absolute() else os.path.relpath(folder)
        raise UserError(f'{path} is a part of {what}: name the whole folder, {name}')


def _checkpoint(path: Path) -> Path:
  """The checkpoint `path`, or the only checkpoint in the folder `path`."""
  if path.is_file():
    return path
  found = _checkpoints(path)
  if len({file.stem for file in found}) > 1:
    names = ', '.join(sorted(file.name for file in found)[:5])
    raise UserError(f'{path} holds several checkpoints ({names}): name one of them')
  return found[0]


def _checkpoints(path: Path) -> list[Path]:
  """The checkpoints in a folder: .safetensors first, then .ckpt; others only if there are none."""
  for endings in (('.safetensors', '.ckpt'), ('.pt', '.pth')):
    found = [path / name for name in files.listing(path) if Path(name).suffix in endings]
    if found:
      return sorted(found, key=lambda file: endings.index(file.suffix))
  return []
