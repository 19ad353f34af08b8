"""The recipe of an edit: everything that its pixels depend on, kept in the output and beside it."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from exedit import images, systems
from exedit.editing import framing, prompt_settings
from exedit.editing.settings import LARGEST_BATCH, STRENGTH
from exedit.runtime import decode
from exedit.runtime import versions as runtime_versions
from exedit.runtime.errors import UserError, one_line
from exedit.systems import System

FORMAT = 1
# Settings that came later, as a recipe without them means them.
OLDER = dict(
  spacing='leading', scale_mask=False, guidance_interval='0,1', inversion='direct', cross='0.4',
  alignment='refine', words='', blend='source', reweight='',
  show_words=False,
)  # fmt: skip
LARGEST_FILE = 1 << 20  # bytes; a recipe has about two thousand
VERSIONS = (
  *('exedit', 'python', 'jax', 'jaxlib', 'flax', 'numpy', 'pillow'),
  *('platform', 'device', 'processor', 'xla_flags', 'commit'),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What an output was made from. It contains no time and no place, so it can be made again.

  weights: source, which, revision, step, concepts if there are any (see `concepts`), and digest
    (see `identity`).
  inputs: by name, the path of a file (seen from the recipe's folder) or the text, and its sha256.
  settings: of the edit, as JSON values; see `settings_of`.
  batch: rows for each device; another number may round differently.
  output: ending, height, width, channels, and sha256 of the pixels (`pixel_digest`).
  """

  weights: dict[str, Any]
  inputs: dict[str, dict[str, str]]
  settings: dict[str, Any]
  precision: str
  frame: framing.Frame
  batch: int
  versions: dict[str, Any]
  output: dict[str, Any]

  def asked(self) -> dict[str, Any]:
    """What was asked for. Two recipes with the same answer to this describe the same edit."""
    return asked(self.weights['digest'], self.inputs, self.settings, self.precision)

  def text(self) -> str:
    """The recipe as JSON; equal recipes have equal texts."""
    return json.dumps({'exedit': FORMAT, **dataclasses.asdict(self)}, indent=2) + '\n'


def asked(
  digest: str, inputs: Mapping[str, Mapping[str, str]], settings: Mapping[str, Any], precision: str
) -> dict[str, Any]:
  """`Recipe.asked` of these parts of a recipe."""
  return dict(
    weights=digest,
    inputs={name: entry['sha256'] for name, entry in inputs.items()},
    settings={**OLDER, **as_used(settings, inputs)},
    precision=precision,
  )


def as_used(settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
  """The settings with the strength that counts if none is given, and a target's only sampler."""
  found, target = dict(settings), 'target' in inputs
  if found.get('strength', 0) is None:
    found['strength'] = prompt_settings.STRENGTH if target else STRENGTH
  return found | (dict(sampler='ddim') if target else {})


def versions() -> dict[str, Any]:
  """The versions that the pixels may depend on."""
  found = runtime_versions.versions()
  return {name: found[name] for name in VERSIONS}


def identity(files: str, model: Mapping[str, Any], tokenizer: str = '') -> str:
  """The digest of weights: of their files, and of what gives them a meaning.

  model: its settings. tokenizer: the digest of its files; '' for a system without texts.
  """
  parts = [files, json.dumps(model, sort_keys=True), *filter(None, [tokenizer])]
  return hashlib.sha256(' '.join(parts).encode()).hexdigest()


def text_digest(text: str) -> str:
  """SHA-256 of a text."""
  return hashlib.sha256(text.encode()).hexdigest()


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
  """The path seen from a folder; a path that does not exist (the id of a hub) stays as it is."""
  if not os.path.exists(path):
    return path
  try:
    return os.path.relpath(path, folder or '.')
  except ValueError:  # another drive
    return os.path.abspath(path)


def concepts(named: Sequence[tuple[str, str]], folder: str) -> dict[str, list[dict[str, str]]]:
  """The entry of a recipe's weights for concepts, by word and path; {} without concepts."""
  found = [dict(word=word, path=relative(path, folder)) for word, path in named]
  return dict(concepts=found) if found else {}


def locate(path: str, folder: str) -> str:
  """The path of a recipe in this folder, seen from the working directory: `relative`'s inverse."""
  seen = os.path.normpath(os.path.join(folder, path))
  return seen if os.path.exists(seen) else path


# Reading


def read(path: str) -> Recipe:
  """The recipe in `out.json`, or in the metadata of `out.png`.

  Raises:
    UserError: if there is no recipe, or a damaged one.
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
    data = file.read(LARGEST_FILE + 1)
  if len(data) > LARGEST_FILE:
    raise UserError(f'{path} is no recipe of exedit: it has more than {LARGEST_FILE} bytes')
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no recipe of exedit: it is not text ({error.reason})') from None


def parse(found: Any) -> Recipe:
  """The recipe of this JSON value; ValueError if something is missing or impossible."""
  _check_kind(found, KINDS, '')
  if found['exedit'] > FORMAT:
    raise ValueError(f'it is of format {found["exedit"]}, this exedit knows {FORMAT}: update it')
  for name, entry in found['inputs'].items():
    content = 'text' if isinstance(entry, dict) and 'text' in entry else 'path'
    _check_kind(entry, {content: str, 'sha256': str}, f'inputs.{name}')
  ending, batch = found['output']['ending'], found['batch']
  if ending not in images.FORMATS:  # it becomes part of a path
    raise ValueError(f'output.ending is {ending!r:.40}')
  if not 1 <= batch <= LARGEST_BATCH:
    raise ValueError(f'batch is {batch}, not from 1 to {LARGEST_BATCH}')
  values = {field.name: found[field.name] for field in dataclasses.fields(Recipe)}
  for entry in found['weights'].get('concepts', ()):
    _check_kind(entry, dict(word=str, path=str), 'weights.concepts')
  for name, default in dict(revision=None, step=0).items():
    found['weights'].setdefault(name, default)
  return Recipe(**{**values, 'frame': _frame(found['frame'], found['output'])})


KINDS = dict(
  exedit=int,
  weights=dict(source=str, which=str, digest=str),
  inputs=dict,
  settings=dict,
  precision=str,
  frame=dict(top=int, left=int, height=int, width=int, size=list),
  batch=int,
  versions=dict,
  output=dict(ending=str, height=int, width=int, channels=int, sha256=str),
)


def _check_kind(found, kind, path):
  """ValueError unless the value is of its kind: a type, or kinds by the names of an object."""
  if not isinstance(kind, dict):
    if not isinstance(found, kind) or isinstance(found, bool):
      raise ValueError(f'{path} is {found!r:.40}')
    return
  if not isinstance(found, dict):
    raise ValueError(f'{path or "it"} is no object')
  for name, inner in kind.items():
    place = f'{path}.{name}' if path else name
    if name not in found:
      raise ValueError(f'{place} is missing')
    _check_kind(found[name], inner, place)


def _frame(found, output):
  """The frame; ValueError unless it lies in the output."""
  height, width = output['height'], output['width']
  limits = dict(
    height=(1, height), top=(0, height - found['height']),
    width=(1, width), left=(0, width - found['width']),
  )  # fmt: skip
  for name, (low, high) in limits.items():
    if not low <= found[name] <= min(high, 10**5):
      raise ValueError(f'frame.{name} is {found[name]}, not from {low} to {high}')
  size = found['size']
  if len(size) != 2 or not all(type(n) is int and 1 <= n <= 2**14 for n in size):
    raise ValueError(f'frame.size is {size!r:.40}')
  return framing.Frame(**{name: found[name] for name in limits}, size=(size[0], size[1]))


def settings_of(recipe: Recipe, system: System, path: str) -> Any:
  """The settings of a recipe as the system's dataclass; also checks the names of its inputs.

  path: of the recipe, for the message.

  Raises:
    UserError: for inputs or settings that the system does not have, for a value that is not
      allowed, and for a missing setting of the network.
  """
  damaged = f'{path} is no recipe of exedit, or damaged'
  names = [entry.name for entry in system.inputs]
  needed = [entry.name for entry in system.inputs if entry.required]
  if not set(needed) <= set(recipe.inputs) <= set(names):
    raise UserError(
      f'{damaged}: its inputs are {", ".join(recipe.inputs)}, not {", ".join(needed)}'
    )
  fields = {field.name: field for field in dataclasses.fields(system.settings)}
  settings = {n: v for n, v in OLDER.items() if n in fields} | recipe.settings
  for name, value in settings.items():
    if name not in fields:
      raise UserError(f'{damaged}: settings.{name} is not a setting of this exedit: update it')
    if isinstance(value, str) and fields[name].type is not str:
      raise UserError(f'{damaged}: settings.{name} is {value!r:.40}')
  for name, field in fields.items():
    if field.metadata['network'] and field.default is not None and settings.get(name) is None:
      raise UserError(f'{damaged}: settings.{name} is missing')
  try:
    return systems.make_settings(system, settings)
  except UserError as error:
    raise UserError(f'{damaged}: settings.{error}') from None


# Comparing


def finished(path: str, asked: Mapping[str, Any]) -> str:
  """'yes', 'no', or 'changed' for an output of this edit that somebody has changed since.

  A JPEG file does not keep the exact pixels, so it counts as finished if it can be decoded.
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
  """Removes the recipe beside an output that is about to be made again without a recipe."""
  if stranger(path) is None:
    with contextlib.suppress(FileNotFoundError):
      os.remove(images.recipe_path(path))


def stranger(path: str) -> str | None:
  """The reason why this output's recipe may not be written: another file has its name."""
  place = images.recipe_path(path)
  if not os.path.lexists(place):
    return None
  ours = False
  if os.path.isfile(place):  # opening a pipe would block
    with contextlib.suppress(OSError), open(place, 'rb') as file:
      ours = b'"exedit"' in file.read(64)
  return None if ours else f'{place} is there and no recipe: use --norecipe or another --output'


def other_versions(recipe: Recipe, now: Mapping[str, Any]) -> list[str]:
  """One line such as 'jax was 0.10.2 and is 0.11.0' for each version that differs."""
  names = [*recipe.versions, *(name for name in now if name not in recipe.versions)]
  return [
    f'{name} was {recipe.versions.get(name)} and is {now.get(name)}'
    for name in names
    if recipe.versions.get(name) != now.get(name)
  ]


def compare(old: Recipe, new: Recipe, was: str | None, now: str) -> str:
  """How far the new pixels are from the recorded ones: in words for the user.

  was: the file with the recorded pixels, if it still exists. now: the new file.
  """
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
  """A file's own pixels [h w c]; None if it cannot be decoded."""
  try:
    with decode.opened(path) as file:
      return np.asarray(file)
  except UserError:
    return None
