"""Rewrites shards that TensorFlow compressed with GZIP or ZLIB as plain TFRecord.

  python -m input_pipeline.decompress --input=compressed --output=data/mine

Records are read one by one from any place of a shard, which a compressed file does not allow. Plain
shards of the folder are copied, other files are left out.
"""

import os
import re
import zlib
from collections.abc import Iterator

from exedit.runtime import doors, files, progress, remote

from .errors import DataError
from .tfrecord import SHARD, compression

ENDING = re.compile(r'\.(gz|gzip|zlib|z)$', re.IGNORECASE)
FLAGS = (
  ('input', doors.REQUIRED, 'folder with compressed shards'),
  ('output', doors.REQUIRED, 'new folder for the same shards, plain'),
)


def main(input: str, output: str) -> None:
  """Writes every shard of a folder without compression into a new folder.

  Raises:
    DataError: if there is no shard, or one is damaged. Nothing is written then.
  """
  files.check_new(output, '--output')
  shards = {name: ENDING.sub('', name) for name in sorted(remote.listing(input))}
  shards = {name: plain for name, plain in shards.items() if SHARD.fullmatch(plain)}
  if not shards:
    raise DataError(f'--input={input}: it holds no shards *.tfrecord-00000-of-00001')
  with files.new_folder(output) as stage:
    for name in progress.bar(shards, 'decompressing', total=len(shards), unit='shard'):
      with files.writing(stage / shards[name]) as file:
        for part in _plain(os.path.join(input, name)):
          file.write(part)
  print(f'{output}: {len(shards)} shards')


def _plain(path: str) -> Iterator[bytes]:
  """Yields the content of a shard; a compressed one may have several members, one after another."""
  data = remote.read(path)
  if not compression(data):
    yield data
    return
  while data:
    member = zlib.decompressobj(32 + zlib.MAX_WBITS)  # finds out itself which kind it is
    try:
      yield member.decompress(data)
    except zlib.error as error:
      raise DataError(f'{path} is damaged ({error}): fetch or write it again') from None
    if not member.eof:
      raise DataError(f'{path} is cut short: fetch or write it again')
    data = member.unused_data


if __name__ == '__main__':
  doors.call(main, FLAGS, __doc__)
