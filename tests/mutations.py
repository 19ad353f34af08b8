"""What the makers of bad files share: choices, damage, and some tensors to damage."""

import struct

import numpy as np


def pick(rng, items):
  return items[int(rng.integers(len(items)))]


def mutated(rng, data: bytes, other: bytes = b'') -> bytes:
  """A few bits flipped, bytes changed, cut, doubled or spliced in from elsewhere."""
  out = bytearray(data)
  for _ in range(int(rng.integers(1, 6))):
    at = int(rng.integers(len(out) + 1))
    length = int(rng.integers(1, 40))
    kind = pick(rng, ['flip', 'flip', 'set', 'cut', 'truncate', 'double', 'splice', 'number'])
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
    elif kind == 'splice' and other:
      start = int(rng.integers(len(other)))
      out[at : at + length] = other[start : start + length]
    elif kind == 'number':
      number = pick(rng, [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
      out[at : at + 8] = struct.pack(pick(rng, ['<Q', '>Q']), number)
  return bytes(out) if bytes(out) != data else bytes(out[:-1])


def arrays(rng):
  """A handful of small tensors."""
  shapes = [(), (3,), (2, 3), (0, 4), (4, 1, 2, 2)]
  kinds = [np.float32, np.float16, np.float64, np.int64]
  count = int(rng.integers(1, 6))
  return {
    f'layer.{i}.{pick(rng, ["weight", "bias", "ü"])}': np.asarray(
      rng.standard_normal(pick(rng, shapes)), pick(rng, kinds)
    )
    for i in range(count)
  }
