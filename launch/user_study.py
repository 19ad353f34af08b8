"""Builds a user study as a folder with a web page, and makes the paper's table from the answers.

  python -m launch.user_study build --bench=test_bench --results=ours=results/ours \
      --results=paste=results/paste --count=30 --output=study
  python -m launch.user_study table answers/*.json

`build` writes index.html and its pictures. Put the folder on a web server or hand it out as it is:
the page loads nothing from elsewhere and sends nothing. It saves a file, which the participants
send back. The page shows the source, the region and the exemplar above the results of all systems.
The results have no names, and their order differs between participants and edits. Participants
rank them by quality and by consistency with the exemplar (arXiv 2211.13227, section 4). Only
<output>.key.json says which picture is from which system: do not publish it.

`table` prints each system's mean rank and its share of first ranks. The 95 % intervals come from
resampling both participants and edits (the pigeonhole bootstrap of Owen 2007), because rankings by
the same person or of the same edit are not independent. Damaged answers are reported and left out.
"""

import hashlib
import json
import os
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import layout
from exedit.runtime import doors, files, progress
from exedit.runtime.errors import DataError
from launch import user_study_answers as answers

PAGE = Path(__file__).with_name('user_study.html')
MOST_SYSTEMS = 9  # the page has the keys A to I
QUESTIONS = (
  dict(
    name='quality',
    title='Which result is the best picture?',
    text='Rank by quality: how real and free of faults each picture looks as a whole.',
    beside='source',  # shown beside an enlarged result
  ),
  dict(
    name='consistency',
    title='Which result shows the exemplar best?',
    text='Rank by consistency: how well the object in the marked region matches the exemplar.',
    beside='exemplar',
  ),
)


class Template(string.Template):
  """The page. Its placeholder is @@study, because JavaScript uses the dollar sign."""

  delimiter = '@@'


def build(
  bench: str,
  results: Mapping[str, str],
  output: str,
  *,
  count: int = 30,
  seed: int = 0,
  title: str = 'Which edit is best?',
) -> dict:
  """Writes the study's folder and its key, <output>.key.json; returns the key.

  results: {system: folder with {id:012d}.png}. count: the number of edits, chosen at random by
  `seed`; all edits if the benchmark has fewer.

  Raises:
    DataError: for a study that cannot be shown. Then nothing is written.
  """
  output = os.path.normpath(output)
  key_path = f'{output}.key.json'
  _check(results, output, key_path, count, seed)
  edits = coco_ee.Bench(bench, exemplar_size=None)
  chosen = np.random.default_rng([seed, 0]).permutation(len(edits))[:count]
  positions = sorted(chosen.tolist())
  _check_results(edits.ids[positions], results)
  sha = hashlib.sha256(json.dumps([title, seed, sorted(results)]).encode())
  shown, systems = [], []
  with files.new_folder(output) as folder:
    (folder / 'pictures').mkdir()
    for position in progress.bar(positions, 'pictures', unit='edit'):
      edit = edits[position]
      page, names, digest = _write_edit(edit, results, folder, seed)
      shown.append(page)
      systems.append(dict(edit=edit['id'], systems=names))
      sha.update(digest)
    study = dict(study=sha.hexdigest()[:16], title=title)
    page = study | dict(format=answers.FORMAT, questions=QUESTIONS, edits=shown)
    (folder / 'index.html').write_text(_html(page), encoding='utf-8')
  questions = [question['name'] for question in QUESTIONS]
  key = study | dict(
    format=answers.KEY_FORMAT, seed=seed, systems=[*results], questions=questions, edits=systems
  )
  files.write_json(key_path, key)
  return key


def _check(results, output, key_path, count, seed):
  if not 2 <= len(results) <= MOST_SYSTEMS:
    raise DataError(f'{len(results)} --results: a study compares 2 to {MOST_SYSTEMS} systems')
  if count < 1 or seed < 0:
    raise DataError(f'--count={count} must be at least 1, --seed={seed} at least 0')
  files.check_new(output, '--output')
  if os.path.lexists(key_path):
    raise DataError(f'{key_path} is the key of another study: name another --output')
  for name, folder in results.items():
    if not os.path.isdir(folder):
      raise DataError(f'--results={name}={folder}: is not a folder')


def _check_results(ids, results):
  names = [_result_name(edit_id) for edit_id in ids]
  for system, folder in results.items():
    missing = sorted(set(names) - set(files.listing(folder)))
    if missing:
      raise DataError(
        f'{folder} lacks {len(missing)} of the {len(names)} results of {system}, the first is '
        f'{missing[0]}'
      )


def _result_name(edit_id) -> str:
  return f'{int(edit_id):012d}.png'


def _write_edit(edit, results, folder, seed) -> tuple[dict, dict[str, str], bytes]:
  """Writes an edit's pictures; returns its part of the page, {token: system} and a digest.

  The pictures are encoded again, so that no metadata tells their origin, and are named by tokens.
  """

  def add(what, pixels):
    text = json.dumps([seed, edit['id'], what])
    token = hashlib.sha256(text.encode()).hexdigest()[:12]
    PIL.Image.fromarray(pixels).save(folder / 'pictures' / f'{token}.png')
    return token

  address = lambda token: f'pictures/{token}.png'
  sha, (height, width) = hashlib.sha256(), edit['source'].shape[:2]
  systems = {}
  for system, place in results.items():
    pixels = _read_result(os.path.join(place, _result_name(edit['id'])), (height, width))
    sha.update(pixels.tobytes())
    systems[add(f'result {system}', pixels)] = system
  sha.update(edit['source'].tobytes())
  page = dict(
    edit=edit['id'],
    width=width,
    height=height,
    region=_outline(edit['mask']),
    source=address(add('source', edit['source'])),
    exemplar=address(add('exemplar', edit['exemplar'])),
    results=[dict(token=token, picture=address(token)) for token in sorted(systems)],
  )
  return page, systems, sha.digest()


def _read_result(path: str, size: tuple[int, int]) -> np.ndarray:
  try:
    pixels = layout.decode_source(Path(path).read_bytes(), path)
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror})') from error
  if pixels.shape[:2] != size:
    raise DataError(
      f'{path} is {pixels.shape[1]}x{pixels.shape[0]}, its source {size[1]}x{size[0]}: a result '
      'must have the size of its source'
    )
  return pixels


def _outline(mask: np.ndarray) -> str:
  """The border of the repainted region as an SVG path, in pixels, along the pixels' edges."""
  doubled = np.repeat(np.repeat((mask >= 128).astype(np.uint8), 2, 0), 2, 1)
  lines = cv2.findContours(doubled, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]
  # The contour connects pixel centres of the doubled mask, a quarter of a pixel inside the edge.
  points = [(line.reshape(-1, 2) + 0.5) / 2 for line in lines]
  return ' '.join('M' + 'L'.join(f'{x:g} {y:g}' for x, y in line.tolist()) + 'Z' for line in points)


def _html(page: dict) -> str:
  """The web page with its study as JSON; `<` is escaped, so that no title ends the script."""
  study = json.dumps(page).replace('<', '\\u003c')
  return Template(PAGE.read_text(encoding='utf-8')).substitute(study=study)


def _systems(pairs: Sequence[str]) -> dict[str, str]:
  found = {}
  for pair in pairs:
    name, equals, folder = pair.partition('=')
    if not equals or not re.fullmatch(r'[\w .+-]+', name) or not folder:
      raise DataError(f'--results={pair}: write --results=NAME=FOLDER')
    if name in found:
      raise DataError(f'--results={pair}: there is a system {name} already')
    found[name] = folder
  return found


def run_build(bench: str, results: list[str], output: str, **settings) -> None:
  """The command `build`."""
  key = build(bench, _systems(results), output, **settings)
  print(f'{output}/index.html: {len(key["systems"])} systems, {len(key["edits"])} edits')
  print(f'{os.path.normpath(output)}.key.json names the system of each picture: keep it private')


def run_table(paths: list[str], key: str, resamples: int, json: str) -> None:
  """The command `table`."""
  if json:
    files.check_output(json, '--json')
  paths = [path for path in paths if not path.endswith('.key.json')]
  known = answers.read_key(key or answers.find_key(paths))
  used, complaints = answers.gather(paths, known)
  if not used:
    raise DataError(f'none of {len(paths)} files can be used; {"; ".join(complaints)}')
  rows = answers.summarise(used, known, resamples)
  if json:
    report = dict(study=known['study'], title=known['title'], rows=rows, complaints=complaints)
    files.write_json(json, report)
  print(answers.table(rows, known, complaints))


BUILD = (
  doors.Flag('bench', doors.REQUIRED, "the benchmark in COCOEE's layout, as folders or packed"),
  doors.Flag('results', [], 'NAME=FOLDER of a system; give it once for each system', list),
  doors.Flag('output', doors.REQUIRED, 'the new folder'),
  doors.Flag('count', 30, 'number of edits to show'),
  doors.Flag('seed', 0, 'of the choice of edits and of all orders'),
  doors.Flag('title', 'Which edit is best?', 'title of the page'),
)
TABLE = (
  doors.Flag('key', '', "the study's .key.json; by default it is searched near the answers"),
  doors.Flag('resamples', 10000, 'number of resamples for the intervals', least=100),
  doors.Flag('json', '', 'file to write the table to'),
)
COMMANDS = {
  'build': doors.Command(run_build, 'write the page', BUILD),
  'table': doors.Command(run_table, 'print the table of the answers: table FILES', TABLE, 'paths'),
}


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call_one(COMMANDS, __doc__, argv)


if __name__ == '__main__':
  run()
