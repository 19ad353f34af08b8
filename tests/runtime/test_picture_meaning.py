"""One meaning for a picture: every reader, over formats, depths, transparency and orientations."""

import functools
import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from exedit import images
from exedit.input_pipeline import codec
from exedit.input_pipeline.coco_ee import layout
from exedit.runtime import decode, memory
from exedit.runtime.errors import DataError

H, W = 12, 20
RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
ALPHA = np.where(np.arange(W) < 8, 255, 0).astype(np.uint8) * np.ones((H, 1), np.uint8)
UPRIGHT = {  # what makes an array of this orientation upright
  1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a),
}  # fmt: skip


# Files by hand, for what Pillow does not write.


def block(kind, body):
  return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png(values, depth=8, before=b'', behind=b'', palette=b''):
  """A PNG of integers [h w c] with blocks before and behind its pixels."""
  kind = 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[-1]]
  rows = values.reshape(len(values), -1)
  if depth == 16:
    rows = rows.astype('>u2').view(np.uint8)
  elif depth < 8:
    bits = np.unpackbits(rows.astype(np.uint8)[..., None], -1)[..., -depth:]
    rows = np.packbits(bits.reshape(len(rows), -1), -1)
  header = struct.pack('>IIBBBBB', values.shape[1], values.shape[0], depth, kind, 0, 0, 0)
  lines = b''.join(b'\0' + row.astype(np.uint8).tobytes() for row in rows)
  plte = block(b'PLTE', palette) if palette else b''
  pixels = block(b'IDAT', zlib.compress(lines))
  blocks = [block(b'IHDR', header), plte, before, pixels, behind, block(b'IEND', b'')]
  return b'\x89PNG\r\n\x1a\n' + b''.join(blocks)


def tiff(values, kind=1, photometric=None, **tags):
  """An uncompressed TIFF of an array [h w c]; kind: 1 unsigned, 2 signed, 3 floating-point."""
  h, w, c = values.shape
  values = values.astype(values.dtype.newbyteorder('<'))
  photometric = (2 if c >= 3 else 1) if photometric is None else photometric
  entries = {256: w, 257: h, 259: 1, 262: photometric, 277: c, 278: h, 279: values.nbytes}
  entries |= {int(name[1:]): value for name, value in tags.items()}
  lists = {258: [8 * values.itemsize] * c, 339: [kind] * c}
  if c in (2, 4):
    entries[338] = 2
  start = 8
  body = bytearray(struct.pack('<2sHI', b'II', 42, start + values.nbytes)) + values.tobytes()
  entries[273] = start
  after = len(body) + 2 + 12 * (len(entries) + len(lists)) + 4
  out, extra = struct.pack('<H', len(entries) + len(lists)), b''
  for tag in sorted([*entries, *lists]):
    if tag in entries:
      out += struct.pack('<HHII', tag, 4, 1, entries[tag])
    elif c <= 2:
      out += struct.pack('<HHI4s', tag, 3, c, struct.pack(f'<{c}H', *lists[tag]))
    else:
      out += struct.pack('<HHII', tag, 3, c, after + len(extra))
      extra += struct.pack(f'<{c}H', *lists[tag])
  return bytes(body) + out + struct.pack('<I', 0) + extra


def saved(array, kind, mode=None, **options):
  file, image = io.BytesIO(), Image.fromarray(array)
  (image.convert(mode) if mode else image).save(file, kind, **options)
  return file.getvalue()


def on_white(levels, alpha):
  return np.where(alpha[..., None] > 0, levels, np.uint8(255))


# Depths and transparency: name -> (bytes, the RGB that every reader must give)


def kinds():
  grey, rgb = LEVELS[..., :1], LEVELS
  repeat = lambda a: np.repeat(a, 3, -1)
  for depth in (1, 2, 4, 8, 16):
    most = 2**depth - 1
    values = np.round(grey / 255 * most).astype(np.uint32)
    levels = repeat(np.round(values / most * 255).astype(np.uint8))
    key = int(values[0, 0, 0])
    alpha = np.where(values[..., 0] == key, 0, 255)
    yield f'grey {depth}.png', png(values, depth), levels
    trns = block(b'tRNS', struct.pack('>H', key))
    yield f'grey {depth} key.png', png(values, depth, trns), on_white(levels, alpha)
  for depth, (name, array) in itertools.product((8, 16), (('grey', grey), ('rgb', rgb))):
    times = 257 if depth == 16 else 1
    stored = array.astype(np.uint32) * times
    clear = np.concatenate([stored, ALPHA[..., None].astype(np.uint32) * times], -1)
    levels = array if name == 'rgb' else repeat(array)
    yield f'{name} {depth}.png', png(stored, depth), levels
    yield f'{name} {depth} alpha.png', png(clear, depth), on_white(levels, ALPHA)
    kind = np.uint16 if depth == 16 else np.uint8
    yield f'{name} {depth}.tif', tiff(stored.astype(kind)), levels
    if name == 'rgb':
      key, alpha = stored[0, 0], np.where((rgb == rgb[0, 0]).all(-1), 0, 255)
      trns = block(b'tRNS', struct.pack('>HHH', *key))
      yield f'{name} {depth} key.png', png(stored, depth, trns), on_white(rgb, alpha)
      yield f'{name} {depth} alpha.tif', tiff(clear.astype(kind)), on_white(rgb, ALPHA)
  index = (LEVELS[..., :1] % 4).astype(np.uint32)
  colours = np.array([[0, 0, 0], [255, 0, 0], [9, 99, 199], [255, 255, 255]], np.uint8)
  for depth in (2, 4, 8):
    table, trns = colours.tobytes(), block(b'tRNS', b'\xff\x00')
    levels = colours[index[..., 0]]
    yield f'palette {depth}.png', png(index, depth, palette=table), levels
    alpha = np.where(index[..., 0] == 1, 0, 255)
    yield (
      f'palette {depth} alpha.png',
      png(index, depth, trns, palette=table),
      on_white(levels, alpha),
    )
  deep = grey.astype(np.float64) / 255
  for name, most, kind, code in (
    ('signed 16', 2**15 - 1, np.int16, 2), ('signed 32', 2**31 - 1, np.int32, 2),
    ('unsigned 32', 2**32 - 1, np.uint32, 1),
  ):  # fmt: skip
    yield f'{name}.tif', tiff(np.round(deep * most).astype(kind), code), repeat(grey)
  inverted = tiff(65535 - grey.astype(np.uint16) * 257, photometric=0)
  yield 'white is zero.tif', inverted, repeat(grey)
  yield 'grey 16.pgm', saved(grey[..., 0].astype(np.uint16) * 257, 'PPM'), repeat(grey)
  text = f'P6 {W} {H} 1023\n'.encode()
  yield 'rgb 10.ppm', text + np.round(rgb / 255 * 1023).astype('>u2').tobytes(), rgb
  yield 'rgb.webp', saved(rgb, 'WEBP', lossless=True), rgb
  clear = np.dstack([rgb, ALPHA])
  yield 'alpha.webp', saved(clear, 'WEBP', lossless=True, exact=True), on_white(rgb, ALPHA)
  yield 'rgb.bmp', saved(rgb, 'BMP'), rgb
  flat = np.full((H, W, 3), 255, np.uint8)
  yield 'inks.jpg', saved(flat, 'JPEG', 'CMYK'), flat
  yield 'grey.jpg', saved(flat // 2, 'JPEG', 'L'), flat // 2


KINDS = {name: (data, expected) for name, data, expected in kinds()}


def readers(data, path):
  """What every reader makes of a file: upright, and for training as stored."""
  path.write_bytes(data)
  source = layout.decode_source(data, path.name)
  exemplar = layout.decode_exemplar(data, path.name, None)
  return [images.read(path), images.read_photo(path).rgb, source, exemplar], codec.decode(data)


@pytest.mark.parametrize('name', KINDS)
def test_every_reader_gives_the_same_pixels(name, tmp_path):
  data, expected = KINDS[name]
  upright, stored = readers(data, tmp_path / name)
  for pixels in (*upright, stored):
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(pixels, stored)
  found = decode.header(tmp_path / name)
  assert found.size == (H, W) and found.deep == any(n in name for n in ('16', '32', ' 10', 'zero'))
  assert found.alpha == any(word in name for word in ('alpha', 'key'))


# Orientation: where it stands


def exif_of(turn):
  exif = Image.Exif()
  exif[0x0112] = turn
  return exif.tobytes()


def xmp_of(turn, how=' tiff:Orientation="{}"/>'):
  start = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="ns"'
  return f'{start}{how.format(turn)}'.encode()


def raw_profile(kind, data, packed=True):
  rows = '\n'.join(data.hex()[i : i + 72] for i in range(0, 2 * len(data), 72))
  text = f'\n{kind}\n{len(data):8d}\n{rows}\n'.encode()
  key = f'Raw profile type {kind}'.encode() + b'\0'
  return block(b'zTXt', key + b'\0' + zlib.compress(text)) if packed else block(b'tEXt', key + text)


def xmp_block(data, packed=False):
  head = b'XML:com.adobe.xmp\0' + (b'\1\0' if packed else b'\0\0') + b'\0\0'
  return block(b'iTXt', head + (zlib.compress(data) if packed else data))


APP1 = b'http://ns.adobe.com/xap/1.0/\0'
BLOCKS = {
  'eXIf': lambda turn: block(b'eXIf', exif_of(turn).removeprefix(b'Exif\0\0')),
  'raw exif': lambda turn: raw_profile('exif', exif_of(turn)),
  'raw exif as text': lambda turn: raw_profile('exif', exif_of(turn), packed=False),
  'raw APP1': lambda turn: raw_profile('APP1', exif_of(turn)),
  'raw APP1 with XMP': lambda turn: raw_profile('APP1', APP1 + xmp_of(turn)),
  'raw xmp': lambda turn: raw_profile('xmp', xmp_of(turn)),
  'XMP': lambda turn: xmp_block(xmp_of(turn)),
  'packed XMP': lambda turn: xmp_block(xmp_of(turn), packed=True),
  'XMP element': lambda t: xmp_block(xmp_of(t, '><tiff:Orientation>{}</tiff:Orientation>')),
  'XMP in single quotes': lambda t: xmp_block(xmp_of(t, " tiff:Orientation = '{}'/>")),
  'long XMP': lambda t: xmp_block(xmp_of(t) + b' ' * 2**21, packed=True),
}


def beside(make, where, turn):
  return png(LEVELS, **{where: make(turn)})


PLACES = {
  **{f'{name} before': functools.partial(beside, make, 'before') for name, make in BLOCKS.items()},
  **{f'{name} behind': functools.partial(beside, make, 'behind') for name, make in BLOCKS.items()},
  'TIFF': lambda t: tiff(LEVELS, t274=t),
  'deep TIFF': lambda t: tiff(LEVELS.astype(np.uint16) * 257, t274=t),
  'packed TIFF': lambda t: saved(LEVELS, 'TIFF', tiffinfo={274: t}, compression='tiff_lzw'),
  'TIFF with XMP': lambda t: saved(LEVELS, 'TIFF', tiffinfo={700: xmp_of(t)}),
  'WebP': lambda t: saved(LEVELS, 'WEBP', lossless=True, exif=exif_of(t)),
  'WebP with XMP': lambda t: saved(LEVELS, 'WEBP', lossless=True, xmp=xmp_of(t)),
  'JPEG': lambda t: saved(SMOOTH, 'JPEG', exif=exif_of(t), quality=100, subsampling=0),
  'JPEG with XMP': lambda t: saved(SMOOTH, 'JPEG', xmp=xmp_of(t), quality=100, subsampling=0),
}  # fmt: skip
y, x = np.mgrid[:H, :W]
SMOOTH = np.stack([x * 12, y * 20, 90 + 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize('place', PLACES)
def test_one_orientation_decides_size_and_pixels(place, tmp_path):
  expected, most = (SMOOTH, 6) if 'JPEG' in place else (LEVELS, 0)
  for turn, make_upright in UPRIGHT.items():
    upright, stored = readers(PLACES[place](turn), tmp_path / 'picture')
    for pixels in upright:
      assert pixels.shape == make_upright(expected).shape, turn
      assert np.abs(pixels.astype(int) - make_upright(expected)).max() <= most, turn
    assert np.abs(stored.astype(int) - expected).max() <= most  # boxes count stored pixels
    assert decode.header(tmp_path / 'picture').size == upright[0].shape[:2]


def test_exif_wins_over_xmp_and_an_impossible_orientation_counts_as_none():
  both = png(LEVELS, before=BLOCKS['eXIf'](6), behind=BLOCKS['XMP'](3))
  assert decode.header(both).size == (W, H)
  for turn in (0, 9):
    np.testing.assert_array_equal(layout.decode_source(PLACES['TIFF'](turn), 'a.tif'), LEVELS)
    assert decode.header(png(LEVELS, before=BLOCKS['eXIf'](turn) + BLOCKS['XMP'](6))).size == (W, H)


# What is said, and what is refused


@pytest.mark.parametrize(
  'data, said',
  [
    (png(np.full((H, W, 1), 255), 16), 'brightest value is 255 of 65535'),
    (png(np.full((H, W, 3), 255), 16), 'brightest value is 255 of 65535'),
    (png(np.dstack([np.full((H, W, 3), 4095), np.full((H, W, 1), 65535)]), 16), 'is 4095 of 65535'),
    (tiff(np.full((H, W, 1), 255, np.int32), 2), 'brightest value is 255 of 65535'),
    (tiff(np.full((H, W, 1), 255, np.uint32)), 'brightest value is 255 of 65535'),
    (tiff(np.full((H, W, 1), 60000, np.uint32)), '32-bit values end at 60000'),
    (tiff(np.full((H, W, 1), 70000, np.int32), 2), 'brightest value is 70000 of 2147483647'),
    (png(np.full((H, W, 1), 60000), 16), ''),
    (png(np.zeros((H, W, 1), int), 8), ''),
  ],
)
def test_a_deep_picture_that_is_all_dark_is_said_once(data, said, tmp_path, capsys):
  path = tmp_path / 'dark.png'
  path.write_bytes(data)
  for _ in range(2):
    images.read(path)
  lines = capsys.readouterr().err.splitlines()
  assert all(line.startswith(f'note: {path}: its ') for line in lines)
  assert len(lines) == len(set(lines)) and bool(lines) == bool(said)
  assert not said or any(said in line for line in lines)


@pytest.mark.parametrize(
  'data',
  [
    tiff(np.full((H, W, 1), 0.5, np.float32), 3),
    tiff(np.full((H, W, 3), 0.5, np.float32), 3),
    tiff(np.full((H, W, 1), 0.5, np.float64), 3),
    tiff(np.full((H, W, 3), 0.5, np.float16), 3),
    f'Pf\n{W} {H}\n-1.0\n'.encode() + np.zeros(H * W, np.float32).tobytes(),
    b'\x76\x2f\x31\x01' + b'\0' * 100,
    b'#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n',
    b'\x93NUMPY\1\0' + b'\0' * 100,
  ],
)
def test_floating_point_pixels_are_refused_by_every_reader(data, tmp_path):
  path = tmp_path / 'float.tif'
  path.write_bytes(data)
  reads = [lambda: decode.header(path), lambda: images.read(path), lambda: images.read_photo(path)]
  reads += [lambda: codec.decode(data), lambda: layout.decode_source(data, 'float.tif')]
  for read in reads:
    with pytest.raises(DataError, match='floating-point pixels.*save it as 8-bit PNG'):
      read()


def test_what_pillow_does_not_read_of_a_tiff_is_said():
  for channels, tags in ((2, {}), (3, dict(t284=2))):  # 284: one plane per channel
    with pytest.raises(DataError, match=f'a.tif is a TIFF of {channels} x 16 bits in an order'):
      decode.header(tiff(np.zeros((H, W, channels), np.uint16), **tags), 'a.tif')
  with pytest.raises(DataError, match='a.tif has values down to -5, and black is 0'):
    decode.upright(tiff(np.full((H, W, 1), -5, np.int16), 2), 'RGB', 'white', 'a.tif')


def test_long_texts_and_profiles_are_left_out_and_the_pixels_read(tmp_path, capsys):
  long = b'x' * (2**20 + 1)
  packed = zlib.compress(long)
  small = block(b'tEXt', b'exedit\0{}')
  for kind, body in (
    (b'zTXt', b'workflow\0\0' + packed), (b'iTXt', b'workflow\0\1\0\0\0' + packed),
    (b'iCCP', b'camera\0\0' + packed), (b'tEXt', b'prompt\0' + b'x' * (2**26 + 1)),
  ):  # fmt: skip
    for places in (dict(before=block(kind, body) + small), dict(behind=block(kind, body) + small)):
      path = tmp_path / f'{kind.decode()}.png'
      upright, stored = readers(png(LEVELS, **places), path)
      for pixels in (*upright, stored):
        np.testing.assert_array_equal(pixels, LEVELS)
      with decode.opened(path) as file:
        file.load()
        assert file.info['exedit'] == '{}' and 'workflow' not in file.info
  said = capsys.readouterr().err
  assert 'iCCP.png: its colour profile has more than 1 MB' in said and 'zTXt' not in said


def test_a_short_profile_is_kept_beside_a_long_text(tmp_path):
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  text = PngImagePlugin.PngInfo()
  text.add_text('workflow', 'x' * 2**21, zip=True)
  Image.fromarray(LEVELS).save(tmp_path / 'a.png', icc_profile=profile, pnginfo=text)
  assert images.read_photo(tmp_path / 'a.png').icc_profile == profile


def test_the_bound_of_pixels_follows_the_memory_and_the_flag(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)  # put back at the end
  for gigabytes, megapixels in ((4, 89), (16, 167), (10**4, 500)):
    monkeypatch.setattr(memory, 'of_machine', lambda g=gigabytes: int(g * 1e9))
    decode.allow()
    assert round(Image.MAX_IMAGE_PIXELS / 1e6) == megapixels
  Image.new('1', (2000, 1500)).save(tmp_path / 'a.png')
  decode.allow(2.5)
  with pytest.raises(DataError, match='allowed .3.0.: make it smaller, or .*--max_megapixels=3'):
    decode.header(tmp_path / 'a.png')
  decode.allow(1.0)
  with pytest.raises(DataError, match='the 1 million pixels allowed .3.0.: .*0.1 GB of the'):
    images.read(tmp_path / 'a.png')
  decode.allow(3.0)
  assert decode.header(tmp_path / 'a.png').size == (1500, 2000)
