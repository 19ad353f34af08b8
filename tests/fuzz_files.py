"""Bad files by the hundred: damaged, lying and hostile ones, each a function of a random generator.

A maker takes (rng, canary) and returns {file name: bytes}; the first file is the one to open.
`canary` is a path that exists afterwards if a command in a file was obeyed. Folders are made below
`w/`.
"""

import csv
import functools
import io
import json
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import safetensors.numpy
import yaml
from PIL import Image, PngImagePlugin

from exedit import images
from exedit import paint_by_example as pbe
from tests import released, small
from tests.pickled import (
  Code,
  call,
  checkpoint,
  code,
  name,
  ordered,
  program,
  state_dict,
  tensor,
  whole_legacy,
)
from tests.pickled import storage as stored

VALUES = (  # values that a setting should not have
  *(None, True, False, 0, 1, -1, 2, 3, 8, 64, 10**6, 2**31, 2**63, 10**30, 10**400, -(2**63)),
  *(0.0, 0.5, -2.5, 1e-300, 1e308, float('nan'), float('inf'), -float('inf')),
  *('', 'abc', 'silu', '..', '/', '\0', '\n', '\ud800', 'a' * 5000, '7', 'null', 'CrossAttn{}'),
  *([], [1], [1, 2], [0, 0], ['a'], [None, 3], [[1]], [16, 'x'], [1] * 100, [10**9, 10**9]),
  *({}, {'a': 1}, {'': None}, {'sha256': 3}, {'model': {}}),
)
NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def pick(rng, items):
  return items[int(rng.integers(len(items)))]


def mutated(rng, data: bytes) -> bytes:
  """The bytes with a few bits flipped, or parts overwritten, cut out or doubled."""
  out = bytearray(data)
  for _ in range(int(rng.integers(1, 6))):
    at, length = int(rng.integers(len(out) + 1)), int(rng.integers(1, 40))
    kind = pick(rng, ['flip', 'flip', 'set', 'cut', 'truncate', 'double', 'number'])
    if kind == 'flip' and at < len(out):
      out[at] ^= 1 << int(rng.integers(8))
    elif kind == 'set':
      out[at : at + length] = pick(rng, [b'\0', b'\xff', rng.bytes(1)]) * length
    elif kind == 'cut':
      del out[at : at + length]
    elif kind == 'truncate' and rng.random() < 0.3:
      del out[at:]
    elif kind == 'double':
      out[at:at] = out[at : at + length]
    elif kind == 'number':
      out[at : at + 8] = struct.pack(pick(rng, ['<Q', '>Q']), pick(rng, NUMBERS))
  return bytes(out) if bytes(out) != data else bytes(out[:-1])


def places(value, way=()):
  """The way to every value inside a JSON value."""
  if isinstance(value, (dict, list)):
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
      yield (*way, key)
      yield from places(part, (*way, key))


def changed(rng, value):
  """A copy of a JSON value with a few entries replaced, removed, added or exchanged."""
  value = json.loads(json.dumps(value))
  for _ in range(pick(rng, [1, 1, 1, 2, 4])):
    if not (ways := list(places(value))):
      break
    *way, last = pick(rng, ways)
    inside = functools.reduce(lambda part, key: part[key], way, value)
    kind = pick(rng, ['replace', 'replace', 'replace', 'remove', 'add', 'copy'])
    if kind == 'remove':
      del inside[last]
    elif kind == 'add' and isinstance(inside, dict):
      inside[pick(rng, ['x', '', 'sha256', 'dtype', 'num_steps', 'a\nb'])] = pick(rng, VALUES)
    elif kind == 'copy':
      other = functools.reduce(lambda part, key: part[key], pick(rng, ways), value)
      inside[last] = json.loads(json.dumps(other))
    else:
      inside[last] = pick(rng, VALUES)
  return value


def damaged_text(rng, value, write=json.dumps) -> bytes:
  """A value with other entries, its text with other bytes, or another text altogether."""
  kind = pick(rng, ['entries'] * 6 + ['bytes', 'bytes', 'other'])
  if kind == 'entries':
    return write(changed(rng, value)).encode('utf-8', 'surrogatepass')
  if kind == 'bytes':
    return mutated(rng, write(value).encode())
  aliases = b'a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a]\nmodel: [*b,*b,*b,*b]\n'
  others = (b'', b'null', b'[]', b'7', b'"a"', b'{}', b'\xff\xfe{}', b'\0' * 50, b'[' * 50_000)
  others += (b'{"a":' * 50_000, b'9' * 50_000, b' ' * 10**6, aliases)
  return pick(rng, [*others, rng.bytes(200)])


# Weight files


def arrays(rng):
  """A handful of small tensors."""
  shapes, kinds = [(), (3,), (2, 3), (0, 4), (4, 1, 2, 2)], [np.float32, np.float16, np.int64]
  return {
    f'layer.{i}.{pick(rng, ["weight", "bias", "ü"])}': np.asarray(
      rng.standard_normal(pick(rng, shapes)), pick(rng, kinds)
    )
    for i in range(int(rng.integers(1, 6)))
  }


def safetensors_file(rng, canary):
  """Damaged bytes, or a sound file whose header somebody has rewritten."""
  whole = safetensors.numpy.save(arrays(rng))
  if rng.random() < 0.5:
    return {'a.safetensors': mutated(rng, whole)}
  length = int.from_bytes(whole[:8], 'little')
  text = damaged_text(rng, json.loads(whole[8 : 8 + length]))
  claimed = len(text) + pick(rng, [0] * 8 + [1, -1, 2**60])
  return {'a.safetensors': struct.pack('<Q', max(claimed, 0)) + text + whole[8 + length :]}


def index_of_shards(rng, canary):
  shards = {f'model-{i}.safetensors': safetensors.numpy.save(arrays(rng)) for i in range(2)}
  keys = lambda data: sorted(key for key, _ in safetensors.deserialize(data))
  where = {key: shard for shard, data in shards.items() for key in keys(data)}
  if rng.random() < 0.3:
    where['x'] = pick(rng, ['../x', '/etc/passwd', '', '.', '..', 'no', 'a.index.json', 'x' * 5000])
  text = damaged_text(rng, dict(metadata=dict(total_size=1), weight_map=where))
  return {'a.index.json': text, **shards}


def whole_zip(rng, pack=zipfile.ZIP_STORED) -> bytes:
  weights, storages = state_dict(arrays(rng))
  value = weights if rng.random() < 0.5 else {'epoch': 3, 'state_dict': weights}
  return checkpoint(value, storages, pack=pack)


def zip_mutated(rng, canary):
  return {'a.ckpt': mutated(rng, whole_zip(rng, pick(rng, [zipfile.ZIP_STORED, 8])))}


def legacy(rng, canary):
  return {'a.pth': mutated(rng, whole_legacy(*state_dict(arrays(rng), legacy=True)))}


def bomb(rng, canary):
  """Files that claim or hold far more than they have bytes."""
  weights, storages = state_dict({'a': np.zeros(2**12, np.float32)})
  kind = pick(rng, ['zeros', 'pickle', 'claim', 'tensors'])
  if kind == 'zeros':
    return {'a.bin': _zeros()}
  if kind == 'pickle':
    return {'a.bin': checkpoint(program({'a': 'x' * (2**26 + 9)}), {}, pack=zipfile.ZIP_DEFLATED)}
  if kind == 'tensors':
    shape = pick(rng, [(2**40,), (2**20, 2**20), (2**30,) * 4, (1,) * 40, (2**26, 1)])
    steps = pick(rng, [(0,), (1,)]) * len(shape)
    shared = stored('0', pick(rng, [2**12, 2**59]))
    return {'a.bin': checkpoint(ordered({'t': tensor(shared, shape, steps)}), storages)}
  whole = bytearray(checkpoint(weights, storages, pack=zipfile.ZIP_DEFLATED))
  for record in [i for i in range(len(whole)) if whole.startswith(b'PK\1\2', i)]:
    struct.pack_into('<I', whole, record + 24, pick(rng, [2**32 - 2, 2**31, 10**6]))
  return {'a.bin': bytes(whole)}


@functools.cache
def _zeros() -> bytes:
  values = {'a': np.zeros((300, 2**18), np.float32)}
  return checkpoint(*state_dict(values), pack=zipfile.ZIP_DEFLATED)


CALLABLES = (
  *('os.system', 'posix.system', 'os.popen', 'subprocess.Popen', 'builtins.eval', 'builtins.exec'),
  *('builtins.__import__', 'builtins.getattr', 'builtins.open', 'builtins.map', '__builtin__.eval'),
  *('runpy._run_code', 'functools.partial', 'operator.attrgetter', 'types.FunctionType'),
  *('importlib.import_module', 'ctypes.CDLL', 'pickle.loads', 'torch.load', 'numpy.load'),
  *('torch.storage._load_from_bytes', 'typing.get_type_hints', 'typing.sys', 'copyreg.pickle'),
)


def hostile_call(rng, canary) -> Code:
  """A call of something dangerous, by one of the ways that a pickle has."""
  module, attribute = pick(rng, CALLABLES).rsplit('.', 1)
  command = f'touch {canary}'
  source = f'__import__("os").system({command!r})'
  args = pick(rng, [(command,), (source,), (['touch', str(canary)],), (str(canary), 'w'), ()])
  function = pick(
    rng,
    [
      name(module, attribute),
      Code(code(module) + code(attribute) + b'\x93'),
      Code(code('typing') + code(f'{module}.{attribute}') + b'\x93'),
      call(name('builtins', 'getattr'), name(module, '__dict__'), attribute),
    ],
  )
  return pick(
    rng,
    [
      call(function, *args),
      Code(function + code(args) + b'\x81'),
      Code(function + code(args) + code({'a': 1}) + b'\x92'),
      Code(b'(' + function + b''.join(map(code, args)) + b'o'),
      Code(b'(' + b''.join(map(code, args)) + f'i{module}\n{attribute}\n'.encode()),
      Code(call(function) + code({'__setstate__': function, '__class__': function}) + b'b'),
      Code(call(name('torch._tensor', '_rebuild_from_type_v2'), function, function, args, {})),
      Code(function + code(args) + b'Q'),
    ],
  )


def pickle_hostile(rng, canary):
  """A checkpoint around hostile code, in one of the places where it might be missed."""
  evil, legacy = hostile_call(rng, canary), rng.random() < 0.2
  weights, storages = state_dict(arrays(rng), legacy)
  value = pick(
    rng,
    [
      evil,
      {'state_dict': weights, 'callbacks': {evil: 1}},
      {'state_dict': weights, 'x': evil},
      {'state_dict': {'a': evil}},
      Code(evil + b'0' + weights),
      Code(weights + evil + b'b0' + weights),
      tensor(evil, (2,), (1,)),
    ],
  )
  return {'a.ckpt': (whole_legacy if legacy else checkpoint)(value, storages)}


def pickle_mutated(rng, canary):
  """A sound zip with right CRCs around a damaged pickle."""
  weights, storages = state_dict(arrays(rng))
  whole = program(pick(rng, [weights, {'state_dict': weights, 'a': [1, 'x', None, 2.5]}]))
  return {'a.ckpt': checkpoint(mutated(rng, whole), storages)}


def pickle_costly(rng, canary):
  """Small pickles that would cost much: memos, nesting, doubling, long numbers and names."""
  weights, storages = state_dict({'a': np.ones(2, np.float32)})
  deep = int(rng.integers(1000, 60_000))
  evil = pick(
    rng,
    [
      b']' + b''.join(b'q\0](' + b'h\0' * 9 + b'e' for _ in range(99)),
      b'](' * deep + b'e' * deep,
      b'N' + b'\x85' * deep,
      name('typing', 'A') * deep + b'N' + b'\x85R' * deep,
      b'N' + b''.join(b'r' + struct.pack('<I', (i * 2654435761) % 2**32) for i in range(deep)),
      b'}(' + b''.join(code((2**61 - 1) * i) + b'N' for i in range(deep)) + b'u',
      b'I' + b'7' * 300_000 + b'\n',
      b'\x8b' + struct.pack('<I', 2**20) + b'\x01' * 2**20,
      b'X' + struct.pack('<I', 2**32 - 1),
      b'\x96' + struct.pack('<Q', 2**63),
      b']' * 3_000_001,
    ],
  )
  return {'a.ckpt': checkpoint({'state_dict': weights, 'x': Code(evil)}, storages)}


def other_files(rng, canary):
  """Other things under the name of a weight file."""
  others = [b'', b'\0' * 50, b'Entry not found', b'<!DOCTYPE html>', b'\x80' + rng.bytes(100)]
  others += [rng.bytes(500), b'PK\3\4' + rng.bytes(99), b'{' + rng.bytes(50)]
  ending = pick(rng, ['.safetensors', '.bin', '.ckpt', '.pth', '.index.json', ''])
  return {'a' + ending: pick(rng, others)}


# Pictures


@functools.cache
def pictures() -> dict[str, bytes]:
  """Small good files of every format and mode, by file name."""
  y, x = np.mgrid[:40, :56]
  rgb = Image.fromarray(np.stack([4 * x, 6 * y, 100 + x + y], -1).astype(np.uint8))
  exif = Image.Exif()
  exif[0x0112], exif[0x010E] = 6, 'a description'
  deep = Image.fromarray((x * 1000).astype(np.uint16))
  frames = dict(save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])
  kinds = {
    'rgb.png': (rgb, dict(exif=exif)),
    'palette.png': (rgb.convert('P'), dict(transparency=3)),
    'alpha.png': (rgb.convert('RGBA'), {}),
    'deep.png': (deep, {}),
    'animated.png': (rgb, frames),
    'rgb.jpg': (rgb, dict(exif=exif)),
    'progressive.jpg': (rgb.convert('L'), dict(progressive=True, quality=95)),
    'cmyk.jpg': (rgb.convert('CMYK'), {}),
    'lossy.webp': (rgb, dict(exif=exif)),
    'lossless.webp': (rgb.convert('RGBA'), dict(lossless=True)),
    'animated.gif': (rgb.convert('P'), frames),
    'raw.tif': (rgb, dict(exif=exif)),
    'lzw.tif': (rgb, dict(compression='tiff_lzw')),
    'fax.tif': (rgb.convert('1'), dict(compression='group4')),
    'jpeg.tif': (rgb, dict(compression='jpeg')),
    'deep.tif': (deep, {}),
    'rgb.bmp': (rgb, {}),
    'rgb.ppm': (rgb, {}),
    'rgb.tga': (rgb, dict(compression='tga_rle')),
    'icon.ico': (rgb, {}),
    'rgb.jp2': (rgb, {}),
  }
  files = {}
  for file, (image, options) in kinds.items():
    buffer = io.BytesIO()
    kind = Image.registered_extensions()['.' + file.split('.')[1]]
    image.copy().save(buffer, kind, **options)
    files[file] = buffer.getvalue()
  return files


def picture_mutated(rng, canary):
  file = pick(rng, list(pictures()))
  return {file: mutated(rng, pictures()[file])}


def picture_truncated(rng, canary):
  """The beginning of a good file, under its own or another ending."""
  file = pick(rng, list(pictures()))
  data = pictures()[file]
  ending = pick(rng, ['png', 'jpg', 'webp', 'gif', file.split('.')[1]])
  return {f'a.{ending}': data[: int(rng.integers(len(data)))]}


def picture_size(rng, canary):
  """Headers that declare another size than the data have, up to far beyond 100 megapixels."""
  sides = (0, 1, 7, 8, 9, 56, 4000, 9000, 10_001, 65_535, 2**20, 2**31 - 1, 2**32 - 1)
  width, height = pick(rng, sides), pick(rng, sides)
  kind = pick(rng, ['png', 'jpg', 'bmp', 'ppm'])
  data = bytearray(pictures()[f'rgb.{kind}'])
  if kind == 'png':
    header = struct.pack('>II', width, height) + bytes(data[24:29])
    data[16:33] = header + struct.pack('>I', zlib.crc32(b'IHDR' + header))
  elif kind == 'jpg':
    struct.pack_into('>HH', data, data.index(b'\xff\xc0') + 5, height % 2**16, width % 2**16)
  elif kind == 'bmp':
    struct.pack_into('<II', data, 18, width, height)
  else:
    data = bytearray(data.replace(b'56 40', b'%d %d' % (width, height)))
  return {f'a.{kind}': bytes(data)}


def picture_giant(rng, canary):
  """Files that really have 81 or 144 megapixels."""
  side, kind = pick(rng, [9000, 12_000]), pick(rng, ['PNG', 'JPEG'])
  return {f'a.{kind.lower()}': _giant(side, kind)}


@functools.cache
def _giant(side: int, kind: str) -> bytes:
  buffer = io.BytesIO()
  Image.new('L', (side, side), 200).save(buffer, kind)
  return buffer.getvalue()


def no_picture(rng, canary):
  data = [b'', b'\0' * 100, rng.bytes(500), b'<svg width="99999" height="99999"/>']
  data += [b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n', b'P5 99999999999 2 255\n']
  data += [b'GIF89a' + rng.bytes(40), b'II*\0' + rng.bytes(60), b'\xff\xd8' + b'\xff\xe1' * 50]
  return {'a.' + pick(rng, ['png', 'jpg', 'webp', 'gif', 'tif', 'eps', 'avif']): pick(rng, data)}


# Folders of weights


@functools.cache
def sound(kind: str) -> dict[str, bytes]:
  """The files of a good folder of this kind, by their paths."""
  with tempfile.TemporaryDirectory() as temporary:
    top = Path(temporary) / 'w'
    makers = dict(
      pipeline=released.write_pipeline, transformers=released.write_clip, exported=released.export
    )
    if kind in makers:
      makers[kind](top)
    elif kind == 'workdir':
      small.workdir(top, [1])
    else:
      top.mkdir()
      released.write_checkpoint(top / 'o.safetensors')
    files = sorted(path for path in top.rglob('*') if path.is_file())
    return {str(path.relative_to(top.parent)): path.read_bytes() for path in files}


def folder(rng, canary, kind):
  """A folder of weights with one damaged JSON file; in a workdir any small file."""
  files = dict(sound(kind))
  small_ones = [f for f, data in files.items() if kind == 'workdir' and len(data) < 10_000]
  file = pick(rng, [f for f in files if f.endswith('.json')] + small_ones[:2])
  data = files.pop(file)
  if rng.random() < 0.05:  # half a folder
    return {pick(rng, list(files)): b'', **{f: d for f, d in files.items() if rng.random() < 0.8}}
  text = damaged_text(rng, json.loads(data)) if file.endswith('.json') else mutated(rng, data)
  return {file: text, **files}


LDM = dict(
  linear_start=0.00085,
  linear_end=0.012,
  scale_factor=0.2,
  parameterization='eps',
  unet_config=dict(params=dict(num_heads=2, use_spatial_transformer=True)),
  first_stage_config=dict(params=dict(ddconfig=dict(double_z=True, ch_mult=[1, 2]))),
)


def yaml_beside(rng, canary):
  """An original checkpoint with a damaged .yaml beside it."""
  value = dict(model=dict(params=LDM))
  return {'w/o.yaml': damaged_text(rng, value, yaml.safe_dump), **sound('original')}


def note(rng, canary):
  """An original checkpoint of ours with a damaged note in its header."""
  told = dict(model=pbe.complete(released.SMALL), data=dict(size=32), edit=dict(steps=3))
  data = sound('original')['w/o.safetensors']
  length = int.from_bytes(data[:8], 'little')
  text = damaged_text(rng, told).decode('utf-8', 'replace')
  head = json.dumps(dict(json.loads(data[8 : 8 + length]), __metadata__=dict(exedit=text))).encode()
  return {'w/o.safetensors': len(head).to_bytes(8, 'little') + head + data[8 + length :]}


# Recipes and lists

RECIPE = dict(
  exedit=1,
  weights=dict(source='tiny', which='ema', revision=None, step=3, digest='a' * 64),
  inputs={
    name: dict(path=f'{name}.png', sha256='a' * 64) for name in ('image', 'mask', 'exemplar')
  },
  settings=dict(
    **dict(steps=20, scale=3.0, sampler='ddim', seed=0, zoom='auto', feather=2.0, match='colour'),
    **dict(exemplar_fit='squash', paste=True, mask_resize='bilinear', spacing='ldm'),
  ),
  precision='float32',
  frame=dict(top=0, left=0, height=24, width=40, size=[24, 40]),
  batch=1,
  versions=dict(jax='0.10', python='3.11'),
  output=dict(ending='.png', height=24, width=40, channels=3, sha256='a' * 64),
)


def recipe(rng, canary):
  """A damaged recipe, as JSON or in the metadata of a PNG."""
  text = damaged_text(rng, RECIPE)
  if rng.random() < 0.5:
    return {'w/out.json': text}
  info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
  info.add_itxt(images.TEXT, text.decode('utf-8', 'replace'), zip=bool(rng.random() < 0.3))
  Image.new('RGB', (40, 24)).save(buffer, 'PNG', pnginfo=info)
  return {'w/out.png': buffer.getvalue()}


CELLS = (
  *('a.png', 'm.png', 'black.png', 'none.png', '.', '/', 'a' * 300, '\0', '\ud800', '\n', ''),
  *('out.png', 'b.webp', 'c.gif', '1', '-1', '2.5', 'nan', '1e400', '9' * 5000, 'true', '１２'),
)


@functools.cache
def inputs() -> dict[str, bytes]:
  """A photo, its mask, a picture with its own mask, and a mask without a region."""
  y, x = np.mgrid[:24, :40]
  rgb = np.stack([6 * x, 9 * y, x + y], -1)
  hole, subject = 255 * ((y > 8) & (x > 9) & (y < 16)), 255 * (y > 2)[:12, :10]
  files = {}
  for label, pixels in dict(a=rgb, m=hole, e=rgb[:12, :10], s=subject, black=0 * x).items():
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, 'PNG')
    files[f'w/{label}.png'] = buffer.getvalue()
  return files


def _rows(rng) -> list[dict]:
  """Edits, most of which could be made."""
  more = [{}, dict(exemplar_mask='s.png'), dict(scale=3, paste=False, steps=5)]
  own = lambda i: dict(image='a.png', mask='m.png', exemplar='e.png', output=f'{i}.png', seed=i)
  return [own(i) | pick(rng, more) for i in range(int(rng.integers(1, 8)))]


def list_jsonl(rng, canary):
  rows = _rows(rng)
  for row in rows:
    if rng.random() < 0.5:
      row[pick(rng, [*row, 'steps', 'zoom', 'feather', 'x', ''])] = pick(rng, [*CELLS, *VALUES])
  lines = [json.dumps(row).encode() for row in rows]
  if rng.random() < 0.3:
    lines[int(rng.integers(len(lines)))] = damaged_text(rng, rows[0])
  text = pick(rng, [b'\n', b'\r\n', b'\n\n', b'\r']).join(lines)
  return {'w/list.jsonl': mutated(rng, text) if rng.random() < 0.3 else text, **inputs()}


def list_csv(rng, canary):
  rows, buffer = _rows(rng), io.StringIO()
  names = [*dict.fromkeys(name for row in rows for name in row)]
  if rng.random() < 0.3:
    names[int(rng.integers(len(names)))] = pick(rng, ['x', '', 'image', 'Image', 'steps', '\0'])
  table = csv.writer(buffer, quoting=pick(rng, [csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
  table.writerow(names)
  for row in rows:
    cells = [pick(rng, CELLS) if rng.random() < 0.1 else row.get(name, '') for name in names]
    table.writerow(cells[: len(cells) - pick(rng, [0, 0, 0, 1])])
  text = buffer.getvalue().encode('utf-8', 'surrogatepass')
  return {'w/list.csv': mutated(rng, text) if rng.random() < 0.4 else text, **inputs()}


WEIGHTS = {
  'safetensors': safetensors_file,
  'index of shards': index_of_shards,
  'torch zip': zip_mutated,
  'torch before 1.6': legacy,
  'torch bombs': bomb,
  'pickle, hostile': pickle_hostile,
  'pickle, mutated': pickle_mutated,
  'pickle, costly': pickle_costly,
  'no weight file': other_files,
}
PICTURES = {
  'picture, mutated': picture_mutated,
  'picture, truncated': picture_truncated,
  'picture, declared size': picture_size,
  'picture, megapixels': picture_giant,
  'no picture': no_picture,
}
FOLDERS = {
  'config, diffusers': functools.partial(folder, kind='pipeline'),
  'config, exported': functools.partial(folder, kind='exported'),
  'config, workdir': functools.partial(folder, kind='workdir'),
  'note in a checkpoint': note,
}
CHECKPOINTS = {'yaml beside a checkpoint': yaml_beside}
CLIPS = {'config, transformers': functools.partial(folder, kind='transformers')}
RECIPES = {'recipe': recipe}
LISTS = {'list, JSON lines': list_jsonl, 'list, CSV': list_csv}
