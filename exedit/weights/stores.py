"""Weights in an object store (gs://bucket/run) as a copy in the user's cache folder."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from exedit.input_pipeline.errors import DataError
from exedit.runtime import caches, remote
from exedit.runtime.errors import UserError, disk_is_full, one_line

BESIDE = ('config.json', 'frozen.safetensors')  # of checkpoints in a workdir
VERSIONS = 'versions.json'  # of the copies, beside their folder: name, size and number
KEPT = 3600.0  # seconds; what the store no longer has stays here as long
SHOWN = 1e8  # bytes; copying less is soon done


def fetch(src: str, wanted: Callable[[Sequence[str], str], list[str]]) -> Path:
  """The copy of a file, of a run's workdir or of a folder of weights; only what changed is fetched.

  Of a workdir that is the newest whole checkpoint, of another folder those of its files, here by
  their paths in it, that `wanted(files, src)` takes. What the store no longer has goes, later.

  Raises:
    UserError: where there is nothing of that name, or it cannot be read or kept.
  """
  src = src.rstrip('/')
  try:
    found = remote.find(src)
  except (OSError, DataError) as error:
    raise UserError(f'{src} cannot be read: {one_line(error)[:200]}') from error
  if not found:
    raise UserError(f'{src} does not exist: check its name, and your rights there')
  home = caches.folder_of('stores', src)
  name = src.rpartition('/')[2]
  if '' in found:
    found = {name: found['']}
    source, target = src.rpartition('/')[0], home
  else:
    found = {file: found[file] for file in _chosen([*found], src, wanted)}
    source, target = src, home / name
  versions = {file: [int(entry['size']), remote.version(entry)] for file, entry in found.items()}
  try:
    with _alone(home):
      _copy(source, target, versions, home / VERSIONS)
  except OSError as error:
    why = 'no space left for it' if disk_is_full(error) else one_line(error)[:200]
    raise UserError(f'{src} cannot be copied to {target}: {why}') from error
  return target / name if target == home else target


def _chosen(files: Sequence[str], src: str, wanted: Callable) -> list[str]:
  """The files of a folder that are needed to use its weights."""
  steps = [parts for parts in (file.split('/') for file in files) if parts[0] == 'checkpoints']
  if not steps:
    return wanted(files, src)
  done = ['commit_success.txt']
  whole = [int(step[1]) for step in steps if step[2:] == done and step[1].isdigit()]
  if not whole:
    raise UserError(f'{src} holds no whole checkpoint yet: wait for the first')
  newest = f'checkpoints/{max(whole)}/'
  return [f for f in files if f.startswith(newest) or f in BESIDE]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
  """One process at a time."""
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _copy(source: str, target: Path, versions: Mapping[str, list[int]], book: Path) -> None:
  """Make the files of `target` those of these versions; `book` remembers which were copied."""
  from tqdm import tqdm

  try:
    known = json.loads(book.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    known = {}
  for folder, folders, files in os.walk(target, topdown=False) if target != book.parent else ():
    for name in files:
      path = Path(folder, name)
      young = time.time() - path.stat().st_mtime < KEPT  # it may be being read
      if path.relative_to(target).as_posix() not in versions and not young:
        path.unlink()
    for name in folders:
      with contextlib.suppress(OSError):  # it is not empty
        os.rmdir(os.path.join(folder, name))
  wanted = [n for n, v in versions.items() if known.get(n) != v or _size(target / n) != v[0]]
  total = sum(versions[name][0] for name in wanted)
  unseen = total < SHOWN
  with tqdm(total=total, desc=source, unit='B', unit_scale=True, disable=unseen) as bar:
    for name in wanted:
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      _replace(target / name, lambda half, name=name: remote.get(f'{source}/{name}', str(half)))
      known[name] = versions[name]
      text = json.dumps({name: known[name] for name in versions if name in known})
      _replace(book, lambda half, text=text: half.write_text(text, encoding='utf-8'))
      bar.update(versions[name][0])


def _size(path: Path) -> int:
  return path.stat().st_size if path.is_file() else -1


def _replace(path: Path, write: Callable[[Path], object]) -> None:
  """A file that is there whole or not at all."""
  half = path.with_name(f'{path.name}.tmp')
  try:
    write(half)
    os.replace(half, path)
  finally:
    half.unlink(missing_ok=True)
