"""The SHA-256 of a weight file is right, and is not computed twice."""

import hashlib
import os

import pytest

from exedit.weights import digests

pytestmark = pytest.mark.usefixtures('own_cache')


def test_a_digest_is_remembered_by_place_size_and_time(tmp_path, monkeypatch):
  file = tmp_path / 'a.bin'
  file.write_bytes(b'weights')
  os.utime(file, (1e9, 1e9))
  expected = digests.sha256(file)
  monkeypatch.setattr(hashlib, 'file_digest', None)
  assert digests.sha256(file) == expected
  with pytest.raises(TypeError):  # the file is read again
    os.utime(file, (2e9, 1.5e9))
    digests.sha256(file)


def test_a_file_that_just_changed_is_not_remembered(tmp_path):
  file = tmp_path / 'a.bin'
  file.write_bytes(b'weights')
  digests.sha256(file)
  status = file.stat()
  file.write_bytes(b'WEIGHTS')
  os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
  assert digests.sha256(file) == hashlib.sha256(b'WEIGHTS').hexdigest()
