"""Small files that are written whole or not at all."""

import json
import os
import re
from pathlib import Path
from typing import Any


def write_text(path: str | os.PathLike, text: str) -> None:
  """Write a file so that it is there whole or not at all."""
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    Path(temporary).write_text(text, encoding='utf-8')
    os.replace(temporary, path)
  finally:
    Path(temporary).unlink(missing_ok=True)


def sweep(workdir: str | os.PathLike) -> None:
  """Remove what a kill has left of files in writing; only for who holds the workdir alone."""
  for path in [*Path(workdir).glob('*.tmp'), *Path(workdir).glob('samples/*.tmp')]:
    if re.fullmatch(r'.+\.\d+\.tmp', path.name):
      path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """A JSON file for people and programs, written whole or not at all."""
  write_text(path, json_text(value))


def json_text(value: Any) -> str:
  """As JSON, for people too."""
  return json.dumps(value, indent=2) + '\n'
