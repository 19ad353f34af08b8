"""Bad image files of every kind by the hundred; makers as in fuzz_weights."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.mutations import mutated, pick


@functools.cache
def sound() -> dict[str, bytes]:
  """Small good files of every format and mode, by file name."""
  y, x = np.mgrid[:40, :56]
  pixels = np.stack([4 * x, 6 * y, 100 + x + y], -1).astype(np.uint8)
  rgb = Image.fromarray(pixels)
  exif = Image.Exif()
  exif[0x0112], exif[0x010E] = 6, 'a description'
  deep = Image.fromarray((x * 1000).astype(np.uint16))
  profile = _profile()
  kinds = {
    'rgb.png': (rgb, dict(exif=exif, icc_profile=profile)),
    'grey.png': (rgb.convert('L'), {}),
    'palette.png': (rgb.convert('P'), dict(transparency=3)),
    'alpha.png': (rgb.convert('RGBA'), {}),
    'deep.png': (deep, {}),
    'bit.png': (rgb.convert('1'), {}),
    'animated.png': (rgb, _frames(rgb)),
    'rgb.jpg': (rgb, dict(exif=exif, icc_profile=profile)),
    'progressive.jpg': (rgb, dict(progressive=True, quality=95)),
    'grey.jpg': (rgb.convert('L'), {}),
    'cmyk.jpg': (rgb.convert('CMYK'), dict(icc_profile=profile)),
    'multi.jpg': (rgb, dict(_frames(rgb), format='MPO')),
    'lossy.webp': (rgb, dict(exif=exif, icc_profile=profile)),
    'lossless.webp': (rgb.convert('RGBA'), dict(lossless=True)),
    'animated.webp': (rgb, _frames(rgb)),
    'animated.gif': (rgb.convert('P'), _frames(rgb)),
    'clear.gif': (rgb.convert('P'), dict(transparency=0)),
    'raw.tif': (rgb, dict(exif=exif)),
    'lzw.tif': (rgb, dict(compression='tiff_lzw')),
    'deflate.tif': (rgb.convert('RGBA'), dict(compression='tiff_adobe_deflate')),
    'packbits.tif': (rgb.convert('1'), dict(compression='packbits')),
    'fax.tif': (rgb.convert('1'), dict(compression='group4')),
    'jpeg.tif': (rgb, dict(compression='jpeg')),
    'cmyk.tif': (rgb.convert('CMYK'), dict(icc_profile=profile)),
    'deep.tif': (deep, {}),
    'float.tif': (Image.fromarray(x.astype(np.float32)), {}),
    'pages.tif': (rgb, _frames(rgb)),
    'rgb.bmp': (rgb, {}),
    'palette.bmp': (rgb.convert('P'), {}),
    'bit.bmp': (rgb.convert('1'), {}),
    'rgb.ppm': (rgb, {}),
    'rgb.tga': (rgb, dict(compression='tga_rle')),
    'icon.ico': (rgb, {}),
    'rgb.jp2': (rgb, {}),
  }
  files = {}
  for file, (image, options) in kinds.items():
    buffer = io.BytesIO()
    kind = options.pop('format', None) or Image.registered_extensions()['.' + file.split('.')[1]]
    image.copy().save(buffer, kind, **options)
    files[file] = buffer.getvalue()
  return files


def _frames(rgb):
  return dict(save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])


@functools.cache
def _profile() -> bytes:
  from PIL import ImageCms

  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  return profile[:24] + bytes(12) + profile[36:]  # without the hour of its making


def image_mutated(rng, canary, formats):
  """A good file of these formats, damaged."""
  names = [file for file in sound() if file.split('.')[1] in formats]
  file = pick(rng, names)
  return {file: mutated(rng, sound()[file], sound()[pick(rng, names)])}


def image_truncated(rng, canary):
  """A good file's beginning, under its own or another name."""
  file = pick(rng, list(sound()))
  data = sound()[file]
  ending = pick(rng, ['png', 'jpg', 'webp', 'gif', file.split('.')[1]])
  return {f'a.{ending}': data[: int(rng.integers(len(data)))]}


SIDES = (0, 1, 7, 8, 9, 56, 4000, 9000, 10_001, 20_000, 65_500, 65_535, 2**20, 2**31 - 1, 2**32 - 1)


def image_sizes(rng, canary):
  """Headers that declare another size than the data have, up to far beyond 100 megapixels."""
  width, height = pick(rng, SIDES), pick(rng, SIDES)
  kind = pick(rng, ['png', 'jpg', 'gif', 'bmp', 'webp', 'ppm', 'tif'])
  data = bytearray(
    sound()[
      dict(jpg='grey.jpg', gif='clear.gif', webp='lossless.webp', tif='raw.tif').get(
        kind, f'rgb.{kind}'
      )
    ]
  )
  if kind == 'png':
    header = struct.pack('>II', width, height) + bytes(data[24:29])
    data[16:33] = header + struct.pack('>I', zlib.crc32(b'IHDR' + header))
  elif kind == 'jpg':
    at = data.index(b'\xff\xc0')
    struct.pack_into('>HH', data, at + 5, height % 2**16, width % 2**16)
  elif kind == 'gif':
    struct.pack_into('<HH', data, 6, width % 2**16, height % 2**16)
    at = data.index(b',')
    if rng.random() < 0.5:
      struct.pack_into('<HH', data, at + 5, width % 2**16, height % 2**16)
  elif kind == 'bmp':
    struct.pack_into('<II', data, 18, width, height)
  elif kind == 'webp':
    at = data.index(b'VP8L') + 9
    struct.pack_into('<I', data, at, width % 2**14 | (height % 2**14) << 14)
  elif kind == 'ppm':
    data = bytearray(data.replace(b'56 40', b'%d %d' % (width, height)))
  else:
    first = struct.unpack_from('<I', data, 4)[0]
    for entry in range(first + 2, first + 2 + 12 * struct.unpack_from('<H', data, first)[0], 12):
      tag = struct.unpack_from('<H', data, entry)[0]
      if tag in (256, 257):
        struct.pack_into('<HII', data, entry + 2, 4, 1, width if tag == 256 else height)
  return {f'a.{kind}': bytes(data)}


def chunk(name: bytes, body: bytes) -> bytes:
  return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def png_chunks(rng, canary):
  """PNGs with sound checksums and hostile chunks: bombs, wrong orders, odd depths and colours."""
  depth = pick(rng, [1, 2, 4, 8, 8, 8, 16, 3, 0, 255])
  colour = pick(rng, [0, 2, 2, 3, 4, 6, 1, 7])
  tail = bytes(pick(rng, [[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 3, 9]]))
  header = chunk(b'IHDR', struct.pack('>IIBB', 56, 40, depth, colour) + tail)
  bomb = zlib.compress(bytes(pick(rng, [10**3, 10**8])))
  extras = [
    chunk(b'iCCP', b'a\0\0' + bomb),
    chunk(b'zTXt', b'a\0\0' + bomb),
    chunk(b'iTXt', b'a\0\1\0\0\0' + bomb),
    chunk(b'tEXt', b'a\0' + bytes(10**6)),
    chunk(b'PLTE', bytes(int(rng.integers(800)))),
    chunk(b'tRNS', rng.bytes(int(rng.integers(300)))),
    chunk(b'eXIf', rng.bytes(60)),
    chunk(b'acTL', struct.pack('>II', pick(rng, [0, 1, 2**31 - 1]), 0)),
    chunk(b'fcTL', rng.bytes(26)),
    chunk(b'fdAT', rng.bytes(30)),
    chunk(rng.bytes(4), rng.bytes(10)),
    chunk(b'gAMA', rng.bytes(4)),
    chunk(b'pHYs', rng.bytes(9)),
    header,
  ]
  rows = zlib.compress(bytes(pick(rng, [40 * (1 + 56 * 8), 40, 10**8])))
  inside = [pick(rng, extras) for _ in range(int(rng.integers(4)))]
  parts = [header, *inside, chunk(b'IDAT', rows), chunk(b'IEND', b'')]
  if rng.random() < 0.2:
    rng.shuffle(parts)
  return {'a.png': b'\x89PNG\r\n\x1a\n' + b''.join(parts)}


def image_metadata(rng, canary):
  """Good pixels under damaged EXIF and colour profiles."""
  exif = b'Exif\0\0' + mutated(rng, sound_exif())
  profile = mutated(rng, _profile())
  mode = pick(rng, ['RGB', 'CMYK', 'L'])
  file = pick(rng, ['a.jpg', 'a.tif'] if mode == 'CMYK' else ['a.jpg', 'a.png', 'a.webp', 'a.tif'])
  buffer = io.BytesIO()
  options = {} if file == 'a.tif' else dict(exif=exif)
  kind = Image.registered_extensions()['.' + file.split('.')[1]]
  Image.new(mode, (56, 40)).save(buffer, kind, icc_profile=profile, **options)
  return {file: buffer.getvalue()}


@functools.cache
def sound_exif() -> bytes:
  exif = Image.Exif()
  exif[0x0112], exif[0x010E], exif[0x9003] = 6, 'a description', '2022:11:23 00:00:00'
  return exif.tobytes().removeprefix(b'Exif\0\0')


@functools.cache
def _real(side: int, kind: str) -> bytes:
  buffer = io.BytesIO()
  Image.new('L', (side, side), 200).save(buffer, kind)
  return buffer.getvalue()


def image_giant(rng, canary):
  """Files that really hold so many pixels: about 81, 100 and 144 megapixels."""
  side = pick(rng, [9000, 10_000, 12_000])
  kind = pick(rng, ['PNG', 'JPEG'])
  return {f'a.{kind.lower()}': _real(side, kind)}


def image_other(rng, canary):
  """No images, and odd ones."""
  data = pick(
    rng,
    [
      b'',
      b'\0' * 100,
      rng.bytes(int(rng.integers(1, 2000))),
      b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n',
      b'<!DOCTYPE html><html></html>',
      b'<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"/>',
      b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n('
      + bytes(str(canary), 'utf-8')
      + b')\n',
      b'%PDF-1.7\n' + rng.bytes(50),
      b'P6 0 0 255\n',
      b'P5 99999999999 2 255\n',
      b'GIF89a' + rng.bytes(40),
      b'RIFF\xff\xff\xff\xffWEBPVP8 ' + rng.bytes(40),
      b'II*\0' + struct.pack('<I', pick(rng, [0, 8, 2**32 - 1])) + rng.bytes(60),
      b'MM\0*' + rng.bytes(60),
      b'\xff\xd8' + b'\xff\xe1\xff\xff' * 50,
      b'\x00\x00\x00\x20ftypavif' + rng.bytes(100),
    ],
  )
  return {'a.' + pick(rng, ['png', 'jpg', 'webp', 'gif', 'tif', 'bmp', 'eps', 'avif']): data}


MAKERS = {
  'PNG, mutated': functools.partial(image_mutated, formats=('png',)),
  'PNG, hostile chunks': png_chunks,
  'JPEG, mutated': functools.partial(image_mutated, formats=('jpg',)),
  'WebP, mutated': functools.partial(image_mutated, formats=('webp',)),
  'GIF, mutated': functools.partial(image_mutated, formats=('gif',)),
  'TIFF, mutated': functools.partial(image_mutated, formats=('tif',)),
  'BMP, PPM, TGA, ICO, JP2': functools.partial(
    image_mutated, formats=('bmp', 'ppm', 'tga', 'ico', 'jp2')
  ),
  'image, truncated': image_truncated,
  'image, declared size': image_sizes,
  'image, EXIF and profile': image_metadata,
  'image, 81 to 144 megapixels': image_giant,
  'no image at all': image_other,
}
