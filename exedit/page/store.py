"""The data folder of the page: sessions with their pictures, masks, results and jobs, on the disk.

FOLDER/exedit-page.json says that the folder is ours. A session is a folder in FOLDER/sessions; in
it each photo has a folder with everything that is made of it, so that a recipe names its files
without a path. No name from outside becomes part of a path: ids are made here, and checked.
"""

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from exedit.runtime import decode, files, parallel
from exedit.runtime.errors import UserError

MARKER = 'exedit-page.json'
FORMAT = 1
ID = re.compile(r'[0-9a-f]{32}')
RESULT = re.compile(r'([0-9a-f]{32})-(\d{1,3})')
ASKED = '.asked-'  # begins the names of folders that live for one request
TEXTS = 'texts'  # the folder of what is made of texts alone
RECORD = 'picture.json'
SIDES = (256, 512, 1024, 2048, 4096)  # of previews
ENDINGS = {'JPEG': '.jpg', 'PNG': '.png', 'WEBP': '.webp', 'TIFF': '.tif', 'GIF': '.gif'}
FREE = 64 << 20  # bytes that stay free on the disk
DECODING = parallel.PixelBudget(2**27)  # at once, which takes about 2 GB


class Missing(UserError):
  """There is nothing with this id in the session."""


class Store:
  """The data folder; one process uses it at a time."""

  def __init__(self, folder: str | os.PathLike):
    """Begins a new folder, or continues one of this program.

    Raises:
      UserError: for a folder with other files, and for one that another server uses.
    """
    self.folder = Path(os.path.abspath(folder))
    files.check_folder(self.folder, '--folder')
    marker = self.folder / MARKER
    if self.folder.is_dir() and files.listing(self.folder) and not marker.is_file():
      raise UserError(f'{self.folder} has files of others in it: name a new --folder')
    self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    self._lock = files.Lock(self.folder / '.lock')
    try:
      self._lock.acquire(wait=False)
    except files.Taken:
      raise UserError(
        f'{self.folder} is used by another server ({self._lock.holder()}): stop it, or name '
        'another --folder'
      ) from None
    self.secret = self._read_marker(marker)
    self.sessions = self.folder / 'sessions'
    self.sessions.mkdir(exist_ok=True)

  def _read_marker(self, marker: Path) -> str:
    """The folder's own secret, from which keys of links are made."""
    if not marker.exists():
      found = dict(format=FORMAT, secret=secrets.token_hex(32))
      files.write_json(marker, {'exedit page': found})
      marker.chmod(0o600)
    try:
      found = json.loads(marker.read_text())['exedit page']
      known, secret = found['format'] <= FORMAT, found['secret']
    except (ValueError, KeyError, TypeError):
      raise UserError(f'{marker} is damaged: name another --folder') from None
    if not known:
      raise UserError(f'{marker} is of a newer exedit: update it, or name another --folder')
    return secret

  def close(self) -> None:
    """Lets another server use the folder."""
    self._lock.release()

  def clean(self, days: float) -> None:
    """Removes sessions without a change for this many days, and what killed servers left."""
    for path in self.folder.glob(f'{ASKED}*'):
      shutil.rmtree(path, ignore_errors=True)
    for session in self.sessions.iterdir():
      if not ID.fullmatch(session.name):
        continue
      newest = max((p.stat().st_mtime for p in [session, *session.iterdir()]), default=0)
      if time.time() - newest > days * 86400:
        shutil.rmtree(session, ignore_errors=True)
        continue
      for folder in [session, *session.iterdir()]:
        files.sweep(folder, alone=True)

  def session(self, name: str) -> Path:
    """The folder of a session, which need not exist."""
    assert ID.fullmatch(name), name
    return self.sessions / name

  # Pictures

  @contextlib.contextmanager
  def new_picture(self, session: str) -> Iterator[tuple[str, Path]]:
    """A new id and its folder to fill; a failed block leaves nothing."""
    files.require_space(self.sessions, FREE, 'or try again later')
    name = secrets.token_hex(16)
    parent = self.session(session)
    parent.mkdir(mode=0o700, exist_ok=True)
    folder = parent / name
    with files.new_folder(folder) as temporary:
      yield name, temporary

  def describe(self, name: str, folder: Path, given: Path, said: str, **more: Any) -> dict:
    """Checks an uploaded file by decoding it, and gives it its place and its record in the folder.

    said: the name that the user's file had, for messages.

    Raises:
      UserError: for a file that is no picture, too large, or damaged.
    """
    header, kind, notes = inspect(str(given), said)
    place = folder / f'photo{ENDINGS.get(kind, ".picture")}'
    os.replace(given, place)
    height, width = header.size
    record = dict(
      id=name, name=said, width=width, height=height, bytes=place.stat().st_size, format=kind,
      notes=notes, from_result=None, created=time.time(), file=place.name, hidden=False,
    )  # fmt: skip
    record |= more
    files.write_json(folder / RECORD, record)
    return record

  def pictures(self, session: str) -> list[dict]:
    """The records of a session's pictures, the newest first."""
    paths = self.session(session).glob(f'*/{RECORD}')
    found = [read_record(path) for path in paths if ID.fullmatch(path.parent.name)]
    shown = [record for record in found if record and not record['hidden']]
    return sorted(shown, key=lambda record: -record['created'])

  def picture(self, session: str, name: Any) -> tuple[dict, Path]:
    """The record of a picture and the path of its file."""
    if isinstance(name, str) and ID.fullmatch(name):
      folder = self.session(session) / name
      record = read_record(folder / RECORD)
      if record and not record['hidden']:
        return record, folder / record['file']
    raise Missing(f'there is no picture {name!r:.40} in this session: upload it again')

  def remove(self, session: str, name: str, used: bool) -> None:
    """Removes a picture. used: results are made of it; then it stays, but is no longer listed."""
    record, path = self.picture(session, name)
    if used:
      files.write_json(path.parent / RECORD, record | dict(hidden=True))
    else:
      shutil.rmtree(path.parent)


def inspect(path: str, name: str) -> tuple[decode.Header, str, list[str]]:
  """The header and format of a picture, which is decoded as a whole, and what to tell about it.

  Raises:
    UserError: see `decode.opened`.
  """
  header, notes = decode.header(path, name), []
  with DECODING.taken(math.prod(header.size)), decode.opened(path, name) as file:
    kind, frames = str(file.format), getattr(file, 'n_frames', 1)
    decode.eight_bit(file, say=notes.append)
  if frames > 1:
    notes.append(f'only the first of its {frames} frames is used')
  if header.deep:
    notes.append('it has 16 bits per channel and a result has 8, so its tones are rounded')
  if header.inks:
    notes.append('it is CMYK and a result is RGB, so its colours are converted')
  return header, kind, notes


def read_record(path: Path) -> dict | None:
  """A JSON object in a file; None if there is none, or half of one."""
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  return found if isinstance(found, dict) else None


def size_of(record: Mapping[str, Any]) -> tuple[int, int]:
  """Height and width of an upright picture."""
  return record['height'], record['width']


def upright(record: Mapping[str, Any], path: Path) -> Image.Image:
  """A picture as RGB, on white where it is transparent."""
  with DECODING.taken(math.prod(size_of(record))):
    return decode.upright(str(path), 'RGB', 'white', record['name'])


def side_of(wanted: int) -> int:
  """The side of the preview that is shown for a wanted one."""
  return next((side for side in SIDES if side >= wanted), SIDES[-1])


def preview(path: Path, side: int, lossless: bool) -> Path:
  """The file of a smaller upright copy, made if it does not exist; for display only.

  side: one of SIDES; a smaller picture is not enlarged.
  """
  place = path.with_name(f'{path.stem}-preview-{side}{".png" if lossless else ".webp"}')
  if place.exists():
    return place
  header = decode.header(str(path))
  with DECODING.taken(math.prod(header.size)), decode.opened(str(path), path.name) as file:
    profile = decode.icc(file)
    image = decode.eight_bit(file, say=lambda line: None)
    image = image.convert('RGBA' if header.alpha else 'RGB')
  image.thumbnail((side, side))
  options: dict[str, Any] = {} if lossless else dict(quality=92, method=2)
  with files.writing(place) as out:
    image.save(out, 'PNG' if lossless else 'WEBP', icc_profile=profile, **options)
  return place


def link(source: Path, place: Path) -> None:
  """Gives a file a second name, or a copy where the file system has no links."""
  try:
    os.link(source, place)
  except OSError:
    shutil.copyfile(source, place)
