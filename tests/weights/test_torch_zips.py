"""Zip files are read in parts, and lying, damaged and exploding ones are refused."""

import struct
import subprocess
import sys
import warnings
import zipfile
import zlib

import numpy as np
import pytest

from exedit.weights.formats import torch
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.tensor import File
from exedit.weights.formats.torch import Zip
from tests.pickled import checkpoint, refusal, state_dict

DATA = np.random.default_rng(0).bytes(10_000)


def write(path, entries, pack=zipfile.ZIP_STORED):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # two entries of the same name
    with zipfile.ZipFile(path, 'w', pack) as file:
      for name, data in entries:
        file.writestr(name, data)
  return path


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'a.zip'


def read_all(path):
  opened = Zip(File(path))
  return [opened.read(name).tobytes() for name in opened.names()]


@pytest.mark.parametrize('pack', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_entries_and_parts_of_them_are_read(path, pack, monkeypatch):
  monkeypatch.setattr(torch, 'CHUNK', 999)
  opened = Zip(File(write(path, [('a', DATA), ('b', bytes(50_000)), ('none', b'')], pack)))
  assert opened.names() == ['a', 'b', 'none'] and opened.size('a') == 10_000
  assert opened.size('c') == -1
  assert opened.read('a').tobytes() == DATA and opened.read('b').tobytes() == bytes(50_000)
  assert opened.read('a', 17, 5000).tobytes() == DATA[17:5017]
  assert opened.read('a', 17).tobytes() == DATA[17:]
  assert opened.read('none').size == 0
  part = opened.read('a', 1, 4)
  part[:] = 0
  assert opened.read('a', 1, 4).tobytes() == DATA[1:5]


def test_large_offsets_are_read(path):
  """Files above 4 GB have Zip64 fields; this small file has them too."""
  with zipfile.ZipFile(path, 'w') as file, file.open('a', 'w', force_zip64=True) as out:
    out.write(DATA)
  assert read_all(path) == [DATA]


@pytest.mark.parametrize('pack', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_anywhere_in_the_data_is_found(path, pack):
  whole = write(path, [('a', DATA), ('b', b'x')], pack).read_bytes()
  for at in range(40, 10_000, 997):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    refusal(Zip(File(path)).read, 'a')
    refusal(Zip(File(path)).read, 'a', 3, 4)  # also if the part itself has no error
  assert Zip(File(path)).read('b').tobytes() == b'x'


def test_no_checksum_is_no_damage(path):
  """torch.serialization.set_crc32_options(False) writes zeros."""
  write(path, [('a', DATA)])
  path.write_bytes(path.read_bytes().replace(struct.pack('<I', zlib.crc32(DATA)), bytes(4)))
  assert read_all(path) == [DATA]


LIES = {  # fields of the first record in the list of entries: {offset: (format, value)}
  'another size': ({24: ('<I', 10**6)}, '10000 of 1000000 bytes'),
  'more bytes than the file': ({20: ('<I', 10**6)}, 'more bytes than the file has'),
  'encrypted': ({8: ('<H', 1)}, 'encrypted'),
}


@pytest.mark.parametrize('lie', LIES)
def test_a_lying_list_of_entries_is_refused(path, lie):
  changes, words = LIES[lie]
  whole = bytearray(write(path, [('a', DATA)]).read_bytes())
  record = whole.index(b'PK\x01\x02')
  for offset, (code, value) in changes.items():
    struct.pack_into(code, whole, record + offset, value)
  path.write_bytes(whole)
  assert words in refusal(read_all, path)


def test_a_bomb_is_refused_before_anything_is_unpacked(path):
  write(path, [('a', bytes(300 * 2**20))], zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 400_000
  assert str(300 * 2**20) in refusal(lambda: Zip(File(path)))


def test_rare_kinds_double_names_and_a_huge_list_are_refused(path, monkeypatch):
  assert 'rare' in refusal(read_all, write(path, [('a', DATA)], zipfile.ZIP_LZMA))
  assert 'same name' in refusal(read_all, write(path, [('a', DATA), ('a', DATA)]))
  monkeypatch.setattr(torch, 'LARGEST_DIRECTORY', 7000)
  write(path, [(f'{n:030}', b'') for n in range(100)])
  assert '7600 bytes' in refusal(read_all, path)


def test_torchscript_is_refused_with_the_remedy(path):
  write(path, [('net/data.pkl', b'\x80\x02).'), ('net/constants.pkl', b'\x80\x02).')])
  line = refusal(open_tensors, path)
  assert 'is TorchScript' in line and '.safetensors' in line and 'clip-vit-base-patch32' in line


MEMORY = """
import resource, sys
from exedit.weights.formats.files import open_tensors

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for tensor in open_tensors(sys.argv[1]).values():
  tensor.read()[-1]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_one_tensor_at_a_time_is_in_memory(path):
  zeros = {f't{i}': np.zeros(2**22, np.float32) for i in range(4)}  # 16 MB each
  path.write_bytes(checkpoint(*state_dict(zeros)))
  done = subprocess.run(
    [sys.executable, '-c', MEMORY, path], capture_output=True, text=True, check=True
  )
  assert float(done.stdout) < 40  # a tensor is read before the last one is freed
