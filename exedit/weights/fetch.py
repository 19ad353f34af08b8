"""Weights as a path on this machine: a local path, a hub id, or a folder of a store (gs://...).

A name that looks like a path is never sent to the hub: see `_missing`.

Only the files that exedit uses are fetched: the published hub repository holds every weight two or
three times, once with its optimizer state (12.6 GB).
"""

import difflib
import fnmatch
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from exedit.input_pipeline.tokenizer import FOLDER
from exedit.runtime import caches, files, progress, remote
from exedit.runtime.errors import DataError, UserError, disk_is_full, one_line

COMPONENTS = (
  *('unet', 'vae', 'scheduler', 'image_encoder', 'feature_extractor'),
  *('text_encoder', FOLDER),
)
ENDINGS = ('.safetensors', '.bin', '.ckpt', '.pt', '.pth')  # in a folder, the first kind is taken
_VARIANT = re.compile(r'\.(fp16|bf16|fp32|non_ema)[.-]')
_SHARD = re.compile(r'-\d+-of-\d+')
_FOREIGN = (
  *('training_args.*', 'optimizer.*', 'scheduler.*', 'rng_state*', 'random_states*'),
  *('openvino_*', 'tf_model*'),
)
_ADDRESS = re.compile(r'(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/|hf:/+)([^/]+/[^/?#]+)')
_ID = re.compile(r'([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?')
BESIDE = ('config.json', 'frozen.safetensors')  # the files of a workdir beside its checkpoints
KEPT = 3600.0  # seconds that a copy stays at least
SHOWN = 1e8  # bytes; smaller copies are done before a progress bar helps


def local_path(src: str | os.PathLike, revision: str | None = None) -> Path:
  """Returns the path of weights; fetches them first if they are on the hub or in a store.

  The hub's own cache, login and environment variables apply (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE,
  HF_ENDPOINT). If the hub cannot be reached, the copy in its cache is used. Files of a store
  are copied to exedit's cache folder.

  Args:
    src: a path; 'owner/name' or 'owner/name@revision' of the hub; a folder of the hub's cache; or
      gs://bucket/folder.
    revision: a branch, tag, commit or 'refs/pr/3' of the hub repository; by default 'main'.
  Returns:
    The path. For a hub id it is the folder in the cache, or the file if the repository holds a
    single checkpoint and no config.json.
  Raises:
    UserError: if there is neither such a path nor such a repository, or it cannot be fetched.
  """
  name = os.fspath(src)
  stored = name.partition('://')[0] in remote.DRIVERS and remote.is_remote(name)
  path = os.path.expanduser(name)  # the shell leaves the ~ of --weights=~/run alone
  if stored or os.path.exists(path):
    if revision:
      raise UserError(f'{name} is a path, and revision {revision} only means something on the hub')
    return _from_store(name) if stored else _in_cache(Path(path))
  match = _ID.fullmatch(name)
  if not match or match[1].endswith(ENDINGS):
    raise UserError(_missing(path))
  if not match[2] and not revision and (os.path.isdir(os.path.dirname(path)) or near(path)):
    raise UserError(f'{_missing(path)}; for a repository of the hub add its revision, {name}@main')
  if match[2] and revision and match[2] != revision:
    raise UserError(
      f'{name} says revision {match[2]}, but revision {revision} is asked for: drop one'
    )
  try:
    import huggingface_hub
  except ImportError:
    raise UserError(
      f'{name} does not exist here, and huggingface_hub, which could look it up on the hub, is not'
      ' installed: pip install huggingface_hub, or download it and give the path'
    ) from None
  return _from_hub(huggingface_hub, match[1], match[2] or revision)


def near(path: str) -> list[str]:
  """Returns the paths here that are spelt almost as `path`, which does not exist; at most three."""
  parts = PurePosixPath(path).parts
  found = [''] if parts else []
  for part in parts:
    following = []
    for folder in found:
      try:
        names = {name.lower(): name for name in files.listing(folder or '.')}
      except (OSError, ValueError):  # no folder, or a null character in the name
        continue
      if os.path.exists(os.path.join(folder, part)):
        following.append(os.path.join(folder, part))
      else:
        similar = difflib.get_close_matches(part.lower(), names, 3)
        following += [os.path.join(folder, names[name]) for name in similar]
    found = following
  return found[:3]


def _missing(path: str) -> str:
  """The line for a path that does not exist; it says what lies near it."""
  if match := _ADDRESS.match(path):
    return f'{path} is an address of the hub: name the repository alone, {match[1]}'
  if similar := near(path):
    return f'{path} does not exist: did you mean {" or ".join(similar)}?'
  folder = next((p for p in PurePosixPath(path).parents if os.path.isdir(p)), PurePosixPath())
  if folder.name not in ('', '..'):
    there = ', '.join(files.listing(folder)[:5]) or 'nothing'
    return f'{path} does not exist: {folder} has {there}'
  return f"{path} does not exist: give a file, a folder or a hub id 'owner/name'"


# From the hub


def _in_cache(path: Path) -> Path:
  """The download in a folder models--owner--name of the hub's cache; other paths as they are."""
  home = path.absolute()
  home = home.parent if home.name in ('snapshots', 'refs', 'blobs') else home
  snapshots, main = home / 'snapshots', home / 'refs' / 'main'
  if not home.name.startswith('models--') or not path.is_dir() or not snapshots.is_dir():
    return path
  found = [snapshots / name for name in files.listing(snapshots)]
  if main.is_file():
    commit = main.read_text(encoding='utf-8', errors='replace').strip()
    found = [p for p in found if p.name == commit] or found
  if len(found) == 1:
    return found[0]
  repo = '/'.join(home.name.split('--')[1:])
  what = ', '.join(str(p) for p in found[:5])
  raise UserError(
    f"{path} is the hub's cache of {repo} with several downloads: name one of {what}"
    if found
    else f"{path} is the hub's cache of {repo} without a finished download: name {repo}"
  )


def _from_hub(hub, repo: str, revision: str | None) -> Path:
  where = f'{repo}@{revision}' if revision else repo
  try:
    info = hub.HfApi().model_info(repo, revision=revision)  # one request that is not repeated
  except Exception as error:  # the libraries below raise errors of any kind
    return _cached(hub, repo, revision, where, error)
  chosen = wanted([file.rfilename for file in info.siblings or ()], where)
  patterns = [glob.escape(file) for file in chosen]
  try:
    folder = hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)
  except Exception as error:
    raise UserError(_why(where, error)) from error
  return _entry(Path(folder), chosen)


def _cached(hub, repo: str, revision: str | None, where: str, error: Exception) -> Path:
  """The copy that an earlier run left in the hub's cache, for when the hub does not answer."""
  try:
    folder = Path(
      hub.snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[])
    )
  except Exception:  # no copy either: report why the hub did not answer
    raise UserError(_why(where, error)) from error
  logging.getLogger(__name__).warning('%s: using the copy in the cache, unchecked', where)
  found = [path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()]
  return _entry(folder, wanted(found, where))


def _entry(folder: Path, chosen: Sequence[str]) -> Path:
  """The folder, or the only checkpoint of a repository that has no config beside it."""
  weights = [file for file in chosen if file.endswith(ENDINGS)]
  return folder if len(chosen) > 1 or not weights else folder / weights[0]


def wanted(paths: Sequence[str], where: str) -> list[str]:
  """Chooses the files of a repository that exedit can use.

  Of a diffusers pipeline it takes the components and their configs, of anything else the files at
  the top; in each folder the .safetensors, or else the .bin, or else the checkpoint.

  Args:
    paths: the files' paths in the repository.
    where: the repository's name, for messages.
  Raises:
    UserError: if there are no weights, or several checkpoints.
  """
  pipeline = 'model_index.json' in paths
  config = lambda p: p.name == 'merges.txt' or (p.suffix == '.json' and '.index.' not in p.name)
  chosen = [p for p in map(PurePosixPath, paths) if len(p.parts) == 1 and config(p)]
  weights = []
  for folder in COMPONENTS if pipeline else ('.',):
    inside = [p for p in map(PurePosixPath, paths) if p.parent == PurePosixPath(folder)]
    weights += of_network(inside)
    chosen += filter(config, inside) if pipeline else ()
  whole = {_SHARD.sub('', str(p)) for p in weights if p.suffix in ENDINGS}
  if not whole:
    raise UserError(f'{where} holds no weights that exedit reads: is it the right repository?')
  if not pipeline and len(whole) > 1:
    names = ', '.join(sorted(whole)[:5])
    raise UserError(f'{where} holds several checkpoints ({names}): download one, give its path')
  return [str(p) for p in chosen + weights]


def of_network(paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
  """Chooses the weight files in the folder of one network: one kind, without variants (fp16).

  Variants are taken if there is nothing else. The index of shards comes with them.
  """
  candidates = [
    p
    for p in paths
    if p.suffix in ENDINGS and not any(fnmatch.fnmatch(p.name, pattern) for pattern in _FOREIGN)
  ]
  plain = _plain(candidates)
  kind = next((ending for ending in ENDINGS if any(p.suffix == ending for p in plain)), None)
  same = [p for p in plain if p.suffix == kind]
  if not any(_SHARD.search(p.name) for p in same):
    return same
  indices = [p for p in paths if fnmatch.fnmatch(p.name, f'*{kind}.index*.json')]
  return [*same, *_plain(indices)]


def _plain(paths: Sequence[PurePosixPath]) -> Sequence[PurePosixPath]:
  """The files that are no variants, or all if there are none."""
  return [p for p in paths if not _VARIANT.search(p.name)] or paths


def _why(where: str, error: Exception) -> str:
  """The hub library's error as one line that says what to do."""
  from huggingface_hub import errors

  path = 'or download it elsewhere and give the path'
  if disk_is_full(error):
    return f'{where}: no space left for it in the cache: free some, or set HF_HOME to another disk'
  if isinstance(error, errors.GatedRepoError):
    return f'{where} is gated: accept its terms on its page and log in (hf auth login), {path}'
  if isinstance(error, errors.RevisionNotFoundError):
    return f'{where}: the repository has no such revision; check it on its page, {path}'
  if isinstance(error, errors.RepositoryNotFoundError):
    return (
      f'{where} is neither a path here nor a public repository on the hub: check the spelling, log'
      f' in if it is private (hf auth login), {path}'
    )
  if isinstance(error, errors.OfflineModeIsEnabled):
    return f'{where} is not in the cache and HF_HUB_OFFLINE is set: unset it, {path}'
  return (
    f'{where} is no path here and cannot be fetched from the hub ({type(error).__name__}:'
    f' {one_line(error)[:200]}): check the connection, {path}'
  )


# From a store


def _from_store(src: str) -> Path:
  """Copies a file, a run's newest checkpoint or a folder of weights to the cache folder.

  A copy is never changed. When the store has other versions of the files, a new copy is made.
  (fsspec's own caches give single files without their folders.)
  """
  src = src.rstrip('/')
  try:
    found = remote.find(src)
  except (OSError, DataError) as error:
    raise UserError(f'{src} cannot be read: {one_line(error)[:200]}') from error
  if not found:
    raise UserError(f'{src} does not exist: check its name, and your rights there')
  if '' not in found:  # a folder
    found = {f'/{file}': found[file] for file in _needed([*found], src)}
  sizes = {file: int(entry['size']) for file, entry in found.items()}
  versions = sorted((file, remote.version(entry)) for file, entry in found.items())
  home = caches.folder_of('stores', src)
  copy = home / hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:16]
  target = copy / src.rpartition('/')[2]
  try:
    home.mkdir(parents=True, exist_ok=True)
    with files.Lock(home / 'lock'):
      if not copy.exists():
        _copy(src, target.name, copy, sizes)
        _remove_old(home, copy)
  except OSError as error:
    why = 'no space left for it' if disk_is_full(error) else one_line(error)[:200]
    raise UserError(f'{src} cannot be copied to {target}: {why}') from error
  return target


def _needed(paths: Sequence[str], src: str) -> list[str]:
  """The files of a folder that are needed to use its weights."""
  steps = [parts for parts in (path.split('/') for path in paths) if parts[0] == 'checkpoints']
  if not steps:
    return wanted(paths, src)
  done = ['commit_success.txt']
  whole = [int(step[1]) for step in steps if step[2:] == done and step[1].isdigit()]
  if not whole:
    raise UserError(f'{src} holds no whole checkpoint yet: wait for the first')
  newest = f'checkpoints/{max(whole)}/'
  return [path for path in paths if path.startswith((newest, f'{FOLDER}/')) or path in BESIDE]


def _copy(src: str, name: str, folder: Path, sizes: Mapping[str, int]) -> None:
  """Makes `folder` with the files `src` + key of `sizes` below `name`."""
  total = sum(sizes.values())
  small = int(total < SHOWN)
  with (
    files.new_folder(folder) as half,
    progress.bar(what=src, total=total, unit='B', unit_scale=True, process=small) as bar,
  ):
    for file, size in sizes.items():
      path = f'{half}/{name}{file}'
      os.makedirs(os.path.dirname(path), exist_ok=True)
      remote.get(f'{src}{file}', path)
      bar.update(size)


def _remove_old(home: Path, newest: Path) -> None:
  """Removes other copies, unless they are so young that a process may be reading them."""
  for folder in home.iterdir():
    if folder.is_dir() and folder != newest and time.time() - folder.stat().st_mtime > KEPT:
      shutil.rmtree(folder, ignore_errors=True)
