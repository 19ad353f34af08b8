"""A hub id such as 'Fantasy-Studio/Paint-by-Example@refs/pr/3' as a path on this machine.

Only what exedit can use is fetched: the published repository holds every weight two or three times
over, one of them with its optimizer state (12.6 GB).
"""

import fnmatch
import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from exedit.runtime import remote
from exedit.runtime.errors import UserError, disk_is_full, one_line
from exedit.weights import stores

COMPONENTS = ('unet', 'vae', 'image_encoder', 'feature_extractor', 'scheduler')
ENDINGS = ('.safetensors', '.bin', '.ckpt', '.pt', '.pth')  # the first kind in a folder is taken
_VARIANT = re.compile(r'\.(fp16|bf16|fp32|non_ema)[.-]')
_SHARD = re.compile(r'-\d+-of-\d+')
_BESIDE = ('training_args.*', 'optimizer.*', 'scheduler.*', 'rng_state*', 'random_states*')
_FOREIGN = (*_BESIDE, 'openvino_*', 'tf_model*')
_ID = re.compile(r'([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?')


def resolve(src: str | os.PathLike, revision: str | None = None) -> Path:
  """A path that exists as it is; 'owner/name' or 'owner/name@revision' fetched from the hub.

  What is in a store (gs://bucket/run) is copied to the cache folder. The hub's own cache, login and
  environment variables count (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT); what is in its cache
  serves when the hub cannot be reached.

  Args:
    src: a path, or a hub id.
    revision: a branch, tag, commit or 'refs/pr/3'; the hub's default is 'main'.
  Returns:
    The path; for a hub id the folder in the cache, or the file where the repository holds a single
    checkpoint and no config.json.
  Raises:
    UserError: where there is neither such a path nor such a repository, or it cannot be fetched.
  """
  name = os.fspath(src)
  stored = name.partition('://')[0] in remote.DRIVERS and remote.is_remote(name)
  if stored or os.path.exists(name):
    if revision:
      raise UserError(f'{name} is a path, and revision {revision} only means something on the hub')
    return stores.fetch(name, wanted) if stored else Path(name)
  match = _ID.fullmatch(name)
  if not match or match[1].endswith(ENDINGS):
    raise UserError(f"{name} does not exist: give a file, a folder or a hub id 'owner/name'")
  repo, revision = match[1], _one_revision(name, match[2], revision)
  try:
    import huggingface_hub
  except ImportError:
    raise UserError(
      f'{name} does not exist here, and huggingface_hub, which could look it up on the hub, is not'
      ' installed: pip install huggingface_hub, or download it and give the path'
    ) from None
  return _fetch(huggingface_hub, repo, revision)


def _one_revision(name: str, inside: str | None, revision: str | None) -> str | None:
  if inside and revision and inside != revision:
    raise UserError(
      f'{name} says revision {inside}, but revision {revision} is asked for: drop one'
    )
  return inside or revision


def _fetch(hub, repo: str, revision: str | None) -> Path:
  """What exedit wants of a repository, in the hub's cache; from there alone if need be."""
  where = f'{repo}@{revision}' if revision else repo
  try:
    info = hub.HfApi().model_info(repo, revision=revision)  # one request, and no waiting to retry
  except Exception as error:  # the network, the server, the login: libraries below raise anything
    return _cached(hub, repo, revision, where, error)
  chosen = wanted([file.rfilename for file in info.siblings or ()], where)
  patterns = [glob.escape(file) for file in chosen]
  try:
    folder = hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)
  except Exception as error:
    raise UserError(_why(where, error)) from error
  return _entry(Path(folder), chosen)


def _cached(hub, repo: str, revision: str | None, where: str, error: Exception) -> Path:
  """The copy that an earlier run left, where the hub cannot be asked."""
  try:
    folder = Path(
      hub.snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[])
    )
  except Exception:  # nothing there: what counts is why the hub could not be asked
    raise UserError(_why(where, error)) from error
  logging.getLogger(__name__).warning('%s: the copy in the cache, unchecked', where)
  files = [path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()]
  return _entry(folder, wanted(files, where))


def _entry(folder: Path, files: Sequence[str]) -> Path:
  """The folder, or the one checkpoint of a repository that has no config beside it."""
  weights = [file for file in files if file.endswith(ENDINGS)]
  return folder if len(files) > 1 or not weights else folder / weights[0]


def wanted(files: Sequence[str], where: str) -> list[str]:
  """Which of a repository's files exedit has a use for.

  A diffusers pipeline gives its components and their configs; anything else the files at its top.
  In each folder the .safetensors are taken, or else the .bin, or else the checkpoint.

  Args:
    files: their paths in the repository.
    where: the repository's name, for messages.
  Raises:
    UserError: where there is nothing for us, or several checkpoints and no saying which.
  """
  top = [PurePosixPath(file) for file in files if '/' not in file]
  pipeline = 'model_index.json' in files
  chosen = [p for p in top if p.suffix == '.json' and not p.name.endswith('.index.json')]
  folders = COMPONENTS if pipeline else ('.',)
  weights = []
  for folder in folders:
    inside = [p for p in map(PurePosixPath, files) if p.parent == PurePosixPath(folder)]
    weights += _weights(inside)
    if pipeline:
      chosen += [p for p in inside if p.suffix == '.json' and not p.name.endswith('.index.json')]
  whole = {_SHARD.sub('', str(p)) for p in weights if p.suffix in ENDINGS}
  if not whole:
    raise UserError(f'{where} holds no weights that exedit reads: is it the right repository?')
  if not pipeline and len(whole) > 1:
    names = ', '.join(sorted(whole)[:5])
    raise UserError(f'{where} holds several checkpoints ({names}): download one, give its path')
  return [str(p) for p in chosen + weights]


def _weights(paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
  """One kind of weights of one folder, with the index of its shards; not their half-size twins."""
  candidates = [
    p
    for p in paths
    if p.suffix in ENDINGS and not any(fnmatch.fnmatch(p.name, pattern) for pattern in _FOREIGN)
  ]
  plain = [p for p in candidates if not _VARIANT.search(p.name)] or candidates
  kind = next((ending for ending in ENDINGS if any(p.suffix == ending for p in plain)), None)
  same = [p for p in plain if p.suffix == kind]
  sharded = any(_SHARD.search(p.name) for p in same)
  return same + [p for p in paths if sharded and p.name.endswith(f'{kind}.index.json')]


def _why(where: str, error: Exception) -> str:
  """The library's error as one line with what to do."""
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
