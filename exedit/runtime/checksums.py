"""Checksums of arrays. A checkpoint stores one per array: Orbax restores flipped bits silently.

A run keeps them in `checkpoints/STEP/digest`, a JSON of each array's shape, type and checksum.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Shaped, UInt32


class Damaged(Exception):
  """A checkpoint whose content is not what was saved; the message says where."""


def named(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their path, such as 'params/unet.conv_in.kernel'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def digests(arrays: Mapping[str, Any]) -> dict[str, int]:
  """The checksum of every array, computed on the devices that hold it."""
  found = jax.device_get({name: digest(array) for name, array in arrays.items()})
  return {name: int(value) for name, value in found.items()}


@jax.jit
def digest(x: Shaped[Array, '...']) -> UInt32[Array, '']:
  """Checksum of an array's bits and their positions; it does not depend on the mesh.

  Each 32-bit word is joined with its index and scrambled by MurmurHash3's finalizer. That function
  is a bijection, so one changed word always changes the sum (modulo 2^32); exchanged words change
  it almost surely.
  """
  bits = _words(x)
  place = jnp.zeros(bits.shape, jnp.uint32)
  for axis, n in enumerate(bits.shape):  # row-major index; a reshape would gather a split array
    place = place * np.uint32(n) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  h = bits ^ (place * np.uint32(0x9E3779B1))
  h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
  return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


def _words(x: Shaped[Array, '...']) -> UInt32[Array, '...']:
  """The bits of any array as uint32; 8-byte numbers get a last axis of two."""
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  size = x.dtype.itemsize
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def seal(arrays: Mapping[str, Any]) -> dict[str, dict]:
  """Shape, type and checksum of every array, as JSON values."""
  values = digests(arrays)
  return {
    name: dict(shape=a.shape, dtype=str(a.dtype), digest=values[name]) for name, a in arrays.items()
  }


def read_seal(path: epath.Path | Path) -> dict[str, dict]:
  """Shape, type and checksum of every array of the checkpoint in this folder.

  Raises:
    Damaged: if they are missing or unreadable.
  """
  try:
    found = json.loads((path / 'digest' / 'metadata').read_text())
    return {n: dict(e, shape=tuple(e['shape']), digest=int(e['digest'])) for n, e in found.items()}
  except FileNotFoundError:
    raise Damaged('its digest is missing') from None
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise Damaged(f'its digest is unreadable: {error}') from error


def verify(arrays: Mapping[str, Any], expected: Mapping[str, dict]) -> None:
  """Compares every array with its checksum in `expected`, the result of `read_seal`.

  Raises:
    Damaged: at the first array whose bits are not those that were saved.
  """
  for name, value in digests(arrays).items():
    saved = expected[name]['digest']
    if value != saved:
      raise Damaged(f'checksum of {name} is {value:08x}, saved was {saved:08x}')
