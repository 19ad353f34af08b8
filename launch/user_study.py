"""A controlled user study in a box: a page to hand out, and the paper's table from its answers.

  python -m launch.user_study build --bench=test_bench --results=ours=results/ours \
      --results=paste=results/paste --count=30 --output=study
  python -m launch.user_study table answers/*.json

`build` makes one folder with index.html and its pictures, to be put on any web server or handed out
as it is: nothing in it comes from elsewhere, and nothing leaves the participant's computer until
they send back the file that the page saves. Source, region and exemplar stand above the results of
all systems, which have no names and an order of their own for each participant and edit; they are
ranked for quality and for consistency with the exemplar (arXiv 2211.13227, section 4). Which
picture is whose stands in <output>.key.json alone: keep it to yourself.

`table` prints, for each system, its mean rank and its share of first ranks, with 95 % intervals
from resampling participants and edits (the pigeonhole bootstrap of Owen 2007, since rankings by
one person or of one edit are not independent). Answers that are damaged are left out and named.
"""

import argparse
import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator

import cv2
import numpy as np
import PIL.Image

from exedit.input_pipeline import files as whole
from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import layout
from exedit.input_pipeline.errors import DataError
from launch import user_study_answers as answers
from launch.commands import Parser, door

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'user_study.html')
MOST_SYSTEMS = 9  # the keys 1 to 9
QUESTIONS = (
  dict(
    name='quality',
    title='Which result is the best picture?',
    text='Rank by quality: how real and free of faults each picture looks as a whole.',
    beside='source',  # what is shown next to a result that is enlarged
  ),
  dict(
    name='consistency',
    title='Which result shows the exemplar best?',
    text='Rank by consistency: how much the object in the marked region is that of the exemplar.',
    beside='exemplar',
  ),
)


# Building.


@dataclasses.dataclass
class Pictures:
  """Where the page's pictures go: files of a folder, or the page itself."""

  folder: str
  embed: bool
  jpeg: int

  def add(self, name: str, pixels: np.ndarray) -> str:
    """Keeps a picture, encoded anew so that no metadata tells its origin; its address."""
    file, kind = io.BytesIO(), 'jpeg' if self.jpeg else 'png'
    settings = dict(quality=self.jpeg, subsampling=0) if self.jpeg else {}
    PIL.Image.fromarray(pixels).save(file, kind, **settings)
    if self.embed:
      return f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}'
    address = f'pictures/{name}.{kind}'
    path = os.path.join(self.folder, address)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as out:
      out.write(file.getvalue())
    return address


def build(
  bench: str,
  results: dict[str, str],
  output: str,
  *,
  count=30,
  seed=0,
  title='Which edit is best?',
  embed=False,
  jpeg=0,
) -> dict:
  """Writes the study's folder and, beside it, its key, which it returns.

  `count` edits of the benchmark are drawn by the seed (all, where it has fewer); `results` are
  folders with {id:012d}.png by system. DataError, with nothing written, where one cannot be shown.
  """
  import tqdm

  output = os.path.normpath(output)
  key_path = f'{output}.key.json'
  _check_build(results, output, key_path, count, seed, jpeg)
  edits = coco_ee.Bench(bench, exemplar_size=None)
  order = np.random.default_rng([seed, 0]).permutation(len(edits))
  positions = sorted(order[:count].tolist())
  _check_there(edits, positions, results)
  every = 0.1 if sys.stderr.isatty() else 10
  with whole.folder(output) as stage:
    pictures, shown, keys = Pictures(stage, embed, jpeg), [], []
    sha = hashlib.sha256(json.dumps([title, seed, sorted(results)]).encode())
    for position in tqdm.tqdm(positions, unit='edit', desc='pictures', mininterval=every):
      page, key, digest = _edit(edits[position], results, pictures, seed)
      shown.append(page)
      keys.append(key)
      sha.update(digest)
    study = sha.hexdigest()[:16]
    page = dict(format=answers.FORMAT, study=study, title=title, questions=QUESTIONS, edits=shown)
    with open(os.path.join(stage, 'index.html'), 'w', encoding='utf-8') as file:
      file.write(_html(page))
  key = dict(
    format=answers.KEY_FORMAT,
    study=study,
    title=title,
    seed=seed,
    systems=list(results),
    questions=[question['name'] for question in QUESTIONS],
    edits=keys,
  )
  whole.write(key_path, json.dumps(key, indent=1).encode())
  return key


def _check_build(results, output, key_path, count, seed, jpeg):
  if not 2 <= len(results) <= MOST_SYSTEMS:
    raise DataError(f'{len(results)} --results: a study compares 2 to {MOST_SYSTEMS} systems')
  if count < 1 or seed < 0:
    raise DataError(f'--count={count} must be at least 1, --seed={seed} at least 0')
  if jpeg and not 50 <= jpeg <= 100:
    raise DataError(f'--jpeg={jpeg}: must be 0 (PNG) or between 50 and 100')
  whole.refuse_existing(output)
  if os.path.lexists(key_path):
    raise DataError(f'{key_path} is there: it is the key of another study; name another --output')
  for name, folder in results.items():
    if not os.path.isdir(folder):
      raise DataError(f'--results={name}={folder}: is not a folder')


def _check_there(edits, positions, results):
  names = [_result_name(edits.ids[position]) for position in positions]
  for system, folder in results.items():
    there = set(os.listdir(folder))
    missing = [name for name in names if name not in there]
    if missing:
      raise DataError(
        f'{folder} lacks {len(missing)} of the {len(names)} results of {system}, the first is '
        f'{missing[0]}'
      )


def _result_name(edit_id) -> str:
  return f'{int(edit_id):012d}.png'


def _edit(edit, results, pictures, seed) -> tuple[dict, dict, bytes]:
  """(what the page shows of an edit, its part of the key, a digest of its pictures)."""
  token = lambda what: hashlib.sha256(json.dumps([seed, edit['id'], what]).encode()).hexdigest()[
    :12
  ]
  sha, height, width = hashlib.sha256(), *edit['source'].shape[:2]
  shown, systems = [], {}
  for system, folder in results.items():
    path = os.path.join(folder, _result_name(edit['id']))
    pixels = _result(path)
    if pixels.shape != edit['source'].shape:
      raise DataError(
        f'{path} is {pixels.shape[1]}x{pixels.shape[0]}, its source {width}x{height}; results '
        'must have the size of their source'
      )
    name = token(f'result {system}')
    sha.update(pixels.tobytes())
    shown.append(dict(token=name, picture=pictures.add(name, pixels)))
    systems[name] = system
  sha.update(edit['source'].tobytes())
  page = dict(
    edit=edit['id'],
    width=width,
    height=height,
    region=_outline(edit['mask']),
    source=pictures.add(token('source'), edit['source']),
    exemplar=pictures.add(token('exemplar'), edit['exemplar']),
    results=sorted(shown, key=lambda result: result['token']),
  )
  return page, dict(edit=edit['id'], systems=systems), sha.digest()


def _result(path: str) -> np.ndarray:
  try:
    with open(path, 'rb') as file:
      data = file.read()
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror})') from error
  return layout.decode_source(data, path)


def _outline(mask: np.ndarray) -> str:
  """The border of what is repainted as an SVG path in pixels, along their edges."""
  doubled = np.repeat(np.repeat((mask >= 128).astype(np.uint8), 2, 0), 2, 1)
  lines = cv2.findContours(doubled, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]
  # The contour runs through pixel centres of the doubled mask, a quarter of a pixel inside.
  points = [(line.reshape(-1, 2) + 0.5) / 2 for line in lines]
  return ' '.join('M' + 'L'.join(f'{x:g} {y:g}' for x, y in line.tolist()) + 'Z' for line in points)


def _html(page: dict) -> str:
  """The page with its study inside; `<` is escaped, so that no title ends the script."""
  with open(TEMPLATE, encoding='utf-8') as file:
    template = file.read()
  data = json.dumps(page).replace('<', '\\u003c')
  before, after = template.split('/*STUDY*/null', 1)
  return before + data + after


# The door.


def _arguments(argv: list[str]) -> argparse.Namespace:
  parser = Parser(prog='user_study', description=__doc__)
  commands = parser.add_subparsers(dest='command', required=True)
  make = commands.add_parser('build', help='the page to hand out')
  make.add_argument('--bench', required=True, help='the benchmark: folders or packed')
  make.add_argument('--results', action='append', default=[], help='NAME=FOLDER, once a system')
  make.add_argument('--output', required=True, help='new folder')
  make.add_argument('--count', type=int, default=30, help='edits to show (30)')
  make.add_argument('--seed', type=int, default=0, help='of the choice of edits and of all orders')
  make.add_argument('--title', default='Which edit is best?', help='of the page')
  make.add_argument('--embed', action='store_true', help='pictures inside index.html: one file')
  make.add_argument('--jpeg', type=int, default=0, help='quality, for smaller pictures (0: PNG)')
  show = commands.add_parser('table', help='mean ranks from the answers')
  show.add_argument('answers', nargs='+', help='files that participants sent back')
  show.add_argument('--key', default='', help="the study's .key.json (default: looked for)")
  show.add_argument('--resamples', type=int, default=10000, help='of the intervals (10000)')
  show.add_argument('--json', default='', help='file to write the table to as well')
  show.add_argument('--csv', default='', help='file to write the table to as well')
  return parser.parse_args(argv)


def _systems(pairs: list[str]) -> Iterator[tuple[str, str]]:
  seen = set()
  for pair in pairs:
    name, equals, folder = pair.partition('=')
    if not equals or not re.fullmatch(r'[\w .+-]+', name) or not folder:
      raise DataError(f'--results={pair}: write --results=NAME=FOLDER')
    if name in seen:
      raise DataError(f'--results={pair}: {name} is there twice')
    seen.add(name)
    yield name, folder


def _table(args: argparse.Namespace) -> None:
  if args.resamples < 100:
    raise DataError(f'--resamples={args.resamples}: must be at least 100')
  paths = [path for path in args.answers if not path.endswith('.key.json')]
  key = answers.read_key(args.key or answers.find_key(paths))
  used, complaints = answers.gather(paths, key)
  if not used:
    raise DataError(f'none of {len(paths)} files can be used; {"; ".join(complaints)}')
  rows = answers.summarise(used, key, args.resamples)
  if args.json:
    report = dict(study=key['study'], title=key['title'], rows=rows, complaints=complaints)
    whole.write(args.json, json.dumps(report, indent=1).encode())
  if args.csv:
    whole.write(args.csv, answers.as_csv(rows))
  print(answers.table(rows, key, complaints))


@door
def main(argv: list[str]) -> None:
  """The door."""
  args = _arguments(argv)
  if args.command == 'table':
    _table(args)
  else:
    settings = {n: getattr(args, n) for n in ('count', 'seed', 'title', 'embed', 'jpeg')}
    key = build(args.bench, dict(_systems(args.results)), args.output, **settings)
    page = os.path.join(args.output, 'index.html')
    print(
      f'{page}: {len(key["systems"])} systems, {len(key["edits"])} edits\n'
      f'{os.path.normpath(args.output)}.key.json says which picture is whose: keep it to yourself'
    )


if __name__ == '__main__':
  main(sys.argv[1:])
