import io
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest

from exedit.runtime.errors import UserError
from exedit.weights.formats import zips
from exedit.weights.formats.pread import File
from exedit.weights.formats.zips import Zip


def archive(path, entries, pack=zipfile.ZIP_STORED):
  """The zip, written and opened."""
  write(path, entries, pack)
  return Zip(File(path))


def write(path, entries, pack=zipfile.ZIP_STORED):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # about a name that stands there twice
    with zipfile.ZipFile(path, 'w', pack) as file:
      for name, data in entries:
        file.writestr(name, data)


def refusal(call, *args):
  with pytest.raises(UserError) as caught:
    call(*args)
  line = str(caught.value)
  assert '\n' not in line and 'a.zip' in line and len(line) < 500
  return line


DATA = np.random.default_rng(0).bytes(10_000)


@pytest.mark.parametrize('pack', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_entries_and_parts_of_them_are_read(tmp_path, pack, monkeypatch):
  monkeypatch.setattr(zips, 'CHUNK', 999)
  opened = archive(tmp_path / 'a.zip', [('a', DATA), ('b', bytes(50_000)), ('none', b'')], pack)
  assert opened.names() == ['a', 'b', 'none'] and opened.size('a') == 10_000
  assert opened.size('c') == -1
  assert opened.read('a').tobytes() == DATA and opened.read('b').tobytes() == bytes(50_000)
  assert opened.read('a', 17, 5000).tobytes() == DATA[17:5017]
  assert opened.read('a', 17).tobytes() == DATA[17:]
  assert opened.read('none').size == 0
  part = opened.read('a', 1, 4)
  part[:] = 0
  assert opened.read('a', 1, 4).tobytes() == DATA[1:5]


def test_large_offsets_are_read(tmp_path):
  """Zip64 fields, which files above 4 GB need, without a file above 4 GB."""
  with (
    zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file,
    file.open('a', 'w', force_zip64=True) as out,
  ):
    out.write(DATA)
  assert Zip(File(tmp_path / 'a.zip')).read('a').tobytes() == DATA


@pytest.mark.parametrize('pack', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_anywhere_in_the_data_is_found(tmp_path, pack):
  path = tmp_path / 'a.zip'
  write(path, [('a', DATA), ('b', b'x')], pack)
  whole = path.read_bytes()
  for at in range(40, 10_000, 997):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    refusal(Zip(File(path)).read, 'a')
    refusal(Zip(File(path)).read, 'a', 3, 4)  # though the part itself may be sound
  assert Zip(File(path)).read('b').tobytes() == b'x'


def test_no_checksum_is_no_damage(tmp_path):
  """torch.serialization.set_crc32_options(False) writes zeros."""
  path = tmp_path / 'a.zip'
  write(path, [('a', DATA)])
  crc = struct.pack('<I', zlib.crc32(DATA))
  path.write_bytes(path.read_bytes().replace(crc, bytes(4)))
  assert Zip(File(path)).read('a').tobytes() == DATA


def test_every_truncation_is_refused(tmp_path):
  path = tmp_path / 'a.zip'
  write(path, [('a', DATA[:50]), ('b', b'x')])
  whole = path.read_bytes()
  for size in range(len(whole)):
    path.write_bytes(whole[:size])
    refusal(lambda: Zip(File(path)))


def patched(path, changes):
  """The zip with fields of the directory's first record changed: {offset: (format, value)}."""
  whole = bytearray(path.read_bytes())
  record = whole.index(b'PK\x01\x02')
  for offset, (code, value) in changes.items():
    struct.pack_into(code, whole, record + offset, value)
  path.write_bytes(whole)
  return lambda: Zip(File(path))


def test_a_stored_entry_that_claims_another_size_is_refused(tmp_path):
  write(tmp_path / 'a.zip', [('a', DATA)])
  line = refusal(patched(tmp_path / 'a.zip', {24: ('<I', 10**9)}))
  assert '10000 bytes stored, 1000000000 claimed' in line


def test_an_entry_that_reaches_into_the_next_is_refused(tmp_path):
  write(tmp_path / 'a.zip', [('a', DATA), ('b', DATA)])
  more = ('<I', 10_040)
  assert 'reaches' in refusal(patched(tmp_path / 'a.zip', {20: more, 24: more}))


def test_entries_that_share_their_data_are_refused(tmp_path):
  """The other kind of bomb: a thousand entries over the same bytes."""
  path = tmp_path / 'a.zip'
  write(path, [('a', DATA), ('b', DATA)])
  whole = bytearray(path.read_bytes())
  second = whole.index(b'PK\x01\x02', whole.index(b'PK\x01\x02') + 4)
  struct.pack_into('<I', whole, second + 42, 0)
  path.write_bytes(whole)
  assert 'reaches' in refusal(lambda: Zip(File(path)))


def test_an_entry_whose_own_header_is_elsewhere_is_refused_when_read(tmp_path):
  path = tmp_path / 'a.zip'
  write(path, [('a', DATA)])
  opened = patched(path, {42: ('<I', 5), 20: ('<I', 9000), 24: ('<I', 9000)})()
  assert 'does not stand' in refusal(opened.read, 'a')


def test_a_bomb_is_refused_before_anything_is_unpacked(tmp_path):
  write(tmp_path / 'a.zip', [('a', bytes(300 * 2**20))], zipfile.ZIP_DEFLATED)
  assert (tmp_path / 'a.zip').stat().st_size < 400_000
  assert str(300 * 2**20) in refusal(lambda: Zip(File(tmp_path / 'a.zip')))


@pytest.mark.parametrize('claimed', [100, 9_999, 10_001])
def test_a_compressed_entry_of_another_size_than_announced_is_refused(tmp_path, claimed):
  write(tmp_path / 'a.zip', [('a', DATA)], zipfile.ZIP_DEFLATED)
  opened = patched(tmp_path / 'a.zip', {24: ('<I', claimed)})()
  assert str(claimed) in refusal(opened.read, 'a')


def test_rare_kinds_and_double_names_are_refused(tmp_path):
  write(tmp_path / 'a.zip', [('a', DATA)], zipfile.ZIP_LZMA)
  assert 'rare' in refusal(lambda: Zip(File(tmp_path / 'a.zip')))
  write(tmp_path / 'a.zip', [('a', DATA)])
  assert 'encrypted' in refusal(patched(tmp_path / 'a.zip', {8: ('<H', 1)}))
  write(tmp_path / 'a.zip', [('a', DATA), ('a', DATA)])
  assert 'same name' in refusal(lambda: Zip(File(tmp_path / 'a.zip')))


def test_a_list_of_entries_of_absurd_length_is_not_read(tmp_path, monkeypatch):
  write(tmp_path / 'a.zip', [(f'{n:030}', b'') for n in range(100)])
  monkeypatch.setattr(zips, 'LARGEST_DIRECTORY', 7000)
  assert '7600 bytes' in refusal(lambda: Zip(File(tmp_path / 'a.zip')))


def test_a_zip_of_anything_else_opens_too(tmp_path):
  """What the entries mean is not this file's affair: folders and comments are legal."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as file:
    file.mkdir('folder')
    file.writestr('folder/a', DATA)
    file.comment = b'a comment'
  (tmp_path / 'a.zip').write_bytes(buffer.getvalue())
  assert Zip(File(tmp_path / 'a.zip')).read('folder/a').tobytes() == DATA
