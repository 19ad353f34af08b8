import jax.numpy as jnp
import numpy as np
import pytest

from exedit.runtime import checksums


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int32', 'uint8', 'bool', 'float16'])
def test_digest_sees_one_bit_and_an_exchange(dtype):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.integers(0, 2 if dtype == 'bool' else 100, (3, 5)), dtype)
  base = int(checksums.digest(x))
  other = np.array(x)
  other[1, 2] = not other[1, 2] if dtype == 'bool' else other[1, 2] + np.array(1, dtype)
  assert int(checksums.digest(jnp.asarray(other))) != base
  swapped = np.array(x)
  swapped[0], swapped[2] = np.array(x)[2], np.array(x)[0]
  assert int(checksums.digest(jnp.asarray(swapped))) != base
  assert int(checksums.digest(jnp.asarray(np.array(x)))) == base


def test_digest_sees_what_equality_does_not():
  assert int(checksums.digest(jnp.array([0.0]))) != int(checksums.digest(jnp.array([-0.0])))
  nan = checksums.digest(jnp.array([jnp.nan]))
  assert int(nan) == int(checksums.digest(jnp.array([jnp.nan])))


def test_digest_is_computed_as_documented():
  """Against the formula in plain Python, so that old checkpoints stay readable."""

  def scramble(h):
    h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
    h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
    return h ^ (h >> 16)

  x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
  words = x.view(np.uint32).ravel().tolist()
  expected = sum(scramble(w ^ (i * 0x9E3779B1 % 2**32)) for i, w in enumerate(words)) % 2**32
  assert int(checksums.digest(jnp.asarray(x))) == expected
