"""exedit's own layout: a folder with config.json and model.safetensors, or the workdir of a run."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exedit.input_pipeline import tokenizer as texts
from exedit.runtime import files
from exedit.runtime.errors import UserError
from exedit.weights import digests, settings
from exedit.weights.formats import run
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.tensor import Tensor, read_small, to_dtype
from exedit.weights.found import Weights
from exedit.weights.translate import identity

CONFIG, MODEL = 'config.json', 'model.safetensors'
LONGEST_CONFIG = 2**22  # bytes; a config has some thousands
NUMBERS = ('scale', 'mean', 'beta_start', 'beta_end')  # settings that are real numbers
WHOLE = (  # settings that are whole numbers, positive unless they are in FROM_ZERO
  *('channels', 'layers', 'heads', 'groups', 'z_channels', 'width', 'mlp', 'patch', 'image_size'),
  *('num_steps', 'context_dim', 'vocabulary', 'length', 'fold', 'dim', 'new'),
)
FROM_ZERO = ('attention_levels', 'new')
PARTS = ('unet', 'autoencoder', 'clip', 'text', 'conditioner', 'schedule')


def read_config(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the config that the weights in this folder were trained with.

  Raises:
    UserError: if there is no folder, no config in it, or a damaged one.
  """
  file = Path(path) / CONFIG
  try:
    config = json.loads(read_small(file, LONGEST_CONFIG).decode('utf-8'))
    if 'model_type' in config:
      raise UserError(
        f'{path} is a model of transformers ({config["model_type"]!r:.50}): '
        'a training takes a CLIP tower as --config.init_clip'
      )
    if 'ControlNet' in str(config.get('_class_name')):
      raise UserError(
        f'{path} is a ControlNet, which steers a model and is none: exedit reads Paint by Example '
        'and Stable Diffusion 1.x'
      )
    if '_class_name' in config:
      raise UserError(
        f'{path} is one network of diffusers ({config["_class_name"]!r:.50}): name the folder of a '
        'pipeline, with unet/, vae/, image_encoder/ and scheduler/ in it'
      )
    exported = dict(config.get('exported') or {})
    exported = dict(exported, sha256=dict(exported.get('sha256') or {}))
    exported['step'] = int(exported.get('step') or 0)
    model = checked_settings(config['model'], str(file))
    data, edit = checked_uses(config['data'], config.get('edit') or {}, str(file))
    return dict(config, model=model, data=data, edit=edit, exported=exported)
  except (FileNotFoundError, NotADirectoryError):
    what = f'holds no {CONFIG}' if Path(path).is_dir() else 'is not a folder'
    raise UserError(
      f"{path} {what}: name a training run's folder or an exported one, such as weights/tiny"
    ) from None
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(f'{file} is damaged ({error}): restore it from a copy') from None


def checked_settings(model: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns model settings of our own layout after a check; a whole number such as 8.0 becomes 8.

  Raises:
    UserError: for a value that no exported model can have.
  """
  checked = {
    name: _checked(name, value, 'model', where)
    for name, value in model.items()
    if name not in PARTS
  }
  for part in (part for part in PARTS if part in model):
    group = model[part]
    if not isinstance(group, Mapping):
      raise _damaged(where, f'model.{part}', group, '')
    checked[part] = {n: _checked(n, value, f'model.{part}', where) for n, value in group.items()}
  return {name: checked[name] for name in model}  # in the given order


def _checked(name: str, value: Any, group: str, where: str) -> Any:
  """The value of one setting of a model."""
  listed = name in ('mult', 'attention_levels')
  if listed or name in WHOLE:
    values = value if listed and isinstance(value, list) else [value]
    numbers = [settings.whole(v, name, int(name not in FROM_ZERO)) for v in values]
    if len(values) > settings.LEVELS or None in numbers:
      raise _damaged(where, f'{group}.{name}', value, _range(name))
    return numbers if values is value else numbers[0]
  if name in NUMBERS and not (settings.finite(value) and (name == 'mean' or value > 0)):
    raise _damaged(where, f'{group}.{name}', value, 'which must be a finite number')
  return value


def checked_uses(
  data: Mapping[str, Any], edit: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns picture sizes and sampling settings of our own layout after a check.

  Sampling settings that are null have their defaults.

  Raises:
    UserError: for a value that no exported model can have.
  """
  data, edit = dict(data), {name: value for name, value in edit.items() if value is not None}
  for group, names in ((data, ('size', 'exemplar_size')), (edit, ('steps',))):
    for name in (name for name in names if name in group):
      if (number := settings.whole(group[name], name)) is None:
        raise _damaged(where, name, group[name], _range(name))
      group[name] = number
  if not settings.finite(edit.get('scale', 1)):
    raise _damaged(where, 'scale', edit['scale'], 'which must be a finite number')
  if not isinstance(edit.get('sampler', ''), str):
    raise _damaged(where, 'sampler', edit['sampler'], '')
  return data, edit


def _range(name: str) -> str:
  return f'which must be whole and at most {settings.MOST.get(name, settings.LARGEST)}'


def _damaged(where: str, name: str, value: Any, rule: str) -> UserError:
  rule = f', {rule}' if rule else ''
  return UserError(
    f'{where} is damaged ({name} is {settings.shown(value)}{rule}): restore it from a copy'
  )


def read(path: Path, which: str = 'ema') -> Weights:
  """Returns the weights of a workdir or an exported folder.

  The newest checkpoint of a workdir is read at once, because that shows whether it is damaged.

  which: 'ema' (the parameters themselves if the run keeps no average) or 'params', of a workdir.
  Raises:
    UserError: if there are no weights, or only damaged ones.
  """
  config = read_config(path)
  kind = str(config.get('system', 'paint_by_example'))  # old configs do not name the system
  file = path / MODEL
  if not file.exists():
    return _workdir(path, config, kind, which)
  tensors, exported = open_tensors(file), config['exported']
  digest = exported['sha256'].get(MODEL)
  known = {file: str(digest)} if digest else {}
  table, step = identity(tensors), exported['step']
  return Weights(config, tensors, table, (file,), step, kind, known)


def _workdir(path: Path, config: dict[str, Any], kind: str, which: str) -> Weights:
  """Reads the newest undamaged checkpoint.

  Reading a tensor removes its array here, so memory holds one copy.
  """
  params, step = run.restore_params(path, which)

  def take(name):
    if name not in params:
      again, now = run.restore_params(path, which)
      if now != step:
        raise UserError(
          f'{path} was at step {step} and is at step {now} now: run the command again'
        )
      params.update(again)
    return params.pop(name)

  tensors = {
    name: Tensor(array.shape, array.dtype, lambda name=name: take(name))
    for name, array in params.items()
  }
  used = (path / 'checkpoints' / str(step) / 'digest' / 'metadata', path / run.FROZEN)
  return Weights(config, tensors, identity(tensors), used, step, kind, which=which)


def write(
  path: str | os.PathLike,
  config: Mapping[str, Any],
  params: Mapping[str, np.ndarray | Tensor],
  *,
  step: int,
  dtype: str | None = None,
  beside: Iterable[Path] = (),
  tokenizer: Path | None = None,
) -> None:
  """Exports weights to a new folder, with their config and what else the run says about itself.

  The folder appears whole or not at all. The config gets the SHA-256 of the weights' file, which is
  checked before the weights are used again.

  config: the config that the weights were trained with.
  dtype: the type in which the weights are stored; by default the one that they have.
  beside: files to copy if they exist. tokenizer: a folder, which is copied.
  Raises:
    UserError: if `path` exists or cannot be written.
  """
  files.check_new(path)
  with files.new_folder(path) as folder:
    stored = to_dtype(params, dtype)
    save_tensors(folder / MODEL, stored)
    exported = dict(
      step=step,
      dtype=', '.join(sorted({str(tensor.dtype) for tensor in stored.values()})),
      parameters=sum(int(np.prod(tensor.shape)) for tensor in stored.values()),
      sha256={MODEL: digests.sha256(folder / MODEL)},
    )
    files.write_json(folder / CONFIG, {**config, 'exported': exported})
    for file in filter(Path.exists, beside):
      shutil.copy(file, folder)
    if tokenizer is not None:
      texts.copy(tokenizer, folder)
