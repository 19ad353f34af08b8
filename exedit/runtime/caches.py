"""Where what can be made again is kept: a folder of this user's."""

import hashlib
import os
from pathlib import Path


def folder(*parts: str) -> Path:
  """~/.cache/exedit or, where XDG_CACHE_HOME says so, another; nothing is made."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return Path(base, 'exedit', *parts)


def folder_of(kind: str, name: str) -> Path:
  """The folder of one thing of a kind, whatever characters its name has."""
  return folder(kind, hashlib.sha256(name.encode()).hexdigest()[:16])
