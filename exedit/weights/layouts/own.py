"""Our own layout: a folder with config.json and model.safetensors, or the workdir of a run."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exedit.runtime.errors import UserError
from exedit.weights import digests
from exedit.weights import settings as configs
from exedit.weights.formats import run
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.tensor import Tensor, read_small
from exedit.weights.found import Weights
from exedit.weights.translate import cast, identity

CONFIG, MODEL = 'config.json', 'model.safetensors'
LONGEST_CONFIG = 2**22  # bytes; one has some thousands
LONGEST_NAME = 200  # bytes; file systems take 255, and temporary names are longer


def read_config(path: str | os.PathLike) -> dict[str, Any]:
  """The config that the weights in this folder were trained with.

  Raises:
    UserError: where there is no folder, no config in it, or a damaged one.
  """
  file = Path(path) / CONFIG
  try:
    config = json.loads(read_small(file, LONGEST_CONFIG).decode('utf-8'))
    if 'model_type' in config:
      raise UserError(
        f'{path} is a model of transformers ({config["model_type"]!r:.50}): '
        'a training takes a CLIP tower as --config.init_clip'
      )
    exported = dict(config.get('exported', {}))
    exported = dict(exported, sha256=dict(exported.get('sha256', {})))
    exported['step'] = int(exported.get('step', 0))
    model = dict(config['model'])
    configs.check_settings(model, str(file))
    data, edit = dict(config['data']), dict(config.get('edit', {}))
    configs.check_uses(data, edit, str(file))
    return dict(config, model=model, data=data, edit=edit, exported=exported)
  except (FileNotFoundError, NotADirectoryError):
    what = f'holds no {CONFIG}' if Path(path).is_dir() else 'is not a folder'
    raise UserError(
      f"{path} {what}: name a training run's folder or an exported one, such as weights/tiny"
    ) from None
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(f'{file} is damaged ({error}): restore it from a copy') from None


def system_of(config: Mapping[str, Any]) -> str:
  """Returns the name of the system in a config; old configs do not name it."""
  return str(config.get('system', 'paint_by_example'))


def read(path: str | os.PathLike, which: str = 'ema') -> Weights:
  """What a workdir or an exported folder holds.

  which: 'ema' (the parameters themselves where no average was kept) or 'params', for a workdir.
  A workdir's newest good checkpoint is read at once, for only so can it be known to be good.

  Raises:
    UserError: where there are no weights, or only damaged ones.
  """
  path, config = Path(path), read_config(path)
  file = path / MODEL
  if not file.exists():
    return _workdir(path, config, which)
  tensors, exported = open_tensors(file), config['exported']
  digest = exported['sha256'].get(MODEL)
  known = {file: str(digest)} if digest else {}
  return Weights(
    config, tensors, identity(tensors), (file,), exported['step'], system_of(config), known
  )


def _workdir(path: Path, config: dict[str, Any], which: str) -> Weights:
  """The newest good checkpoint; each array is given away once, so that no two copies stay."""
  params, step = run.restore_params(path, which)

  def take(name):
    if name not in params:
      again, now = run.restore_params(path, which)
      if now != step:
        raise UserError(f'{path} went on from step {step} to step {now} meanwhile: start again')
      params.update(again)
    return params.pop(name)

  tensors = {
    name: Tensor(array.shape, array.dtype, lambda name=name: take(name))
    for name, array in params.items()
  }
  seal = path / 'checkpoints' / str(step) / 'digest' / 'metadata'
  files = (seal, path / run.FROZEN)
  return Weights(config, tensors, identity(tensors), files, step, system_of(config), which=which)


def write(
  path: str | os.PathLike,
  config: Mapping[str, Any],
  params: Mapping[str, np.ndarray | Tensor],
  *,
  step: int,
  dtype: str | None = None,
  log: str | os.PathLike | None = None,
) -> None:
  """Export weights with the config that made them, and the run's metrics beside them.

  The folder appears whole or not at all. dtype: what the weights are stored in, None for as they
  are. The config gets the file's SHA-256, which is checked before the weights are used again.
  """
  with whole(Path(path)) as half:
    stored = cast(params, dtype)
    save_tensors(half / MODEL, stored)
    exported = dict(
      step=step,
      dtype=', '.join(sorted({str(tensor.dtype) for tensor in stored.values()})),
      parameters=sum(int(np.prod(tensor.shape)) for tensor in stored.values()),
      sha256={MODEL: digests.sha256(half / MODEL)},
    )
    text = json.dumps({**config, 'exported': exported}, indent=2)
    (half / CONFIG).write_text(text + '\n', encoding='utf-8')
    if log is not None and Path(log).exists():
      shutil.copy(log, half / 'metrics.jsonl')


def check_new(path: Path) -> None:
  """UserError where nothing can be made under this name: taken, too long, no folder around it."""
  if len(os.fsencode(path.name)) > LONGEST_NAME:
    raise UserError(f'cannot write {path}: its name has more than {LONGEST_NAME} bytes; shorten it')
  if os.path.lexists(path):
    raise UserError(f'{path} is there already: remove it or name another')
  if os.path.exists(path.parent) and not path.parent.is_dir():
    raise UserError(f'cannot write {path}: {path.parent} is not a folder; name another')
  if not os.path.isdir(path.parent):
    raise UserError(f'cannot write {path}: the folder {path.parent} does not exist; make it first')


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
  """A folder to write into, which takes its name only when the block ends well."""
  check_new(path)
  half = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    half.mkdir()
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror}; choose another folder') from None
  try:
    yield half
    os.replace(half, path)
  finally:
    shutil.rmtree(half, ignore_errors=True)
