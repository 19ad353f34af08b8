"""Vectors on the disk: kept exactly, by content, after a kill; damage is one line."""

import numpy as np
import pytest

from exedit.evaluation import cache
from exedit.evaluation.cache import Cache, key
from exedit.runtime.errors import UserError


def test_vectors_and_reasons_come_back_in_order(tmp_path):
  rng = np.random.default_rng(0)
  vectors = {f'k{i}': rng.normal(size=3).astype(np.float32) for i in range(cache.CHUNK + 7)}
  with Cache(str(tmp_path / 'new' / 'folder')) as kept:
    for name, vector in vectors.items():
      kept.put(name, vector)
    kept.put('none', None, 'too small')
    kept.put('double', np.array([1e-300]))
    kept.commit()
  with Cache(str(tmp_path / 'new' / 'folder')) as kept:
    order = [*list(vectors)[::-1], 'none', 'double', 'k3', 'k3']
    pieces = list(kept.rows(order))
    assert [len(piece) for piece in pieces] == [cache.CHUNK, 11]
    rows = [row for piece in pieces for row in piece]
  for name, (vector, why) in zip(order, rows, strict=True):
    if name == 'none':
      assert vector is None and why == 'too small'
    else:
      expected = vectors.get(name, np.array([1e-300]))
      assert vector is not None and vector.dtype == expected.dtype
      np.testing.assert_array_equal(vector, expected)


def test_what_was_not_committed_is_missing(tmp_path):
  with Cache(str(tmp_path)) as kept, Cache(str(tmp_path)) as other:
    kept.put('a', np.zeros(1))
    assert kept.missing(['a', 'b', 'a']) == ['a', 'b'] == other.missing(['a', 'b'])
    kept.commit()
    assert kept.missing(['a', 'b']) == ['b'] == other.missing(['a', 'b'])
    with pytest.raises(KeyError):
      list(other.rows(['b']))


def test_keys_differ_in_every_part():
  assert len({key('a', 'b'), key('b', 'a'), key('ab'), key('a', 'b', ''), key('a\n', 'b')}) == 5


def test_a_damaged_file_is_one_line(tmp_path):
  (tmp_path / cache.FILE).write_bytes(b'no database' * 100)
  with pytest.raises(UserError, match='remove the file if it is damaged') as caught:
    Cache(str(tmp_path))
  assert '\n' not in str(caught.value)
