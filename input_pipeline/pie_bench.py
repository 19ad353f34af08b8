"""PIE-Bench of arXiv 2310.01506, or another benchmark in its layout: photos, prompts and regions.

  mapping_file.json                                the edits by their ids of 12 digits, in order
  annotation_images/0_random_140/000000000000.jpg  the source with the `image_path` of its edit

An edit in the mapping file:

  image_path           the source's file, below annotation_images
  original_prompt      says what the source shows; [brackets] are around what the edit changes
  editing_prompt       says what the result shows, with brackets too
  editing_instruction  the same change as an order (optional)
  editing_type_id      '0' to '9': see TYPES
  blended_word         the changed word of either prompt, with a space between, or '' (optional)
  mask                 the region that the edit changes: start, length, start, length, ... of its
                       runs of pixels, row by row

  python -m input_pipeline.pie_bench --bench=PIE-Bench_v1 --results=RESULTS --output=edits.csv

writes a list of the edits for `python -m exedit.sample --edits` or another program: image, prompt,
target and output. The results lie where `configs/pie_bench.py` finds them.

Source: README.md and evaluation/evaluate.py of cure-lab/PnPInversion, commit 07f97f4.
"""

import json
import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool

from exedit.runtime import decode, doors, files, lists

from .errors import DataError

MAPPING, PICTURES = 'mapping_file.json', 'annotation_images'
LIST = ('image', 'prompt', 'target', 'output')  # columns of the list of edits
KINDS = ('source', 'mask', 'words')
NEEDED = ('image_path', 'original_prompt', 'editing_prompt', 'editing_type_id', 'mask')
TYPES = {
  '0': 'random',
  '1': 'change an object',
  '2': 'add an object',
  '3': 'delete an object',
  '4': 'change content',
  '5': 'change pose',
  '6': 'change colour',
  '7': 'change material',
  '8': 'change the background',
  '9': 'change the style',
}


class Bench:
  """The edits of a benchmark by position, in the order of its mapping file.

  Raises:
    DataError: if the mapping file is missing or damaged, or an entry cannot be used; names it.
  """

  kinds = KINDS

  def __init__(self, root: str | os.PathLike, mapping: str = MAPPING):
    self.root, self.mapping = os.fspath(root), mapping
    self._path = os.path.join(self.root, mapping)
    self._entries = [_checked(self._path, *pair) for pair in _read(self._path)]
    self.ids = np.array([number for number, _ in self._entries], np.int64)
    if len({*self.ids.tolist()}) < len(self.ids):
      raise DataError(f'{self._path} has an id twice: results are named by id, so leave one out')

  def __len__(self) -> int:
    return len(self._entries)

  def __repr__(self) -> str:
    return f'Bench({self.root!r}, {len(self)} edits)'

  def name(self, position: int) -> str:
    """The path of the source below PICTURES, and of the result in a folder of results."""
    return self._entries[position][1]['image_path']

  def listed(self, position: int, results: str) -> dict[str, str]:
    """Returns the row of an edit in a list of edits, by the columns LIST."""
    entry = self._entries[position][1]
    own = PurePosixPath(self.name(position)).with_suffix('.png')
    return dict(
      image=os.path.abspath(os.path.join(self.root, PICTURES, self.name(position))),
      prompt=unbracketed(entry['original_prompt']),
      target=unbracketed(entry['editing_prompt']),
      output=os.path.abspath(os.path.join(results, own)),
    )

  def table(self, results: str) -> str:
    """Returns the list of all edits as CSV, whose results lie in this folder."""
    rows = (self.listed(i, results) for i in range(len(self)))
    return lists.as_csv(LIST, ([row[name] for name in LIST] for row in rows))

  def encoded(self, position: int) -> dict[str, bytes]:
    """Returns what an edit is made of, by KINDS: the bytes of its source, its runs, its words."""
    entry = self._entries[position][1]
    path = os.path.join(self.root, PICTURES, self.name(position))
    try:
      with open(path, 'rb') as file:
        source = file.read()
    except OSError as error:
      raise DataError(f'{path} cannot be read: {error.strerror}') from error
    words = {name: value for name, value in entry.items() if name not in ('mask', 'image_path')}
    told = lambda value: json.dumps(value, sort_keys=True).encode()
    return dict(source=source, mask=told(entry['mask']), words=told(words))

  def __getitem__(self, position: int) -> dict:
    """Returns one edit.

    It is dict(id, source uint8 [h w 3], mask uint8 [h w] (255 = the edit's region), prompt, target
    (without brackets), instruction, words (the changed words of both prompts, or ()), type).

    Raises:
      DataError: if its source cannot be read.
    """
    number, entry = self._entries[position]
    source = np.asarray(
      decode.upright(self.encoded(position)['source'], 'RGB', 'white', self.name(position))
    )
    region = decode_mask(entry['mask'], source.shape[:2])
    return dict(
      id=number,
      source=source,
      mask=region.astype(np.uint8) * np.uint8(255),
      prompt=unbracketed(entry['original_prompt']),
      target=unbracketed(entry['editing_prompt']),
      instruction=str(entry.get('editing_instruction') or ''),
      words=tuple(str(entry.get('blended_word') or '').split()),
      type=entry['editing_type_id'],
    )


def decode_mask(runs: Sequence[int], size: tuple[int, int]) -> Bool[np.ndarray, 'h w']:
  """Returns the region of the runs of an entry, and the pixels at the picture's border.

  As in the published code, the border always belongs to the region, and the part of a run that is
  beyond the last pixel does not count.
  """
  flat = np.zeros(size[0] * size[1], bool)
  for start, length in zip(runs[::2], runs[1::2]):
    flat[start : start + length] = True
  mask = flat.reshape(size)
  mask[[0, -1]] = True
  mask[:, [0, -1]] = True
  return mask


def unbracketed(text: str) -> str:
  """Returns a prompt without the brackets around its changed words."""
  return text.replace('[', '').replace(']', '')


def _read(path: str) -> list[tuple[str, Any]]:
  """Returns the entries of a mapping file in their order, those of equal ids too."""
  pairs = lambda found: found if found and _are_edits(found) else dict(found)
  try:
    with open(path, encoding='utf-8') as file:
      entries = json.load(file, object_pairs_hook=pairs)
  except FileNotFoundError:
    raise DataError(f'{path} is missing: it holds the edits of the benchmark') from None
  except (OSError, ValueError, RecursionError) as error:
    raise DataError(f'{path} cannot be read ({error}): download it again') from error
  if not isinstance(entries, list) or not entries or not isinstance(entries[0], tuple):
    raise DataError(f'{path} holds no edits by their ids: is it the mapping file of PIE-Bench?')
  return entries


def _are_edits(pairs: list[tuple[str, Any]]) -> bool:
  return all(isinstance(value, dict) for _, value in pairs)


def _checked(path: str, key: str, entry: dict[str, Any]) -> tuple[int, dict[str, Any]]:
  """Returns an edit's id and entry; DataError if something of it is missing or malformed."""
  where = f'{path}, edit {key!r:.40}'
  if not (key.isascii() and key.isdigit() and len(key) <= 18):
    raise DataError(f'{where}: the id must be a number, such as 000000000000')
  if missing := [name for name in NEEDED if name not in entry]:
    raise DataError(f'{where} has no {missing[0]}: it needs {", ".join(NEEDED)}')
  for name in NEEDED[:-1]:
    if not isinstance(entry[name], str) or not entry[name].strip():
      raise DataError(f'{where}: {name} is {entry[name]!r:.40}: it must be a text')
  if entry['editing_type_id'] not in TYPES:
    raise DataError(f'{where}: editing_type_id is {entry["editing_type_id"]!r:.40}: 0 to 9 exist')
  place = PurePosixPath(entry['image_path'])
  if place.is_absolute() or '..' in place.parts or '\\' in entry['image_path']:
    raise DataError(f'{where}: image_path {str(place)!r:.80} must lie below {PICTURES}')
  runs = entry['mask']
  if not isinstance(runs, list) or any(type(n) is not int or n < 0 for n in runs):
    raise DataError(f'{where}: mask must be a list of whole numbers, at least 0')
  if len(runs) % 2:
    raise DataError(f'{where}: mask has {len(runs)} numbers: each run is a start and a length')
  return int(key), entry


FLAGS = (
  doors.Flag('bench', doors.REQUIRED, 'folder of the benchmark'),
  doors.Flag('results', doors.REQUIRED, 'folder for the results of the edits'),
  doors.Flag('output', doors.REQUIRED, 'the list to write, a .csv'),
  doors.Flag('mapping', MAPPING, 'name of the mapping file'),
)


def main(bench: str, results: str, output: str, mapping: str) -> None:
  """Writes the list of a benchmark's edits."""
  if not output.endswith('.csv'):
    raise DataError(f'--output is {output}: it must end with .csv')
  files.check_new(output, '--output')
  found = Bench(bench, mapping)
  files.write_text(output, found.table(results))
  print(f'{output}: {len(found)} edits')


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
