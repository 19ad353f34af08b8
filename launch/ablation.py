"""The paper's ablation in small: its benchmark, its scores against the truth, its table and bars.

  python -m launch.ablation bench --output=ablation --edits=256
  python -m launch.ablation score --root=ablation --folder=ablation/seed-0/prior/evaluation
  python -m launch.ablation report --root=ablation --output=report

launch/ablation.sh calls them in their places. `bench` writes held-out drawn edits in the layout of
COCOEE, so that every row and reference goes through exedit.evaluate as any benchmark does, and
truths.npz: what each edit should look like, and with nine other subjects. `score` adds what only
the truth can tell, beside results.json. `report` gathers all seeds into a table and pictures.
"""

import argparse
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from exedit.input_pipeline import codec, synthetic
from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import build
from exedit.input_pipeline.errors import DataError
from exedit.metrics import copy_paste, pixels
from exedit.runtime import files
from launch import ablation_figures as figures
from launch import ablation_report as report
from launch.commands import Parser, door

BENCH, TRUTHS = 'bench', 'truths.npz'
SIDE = 32  # pixels: what configs/pbe.py:tiny is trained on


# The benchmark.


def write_bench(root: str, edits: int, seed: int) -> None:
  """The edits as root/bench, root/truths.npz and the right answers in root/references/truth."""
  settings = dict(edits=edits, seed=seed, side=SIDE)
  path = os.path.join(root, BENCH)
  if os.path.isdir(path):
    found = report.read_json(os.path.join(path, build.layout.MANIFEST)).get('settings')
    if found != settings:
      raise DataError(f'{path} was made with {found}, not {settings}: name another folder')
    if os.path.exists(os.path.join(root, TRUTHS)):
      return
    raise DataError(f'{path} is there and {TRUTHS} is not: remove {path}')
  if edits < 3:
    raise DataError(f'--edits={edits}: must be at least 3')
  drawn = list(synthetic.bench(edits, seed=seed, size=SIDE, exemplar_size=SIDE))
  truths = np.stack([edit['truths'] for edit in drawn])  # [n k h w 3]
  answers = np.array([edit['answer'] for edit in drawn])
  for i, edit in enumerate(drawn):
    picture = os.path.join(root, 'references', 'truth', f'{i:012d}.png')
    # Drawn again with another look the same scene is the same outside the hole, shadows included.
    files.write_bytes(picture, codec.png(edit['truths'][edit['answer']]))
  plans = [
    build.Plan(i, {}, lambda edit=edit: {kind: edit[kind] for kind in build.layout.KINDS})
    for i, edit in enumerate(drawn)
  ]
  packed = io.BytesIO()
  np.savez_compressed(packed, truths=truths, answers=answers)
  files.write_bytes(os.path.join(root, TRUTHS), packed.getvalue())
  build.write(path, plans, edits, settings, on_loss=lambda plan, why: None)


def read_truths(root: str) -> tuple[np.ndarray, np.ndarray]:
  """(truths uint8 [n k h w 3], the right one of each [n])."""
  path = os.path.join(root, TRUTHS)
  try:
    with np.load(path, allow_pickle=False) as file:
      return file['truths'], file['answers']
  except (OSError, ValueError, KeyError) as error:
    raise DataError(f'{path} cannot be read ({error}): `launch.ablation bench` makes it') from None


# The scores.


def score(root: str, folder: str, pictures: str | None) -> dict:
  """What the truth tells about the pictures of one evaluation; writes folder/scores.json.

  Per edit: identified (is the right truth of all the nearest?), psnr (dB to it in the hole), pasted
  (nearer to the exemplar pasted into the hole than to the truth?), and copy_paste_other, the
  copy-paste score against the exemplar of the next edit: what chance gives.
  """
  results = report.read_json(os.path.join(folder, report.RESULTS))
  bench = coco_ee.Bench(os.path.join(root, BENCH), exemplar_size=None)
  if len(results['edits']) != len(bench):
    raise DataError(f'{folder} has {len(results["edits"])} edits, {bench.root} has {len(bench)}')
  made_from = [edit['sha256'] for edit in results['edits']]
  path = os.path.join(folder, report.SCORES)
  if os.path.exists(path) and (there := report.read_json(path)).get('sha256') == made_from:
    return there
  truths, answers = read_truths(root)
  edits = [bench[i] for i in range(len(bench))]
  shown = read_pictures(bench, pictures or os.path.join(folder, 'results'))
  holes = np.stack([edit['mask'] for edit in edits]) >= 128
  distances = pixels.distances(shown, truths, holes)
  right = distances[np.arange(len(answers)), answers]
  pastes = np.stack([figures.paste(edit) for edit in edits])
  toward = pixels.distances(shown, pastes[:, None], holes)[:, 0]
  with ThreadPoolExecutor() as pool:
    others = pool.map(_copied, shown, holes, [edits[i - 1]['exemplar'] for i in range(len(edits))])
  scores = dict(
    sha256=made_from,
    identified=pixels.identified(distances, answers).tolist(),
    psnr=pixels.psnr(right).tolist(),
    pasted=(toward < right).tolist(),
    copy_paste_other=list(others),
  )
  files.write_json(path, scores)
  return scores


def read_pictures(bench: coco_ee.Bench, folder: str) -> np.ndarray:
  """The results of a benchmark in its order, uint8 [n h w 3]."""
  return np.stack([figures.picture(folder, int(i)) for i in bench.ids])


def _copied(result, hole, exemplar):
  region = pixels.box(hole, published=False)
  try:
    return copy_paste.copy_paste_score(result[region], exemplar, hole[region])
  except ValueError:
    return None  # a flat exemplar, as in results.json


# The door.


def _arguments(argv: list[str]) -> argparse.Namespace:
  parser = Parser(prog='ablation', description=__doc__)
  commands = parser.add_subparsers(dest='command', required=True)
  make = commands.add_parser('bench', help='the edits and their truths')
  make.add_argument('--output', required=True, help='folder of the ablation')
  make.add_argument('--edits', type=int, default=256, help='how many (256)')
  make.add_argument('--seed', type=int, default=0, help='of the edits')
  rate = commands.add_parser('score', help='an evaluation against the truths')
  rate.add_argument('--root', required=True, help='folder of the ablation')
  rate.add_argument('--folder', required=True, help='of the evaluation')
  rate.add_argument('--pictures', help='where its pictures are (default: its results)')
  tell = commands.add_parser('report', help='table and pictures of all seeds')
  tell.add_argument('--root', required=True, help='folder of the ablation')
  tell.add_argument('--output', required=True, help='folder for table.md, table.json and pictures')
  tell.add_argument('--seeds', type=int, nargs='+', help='(default: those that are there)')
  return parser.parse_args(argv)


@door
def main(argv: list[str]) -> None:
  """The door."""
  args = _arguments(argv)
  if args.command == 'bench':
    write_bench(args.output, args.edits, args.seed)
  elif args.command == 'score':
    score(args.root, args.folder, args.pictures)
  else:
    print(report.write(args.root, args.output, args.seeds))


if __name__ == '__main__':
  main(sys.argv[1:])
