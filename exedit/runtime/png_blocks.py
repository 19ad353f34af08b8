"""Reads the blocks of a PNG file around its pixels, which Pillow finds late, misses or refuses."""

import io
import struct
import zlib
from typing import Any, NamedTuple

from PIL import PngImagePlugin

SIGNATURE = b'\x89PNG\r\n\x1a\n'
TEXTS = (b'tEXt', b'zTXt', b'iTXt')
XMP = b'XML:com.adobe.xmp'
XMP_IN_APP1 = b'http://ns.adobe.com/xap/1.0/\0'


class Blocks(NamedTuple):
  """The blocks of a PNG file, wherever they stand.

  exif, xmp: their bytes, empty if there are none. too_long: (start, end) in the file of each text
  or colour profile that Pillow does not unpack. lost_profile: a colour profile is among them.
  """

  exif: bytes
  xmp: bytes
  too_long: list[tuple[int, int]]
  lost_profile: bool


def scan(file: Any) -> Blocks:
  """The blocks of an open PNG file. It passes over the pixels and unpacks at most 1 MB of a block.

  The orientation may be in eXIf, in XMP, or in one of the text blocks "Raw profile type ..." of
  ImageMagick and exiftool.
  """
  found, too_long, kept, lost = {}, [], 0, False
  file.seek(len(SIGNATURE))
  while len(head := file.read(8)) == 8 and head[4:] != b'IEND':
    length, kind = struct.unpack('>I4s', head)
    start = file.tell() - 8
    if kind == b'eXIf':
      found['eXIf'] = file.read(min(length, PngImagePlugin.MAX_TEXT_CHUNK))
    elif kind in TEXTS or kind == b'iCCP':
      key, text, whole = _unpacked(kind, file.read(min(length, PngImagePlugin.MAX_TEXT_MEMORY)))
      if kind in TEXTS:
        found.setdefault(*_metadata(key, text))
      size = max(length, len(text))
      if whole and kept + size <= PngImagePlugin.MAX_TEXT_MEMORY:
        kept += size
      else:
        too_long.append((start, start + length + 12))
        lost = lost or kind == b'iCCP'
    file.seek(start + length + 12)
  exif = found.get('eXIf') or found.get('exif', b'')
  return Blocks(exif, found.get('xmp', b''), too_long, lost)


def without(file: Any, places: list[tuple[int, int]]) -> Any:
  """A copy of the file in memory without these places."""
  copy, at = io.BytesIO(), 0
  for start, end in places:
    file.seek(at)
    copy.write(file.read(start - at))
    at = end
  file.seek(at)
  copy.write(file.read())
  copy.seek(0)
  return copy


def _unpacked(kind: bytes, body: bytes) -> tuple[bytes, bytes, bool]:
  """The key of a block, its first megabyte, and whether Pillow reads it."""
  key, _, rest = body.partition(b'\0')
  packed = kind in (b'zTXt', b'iCCP') or (kind == b'iTXt' and rest[:1] == b'\1')
  if kind == b'iTXt':
    rest = rest[2:].split(b'\0', 2)[-1]
  elif packed:
    rest = rest[1:]
  if not packed:
    return key, rest, True
  unpack = zlib.decompressobj()
  try:
    text = unpack.decompress(rest, PngImagePlugin.MAX_TEXT_CHUNK)
  except zlib.error:  # Pillow passes over it too
    return key, b'', True
  return key, text, not unpack.unconsumed_tail


def _metadata(key: bytes, text: bytes) -> tuple[str, bytes]:
  """('exif' or 'xmp', its bytes) of a text block; ('', b'') if it holds neither."""
  if key == XMP:
    return 'xmp', text
  if key.lower() not in (
    b'raw profile type exif',
    b'raw profile type app1',
    b'raw profile type xmp',
  ):
    return '', b''
  try:  # lines: the kind, the length, and hexadecimal digits
    data = bytes.fromhex(b''.join(text.strip().split(b'\n')[2:]).decode('ascii'))
  except ValueError:
    return '', b''
  if key.lower().endswith(b'xmp') or data.startswith(XMP_IN_APP1):
    return 'xmp', data.removeprefix(XMP_IN_APP1)
  return 'exif', data
