"""Our own layout: a folder with config.json and model.safetensors, or the workdir of a run."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from exedit.errors import UserError
from exedit.training import checkpoint

CONFIG, MODEL = 'config.json', 'model.safetensors'


def read_config(path: str | os.PathLike) -> dict[str, Any]:
  """The config that the weights in this folder were trained with.

  Raises:
    UserError: where there is no folder, no config in it, or a damaged one.
  """
  file = Path(path) / CONFIG
  try:
    config = json.loads(file.read_text(encoding='utf-8'))
    return dict(config, model=dict(config['model']), data=dict(config['data']))
  except (FileNotFoundError, NotADirectoryError):
    what = f'holds no {CONFIG}' if Path(path).is_dir() else 'is not a folder'
    raise UserError(
      f"{path} {what}: name a training run's folder or an exported one, such as weights/tiny"
    ) from None
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f'{file} is damaged ({error}): restore it from a copy') from None


def read(
  path: str | os.PathLike, which: str = 'ema'
) -> tuple[dict[str, Any], dict[str, np.ndarray], int]:
  """(config, all parameters in float32, the step they are from) of a workdir or exported folder.

  which: 'ema' (the parameters themselves where no average was kept) or 'params', for a workdir.
  Raises:
    UserError: where there are no weights, or only damaged ones.
  """
  config = read_config(path)
  file = Path(path) / MODEL
  if not file.exists():
    try:
      params, step = checkpoint.restore_params(path, which)
    except checkpoint.CheckpointError as error:
      raise UserError(str(error)) from error
    return config, params, step
  try:
    params = load_file(file)
  except (SafetensorError, ValueError, OSError) as error:
    raise UserError(f'{file} is damaged ({error}): restore it from a copy') from error
  params = {name: array.astype(np.float32) for name, array in params.items()}
  return config, params, int(config.get('exported', {}).get('step', 0))


def write(
  path: str | os.PathLike,
  config: Mapping[str, Any],
  params: Mapping[str, np.ndarray],
  *,
  step: int,
  dtype: str = 'float32',
  log: str | os.PathLike | None = None,
) -> None:
  """Export weights with the config that made them, and the run's metrics beside them.

  The folder appears whole or not at all. dtype: what the weights are stored in; they are read
  back as float32.
  """
  path = Path(path)
  if path.exists():
    raise UserError(f'{path} is there already: remove it or name another folder')
  half = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    half.mkdir(parents=True)
    stored = {name: np.ascontiguousarray(a, dtype) for name, a in params.items()}
    save_file(stored, half / MODEL)
    exported = dict(step=step, dtype=dtype, parameters=sum(a.size for a in stored.values()))
    text = json.dumps({**config, 'exported': exported}, indent=2)
    (half / CONFIG).write_text(text + '\n', encoding='utf-8')
    if log is not None and Path(log).exists():
      shutil.copy(log, half / 'metrics.jsonl')
    os.replace(half, path)
  finally:
    shutil.rmtree(half, ignore_errors=True)
