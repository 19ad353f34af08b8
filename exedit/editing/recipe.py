"""The recipe of an edit: all that its pixels depend on, kept in and beside the output."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from exedit import images
from exedit.editing import edits, framing
from exedit.runtime import decode
from exedit.runtime import versions as runtime_versions
from exedit.runtime.errors import UserError, one_line

FORMAT = 1
LARGEST = 1 << 20  # bytes; a recipe has about two thousand
MOST = 1024  # images in a batch
VERSIONS = (
  *('exedit', 'python', 'jax', 'jaxlib', 'flax', 'numpy', 'pillow'),
  *('platform', 'device', 'processor', 'xla_flags', 'commit'),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What an output was made of. Nothing in it says when or where, so it can be made again.

  weights: source, which, revision, step and digest (see `identity`).
  inputs: name -> path (relative to the recipe's folder) and sha256 of the file.
  batch: images per device; another number may round differently.
  output: ending, height, width, channels, and sha256 of the pixels (`pixel_digest`).
  """

  weights: dict[str, Any]
  inputs: dict[str, dict[str, str]]
  settings: edits.Settings
  precision: str
  frame: framing.Frame
  batch: int
  versions: dict[str, Any]
  output: dict[str, Any]

  def asked(self) -> dict[str, Any]:
    """The part that says what was asked for: another answer to the same has the same."""
    return dict(
      weights=self.weights['digest'],
      inputs={name: entry['sha256'] for name, entry in self.inputs.items()},
      settings=dataclasses.asdict(self.settings),
      precision=self.precision,
    )

  def text(self) -> str:
    """As JSON; the same recipe has the same text."""
    return json.dumps({'exedit': FORMAT, **dataclasses.asdict(self)}, indent=2) + '\n'


def versions() -> dict[str, Any]:
  """What the numbers depend on besides the recipe's own settings."""
  found = runtime_versions.versions()
  return {name: found[name] for name in VERSIONS}


def identity(files: str, model: Mapping[str, Any]) -> str:
  """What names weights: the digest of their files, and settings that give them their meaning."""
  return hashlib.sha256(f'{files} {json.dumps(model, sort_keys=True)}'.encode()).hexdigest()


def fingerprint(path: str | os.PathLike) -> str:
  """SHA-256 of a file's bytes."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def pixel_digest(pixels: UInt8[np.ndarray, 'h w c']) -> str:
  """SHA-256 of an image's shape and bytes."""
  sha = hashlib.sha256('x'.join(map(str, pixels.shape)).encode())
  sha.update(np.ascontiguousarray(pixels).data)
  return sha.hexdigest()


def describe(path: str, pixels: UInt8[np.ndarray, 'h w c']) -> dict[str, Any]:
  """The recipe's `output`."""
  height, width, channels = pixels.shape
  ending = os.path.splitext(path)[1].lower()
  sha = pixel_digest(pixels)
  return dict(ending=ending, height=height, width=width, channels=channels, sha256=sha)


def relative(path: str, folder: str) -> str:
  """The path seen from a folder; what does not exist (the id of a hub) stays as it is."""
  if not os.path.exists(path):
    return path
  try:
    return os.path.relpath(path, folder or '.')
  except ValueError:  # another drive
    return os.path.abspath(path)


def locate(path: str, folder: str) -> str:
  """The inverse of `relative`: a path in a recipe of this folder, seen from here."""
  seen = os.path.normpath(os.path.join(folder, path))
  return seen if os.path.exists(seen) else path


# Reading


def read(path: str) -> Recipe:
  """The recipe in `out.json`, or in the metadata of `out.png`.

  Raises:
    UserError: where there is none, or a damaged one.
  """
  ending = os.path.splitext(path)[1].lower()
  if not os.path.isfile(path):
    raise UserError(f'{path} does not exist: name the recipe of an edit, such as out.json')
  if ending == '.png':
    text = _from_png(path)
  elif ending == '.json':
    text = _from_json(path)
  else:
    raise UserError(f'{path} holds no recipe: name the .json beside it, or a .png of exedit')
  try:
    return parse(json.loads(text))
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path} is no recipe of exedit, or damaged: {one_line(error)}') from None


def _from_png(path):
  with decode.opened(path) as file:
    text = file.info.get(images.TEXT)
  if text is None:
    raise UserError(f'{path} carries no recipe: name the .json that was written beside it')
  return str(text)


def _from_json(path):
  with open(path, 'rb') as file:
    data = file.read(LARGEST + 1)
  if len(data) > LARGEST:
    raise UserError(f'{path} is no recipe of exedit: it has more than {LARGEST} bytes')
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no recipe of exedit: it is not text ({error.reason})') from None


def parse(found: Any) -> Recipe:
  """The recipe of this JSON value; ValueError where something is missing or cannot be."""
  names = [field.name for field in dataclasses.fields(Recipe)]
  top = _take(found, '', dict(exedit=int, batch=int, precision=str, **_dicts(names)))
  if top['exedit'] > FORMAT:
    raise ValueError(f'it is of format {top["exedit"]}, this exedit knows {FORMAT}: update it')
  weights = _take(top['weights'], 'weights', dict(source=str, which=str, digest=str))
  for entry in (inputs := top['inputs']):
    _take(inputs[entry], f'inputs.{entry}', dict(path=str, sha256=str))
  if not set(edits.NEEDED) <= set(inputs) <= set(edits.INPUTS):
    raise ValueError(f'its inputs are {", ".join(inputs)}, not {", ".join(edits.NEEDED)}')
  output = dict(ending=str, height=int, width=int, channels=int, sha256=str)
  ending = _take(top['output'], 'output', output)['ending']
  if ending not in images.FORMATS:  # it becomes part of a path
    raise ValueError(f'output.ending is {ending!r:.40}')
  return Recipe(
    weights=weights | {n: v for n, v in dict(revision=None, step=0).items() if n not in weights},
    inputs=inputs,
    settings=_settings(top['settings']),
    precision=top['precision'],
    frame=_frame(top['frame'], top['output']),
    batch=_within('batch', top['batch'], 1, MOST),
    versions=top['versions'],
    output=top['output'],
  )


def _dicts(names):
  return {name: dict for name in names if name not in ('batch', 'precision')}


def _take(found, where, kinds):
  """The mapping, once every key of `kinds` is known to be there and of its kind."""
  if not isinstance(found, dict):
    raise ValueError(f'{where or "it"} is no object')
  for name, kind in kinds.items():
    path = f'{where}.{name}' if where else name
    if name not in found:
      raise ValueError(f'{path} is missing')
    if not isinstance(found[name], kind) or isinstance(found[name], bool):
      raise ValueError(f'{path} is {found[name]!r:.40}')
  return found


def _settings(found):
  known = [field.name for field in dataclasses.fields(edits.Settings)]
  for name in found:
    if name not in known:
      raise ValueError(f'settings.{name} is not a setting of this exedit: update it')
  _take(found, 'settings', dict(steps=int, scale=(int, float), sampler=str))
  try:
    return edits.Settings(**{name: edits.value(name, value) for name, value in found.items()})
  except UserError as error:
    raise ValueError(f'settings.{error}') from None


def _frame(found, output):
  names = ('top', 'left', 'height', 'width')
  _take(found, 'frame', dict.fromkeys(names, int) | dict(size=list))
  height, width = (_within(f'output.{n}', output[n], 1, 10**5) for n in ('height', 'width'))
  _within('frame.height', found['height'], 1, height)
  _within('frame.width', found['width'], 1, width)
  _within('frame.top', found['top'], 0, height - found['height'])
  _within('frame.left', found['left'], 0, width - found['width'])
  size = found['size']
  if len(size) != 2 or not all(type(n) is int and 1 <= n <= 2**14 for n in size):
    raise ValueError(f'frame.size is {size!r:.40}')
  return framing.Frame(**{name: found[name] for name in names}, size=tuple(size))


def _within(name, value, low, high):
  if not low <= value <= high:
    raise ValueError(f'{name} is {value}, not from {low} to {high}')
  return value


# Comparing


def finished(path: str, asked: Mapping[str, Any]) -> str:
  """'yes', 'no', or 'changed' for an output that answers this but was altered by someone since.

  A JPEG's pixels are not those that were encoded, so it counts as finished where it decodes.
  """
  try:
    recipe = read(images.recipe_path(path))
  except (UserError, OSError):
    return 'no'
  pixels = _pixels(path)
  if pixels is None or recipe.asked() != dict(asked):
    return 'no'
  exact = pixels.ndim == 3 and pixel_digest(pixels) == recipe.output['sha256']
  lossy = recipe.output['ending'] in ('.jpg', '.jpeg')
  return 'yes' if exact or lossy else 'changed'


def forget(path: str) -> None:
  """Remove our own recipe beside an output that is about to be made again without one."""
  if stranger(path) is None:
    with contextlib.suppress(FileNotFoundError):
      os.remove(images.recipe_path(path))


def stranger(path: str) -> str | None:
  """Why this output's recipe may not be written, where its place holds a file of somebody else."""
  place = images.recipe_path(path)
  if not os.path.lexists(place):
    return None
  ours = False
  if os.path.isfile(place):  # a pipe would be waited for
    with contextlib.suppress(OSError), open(place, 'rb') as file:
      ours = b'"exedit"' in file.read(64)
  return None if ours else f'{place} is there and no recipe: use --norecipe or another --output'


def other_versions(recipe: Recipe, now: Mapping[str, Any]) -> list[str]:
  """'jax was 0.10.2 and is 0.11.0', ... for all that differs."""
  names = [*recipe.versions, *(name for name in now if name not in recipe.versions)]
  return [
    f'{name} was {recipe.versions.get(name)} and is {now.get(name)}'
    for name in names
    if recipe.versions.get(name) != now.get(name)
  ]


def compare(old: Recipe, new: Recipe, was: str | None, now: str) -> str:
  """'identical', or how far the pixels are from the recorded ones, perhaps in the file `was`."""
  if new.output['sha256'] == old.output['sha256']:
    return 'identical to the recorded pixels'
  a, b = (None if path is None else _pixels(path) for path in (was, now))
  if a is None or b is None or a.shape != b.shape:
    return 'not identical to the recorded pixels, which are not here to be compared with'
  off = np.abs(a.astype(np.int16) - b)
  share, square = (off > 0).any(-1).mean(), float((off.astype(float) ** 2).mean())
  if not square:
    return 'not identical to the recorded pixels, though identical to those in the file beside it'
  return (
    f'not identical: {share:.2%} of the pixels differ, by at most {off.max()} of 255'
    f' (PSNR {10 * math.log10(255**2 / square):.1f} dB)'
  )


def _pixels(path):
  """A file's own pixels [h w c], None where they cannot be had."""
  try:
    with decode.opened(path) as file:
      return np.asarray(file)
  except UserError:
    return None
