"""The user's cache folder, for files that can be made again."""

import hashlib
import os
from pathlib import Path


def folder(*parts: str) -> Path:
  """A path in ~/.cache/exedit, or in $XDG_CACHE_HOME/exedit; it is not created."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return Path(base, 'exedit', *parts)


def folder_of(kind: str, name: str) -> Path:
  """The cache folder of one thing of a kind; its name may contain any character."""
  return folder(kind, hashlib.sha256(name.encode()).hexdigest()[:16])
