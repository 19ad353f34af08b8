"""Bad weight files by the hundred: damaged, lying and hostile ones, each from a random generator.

A maker takes (rng, canary) and gives {file name: bytes}, the first being the one to open; `canary`
is a path that exists afterwards if anything in a file was obeyed.
"""

import functools
import io
import json
import pickle
import struct
import zipfile
import zlib

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from tests.fuzz_pickles import hostile_call
from tests.mutations import arrays, mutated, pick
from tests.pickled import Code, call, checkpoint, code, name, ordered, program, state_dict
from tests.pickled import storage as stored
from tests.pickled import tensor as tensor_code

# safetensors


def whole_safetensors(rng) -> bytes:
  values = arrays(rng)
  values['half'] = np.ones(4, pick(rng, [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]))
  return safetensors.numpy.save(values, {'format': 'np'} if rng.random() < 0.5 else None)


def safetensors_mutated(rng, canary):
  return {'a.safetensors': mutated(rng, whole_safetensors(rng), whole_safetensors(rng))}


NASTY = (
  *(
    -1,
    0,
    1,
    2**31,
    2**53,
    2**63,
    2**64,
    10**400,
    -(2**63),
    0.5,
    1e308,
    float('nan'),
    float('inf'),
  ),
  *(
    True,
    None,
    '',
    'a',
    '1',
    [],
    [0],
    [-1],
    [[1]],
    {},
    {'a': 1},
    [2**62, 4],
    [0, 2**63],
    [1] * 100,
  ),
)


def safetensors_lies(rng, canary):
  """A sound file whose header was rewritten by somebody who means it."""
  whole = whole_safetensors(rng)
  length = int.from_bytes(whole[:8], 'little')
  header = json.loads(whole[8 : 8 + length])
  names = [key for key in header if key != '__metadata__']
  entry = header[pick(rng, names)]
  lie = pick(rng, ['dtype', 'shape', 'data_offsets', 'one', 'name', 'metadata', 'lost', 'extra'])
  if lie in entry:
    entry[lie] = pick(rng, NASTY)
  elif lie == 'one':
    entry['data_offsets'][int(rng.integers(2))] += int(rng.integers(-9, 9)) or 1
  elif lie == 'name':
    header[pick(rng, ['', 'a' * 10_000, '\0', '../a', '\ud800', '\n'])] = header.pop(
      pick(rng, names)
    )
  elif lie == 'metadata':
    header['__metadata__'] = pick(rng, NASTY)
  elif lie == 'lost':
    del header[pick(rng, names)]
  else:
    header['extra'] = pick(rng, NASTY)
  text = json.dumps(header).encode()
  claimed = len(text) + (0 if rng.random() < 0.8 else int(rng.integers(-20, 20)))
  return {'a.safetensors': struct.pack('<Q', max(claimed, 0)) + text + whole[8 + length :]}


def safetensors_json(rng, canary):
  """Headers that are hard on a JSON parser."""
  text = pick(
    rng,
    [
      b'[' * 100_000,
      b'{"a":' * 100_000,
      b'{"a": ' + b'9' * 100_000 + b'}',
      b'{"a": "' + b'\\u0000' * 10_000 + b'"}',
      b'{"a": 1, "a": 2}',
      b'{' + b','.join(b'"%d":{}' % i for i in range(20_000)) + b'}',
      b'{"\xff\xfe": {}}',
      b'\xef\xbb\xbf{}',
      b'{"a": NaN}',
      b' ' * 100_000,
      b'{}' + b'\0' * 100,
      b'null',
      b'{"__metadata__": {"a": "%s"}}' % (b'x' * 1_000_000),
    ],
  )
  claimed = pick(rng, [len(text)] * 6 + [len(text) + 1, 2**63, 2**64 - 1, 100_000_001])
  return {'a.safetensors': struct.pack('<Q', claimed) + text + rng.bytes(int(rng.integers(20)))}


# torch's zips


def whole_zip(rng, pack=zipfile.ZIP_STORED) -> bytes:
  weights, storages = state_dict(arrays(rng))
  value = weights if rng.random() < 0.5 else {'epoch': 3, 'state_dict': weights}
  return checkpoint(value, storages, pack=pack)


def zip_mutated(rng, canary):
  pack = pick(rng, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
  return {'a.ckpt': mutated(rng, whole_zip(rng, pack), whole_zip(rng, pack))}


def zip_fields(rng, canary):
  """One field of one record changed: local headers, the list of entries, its end."""
  whole = bytearray(whole_zip(rng, pick(rng, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))
  signature, fields = pick(
    rng,
    [
      (b'PK\3\4', [(6, 'H'), (8, 'H'), (14, 'I'), (18, 'I'), (22, 'I'), (26, 'H'), (28, 'H')]),
      (b'PK\1\2', [(6, 'H'), (8, 'H'), (10, 'H'), (16, 'I'), (20, 'I'), (24, 'I'), (28, 'H')]),
      (b'PK\1\2', [(30, 'H'), (32, 'H'), (34, 'H'), (42, 'I'), (42, 'I'), (46, 'I')]),
      (b'PK\5\6', [(4, 'H'), (6, 'H'), (8, 'H'), (10, 'H'), (12, 'I'), (16, 'I'), (20, 'H')]),
    ],
  )
  places = [i for i in range(len(whole)) if whole.startswith(signature, i)]
  at, kind = pick(rng, fields)
  top = 2 ** (8 * struct.calcsize(kind))
  number = pick(rng, [0, 1, 2, 8, 12, 100, top // 2, top - 1, int(rng.integers(top))])
  struct.pack_into('<' + kind, whole, pick(rng, places) + at, number % top)
  return {'a.pt': bytes(whole)}


def bomb(rng, canary):
  """Zips that claim or hold far more than they are."""
  kind = pick(rng, ['zeros', 'claim', 'entries', 'overlap', 'pickle', 'tensors', 'strides'])
  weights, storages = state_dict({'a': np.zeros(2**12, np.float32)})
  deflated = zipfile.ZIP_DEFLATED
  if kind == 'zeros':
    return {'a.bin': _zeros(pick(rng, [280, 320]))}
  if kind == 'pickle':
    huge = program({'a': 'x' * (2**26 + int(rng.integers(99)))})
    return {'a.bin': checkpoint(huge, {}, pack=deflated)}
  if kind == 'entries':
    return {'a.bin': checkpoint(weights, storages | {f'x{i}': b'' for i in range(3000)})}
  if kind in ('tensors', 'strides'):  # little bytes, endless shapes
    shape = pick(rng, [(2**40,), (2**20, 2**20), (2**30,) * 4, (1,) * 40, (2**26, 1)])
    steps = (0,) * len(shape) if kind == 'strides' else (1,) * len(shape)
    shared = stored('0', 2**12 if rng.random() < 0.5 else 2**59)
    value = ordered({f't{i}': tensor_code(shared, shape, steps) for i in range(3)})
    return {'a.bin': checkpoint(value, storages)}
  whole = bytearray(checkpoint(weights, storages, pack=deflated))
  for record in [i for i in range(len(whole)) if whole.startswith(b'PK\1\2', i)]:
    if kind == 'claim':
      struct.pack_into('<I', whole, record + 24, pick(rng, [2**32 - 2, 2**31, 10**6]))
    else:
      struct.pack_into('<I', whole, record + 42, 0)
  return {'a.bin': bytes(whole)}


@functools.cache
def _zeros(megabytes: int) -> bytes:
  values = {'a': np.zeros((megabytes, 2**18), np.float32)}
  return checkpoint(*state_dict(values), pack=zipfile.ZIP_DEFLATED)


# lists of shards, files of torch before 1.6, and what is no weight file at all


def index_json(rng, canary):
  """An index whose shards are missing, elsewhere, damaged or the index itself."""
  shards = {f'model-{i}.safetensors': whole_safetensors(rng) for i in range(2)}
  keys = {shard: sorted(k for k, _ in safetensors.deserialize(shards[shard])) for shard in shards}
  where = {key: shard for shard in shards for key in keys[shard]}
  lie = pick(rng, ['sound', 'file', 'name', 'value', 'text', 'shard', 'deep', 'twice', 'none'])
  if lie == 'file':
    places = ['../x', '/etc/passwd', '', '.', '..', 'no', 'a.index.json', 'a\\b', '\0', 'x' * 5000]
    where['half'] = pick(rng, places)
  elif lie == 'name':
    where[pick(rng, ['', 'absent', '\ud800', 'x' * 5000])] = 'model-0.safetensors'
  elif lie == 'value':
    where['half'] = pick(rng, NASTY)
  elif lie == 'shard':
    shards['model-1.safetensors'] = mutated(rng, shards['model-1.safetensors'])
  elif lie == 'none':
    del shards['model-1.safetensors']
  text = json.dumps({'metadata': {'total_size': 1}, 'weight_map': where}).encode()
  if lie == 'text':
    text = mutated(rng, text)
  elif lie == 'deep':
    text = b'{"weight_map":' * 50_000
  elif lie == 'twice':
    text = b'{"weight_map": {"a": "model-0.safetensors", "a": "model-1.safetensors"}}'
  return {'a.index.json': text, **shards}


def whole_legacy(rng, extra=None) -> bytes:
  """What torch.save wrote before 1.6: pickles one behind the other, then the storages."""
  weights, items = arrays(rng), {}
  rebuild = name('torch._utils', '_rebuild_tensor_v2')
  for key, (label, array) in enumerate(weights.items()):
    weights[label] = array = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    pid = ('storage', name('torch', 'FloatStorage'), str(key), 'cpu', array.size, None)
    strides = tuple(s // 4 for s in array.strides)
    hooks = call(name('collections', 'OrderedDict'))
    items[label] = call(rebuild, Code(code(pid) + b'Q'), 0, array.shape, strides, False, hooks)
  if extra is not None:
    items['x'] = extra
  system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'int': 4}}
  parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), program(system)]
  parts += [program(ordered(items)), pickle.dumps([str(i) for i in range(len(weights))], 2)]
  for array in weights.values():
    parts += [struct.pack('<q', array.size), array.tobytes()]
  return b''.join(parts)


def legacy_mutated(rng, canary):
  return {'a.pth': mutated(rng, whole_legacy(rng), whole_legacy(rng))}


def legacy_hostile(rng, canary):
  return {'a.pth': whole_legacy(rng, hostile_call(rng, canary))}


def other_files(rng, canary):
  """Everything else that people put under the name of a weight file."""
  tar = b'a.txt'.ljust(257, b'\0') + b'ustar\x0000'.ljust(255, b'\0')
  readme = io.BytesIO()
  with zipfile.ZipFile(readme, 'w') as archive:
    entry = pick(rng, ['readme.txt', 'data.pkl', 'a/data.pkl', 'a/b/data.pkl'])
    archive.writestr(zipfile.ZipInfo(entry), b'hello')
  data = pick(
    rng,
    [
      b'',
      b'\0' * int(rng.integers(1, 100)),
      rng.bytes(int(rng.integers(1, 3000))),
      b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n',
      b'<!DOCTYPE html><html><body>Entry not found</body></html>',
      b'Entry not found',
      tar,
      readme.getvalue(),
      zlib.compress(whole_zip(rng)),
      b'\x80' + rng.bytes(100),
      b'PK\3\4' + rng.bytes(int(rng.integers(200))),
      b'{' + rng.bytes(50),
      b'\x89HDF\r\n\x1a\n' + rng.bytes(200),
    ],
  )
  ending = pick(rng, ['.safetensors', '.bin', '.ckpt', '.pt', '.pth', '.index.json', ''])
  return {'a' + ending: data}


MAKERS = {
  'safetensors, mutated': safetensors_mutated,
  'safetensors, lying header': safetensors_lies,
  'safetensors, odd JSON': safetensors_json,
  'torch zip, mutated': zip_mutated,
  'torch zip, lying records': zip_fields,
  'torch zip, bombs': bomb,
  'index of shards': index_json,
  'torch before 1.6, mutated': legacy_mutated,
  'torch before 1.6, hostile': legacy_hostile,
  'no weight file at all': other_files,
}
