"""The paper's ablation in small: its benchmark, its scores against the truth, and its report.

  python -m launch.ablation bench --output=ablation --edits=256
  python -m launch.ablation score --root=ablation --folder=ablation/seed-0/prior/evaluation
  python -m launch.ablation report --root=ablation --output=report --seeds=0,1,2

launch/ablation.sh calls these commands. `bench` draws held-out edits in the layout of COCOEE, so
that exedit.evaluate scores every row and reference like any benchmark. Its truths.npz has, for
each edit, the right result and the same scene with nine other objects. `score` compares the
pictures of one evaluation with them. `report` collects the seeds in a table and pictures.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from exedit.input_pipeline import codec, synthetic
from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import build
from exedit.metrics import copy_paste, pixels
from exedit.runtime import doors, files
from exedit.runtime.errors import DataError, UserError
from launch import ablation_figures as figures
from launch import ablation_report as report

BENCH, TRUTHS, PROMPTS = 'bench', 'truths.npz', 'prompts.csv'
SIDE = 32  # pixels, as configs/pbe.py:tiny


def write_bench(output: str, edits: int, seed: int, version: int = 1) -> None:
  """Writes output/bench, output/truths.npz and the right results as output/references/truth.

  It does nothing if the benchmark exists with the same settings. Scenes of version 2 are drawn at
  twice the size and have names: output/prompts.csv.

  Raises:
    DataError: if output has a benchmark with other settings, or one without its truths.
  """
  side = SIDE * version
  settings = dict(edits=edits, seed=seed, side=side)
  path = os.path.join(output, BENCH)
  if os.path.isdir(path):
    found = report.read_json(os.path.join(path, build.layout.MANIFEST)).get('settings')
    if found != settings:
      raise DataError(f'{path} was made with {found}, not {settings}: name another folder')
    if not os.path.exists(os.path.join(output, TRUTHS)):
      raise DataError(f'{path} exists but {TRUTHS} is missing: remove {path}')
    return
  sizes = dict(size=side, exemplar_size=side)
  drawn = list(synthetic.bench(edits, seed=seed, version=version, **sizes))
  for i, edit in enumerate(drawn):
    # The truth equals the source outside the hole, because the scene is drawn with the same seed.
    truth = os.path.join(output, 'references', 'truth', f'{i:012d}.png')
    files.write_bytes(truth, codec.png(edit['truths'][edit['answer']]))
  if version > 1:
    lines = ['id,prompt', *(f'{i},{edit["phrase"]}' for i, edit in enumerate(drawn))]
    files.write_text(os.path.join(output, PROMPTS), '\n'.join([*lines, '']))
  packed = io.BytesIO()
  truths = np.stack([edit['truths'] for edit in drawn])  # [n k h w 3]
  np.savez_compressed(packed, truths=truths, answers=np.array([edit['answer'] for edit in drawn]))
  files.write_bytes(os.path.join(output, TRUTHS), packed.getvalue())
  plans = [
    build.Plan(i, {}, lambda edit=edit: {kind: edit[kind] for kind in build.layout.KINDS})
    for i, edit in enumerate(drawn)
  ]
  build.write(path, plans, edits, settings, on_loss=lambda plan, why: None)


def read_truths(root: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads the truths uint8 [n k h w 3], and the index [n] of the right one of each edit."""
  path = os.path.join(root, TRUTHS)
  try:
    with np.load(path, allow_pickle=False) as file:
      return file['truths'], file['answers']
  except (OSError, ValueError, KeyError) as error:
    raise DataError(f'{path} cannot be read ({error}): `launch.ablation bench` makes it') from None


def score(root: str, folder: str, pictures: str | None = None) -> dict:
  """Scores the pictures of one evaluation against the truths, and writes folder/scores.json.

  The scores by edit: `identified`: the right truth is the nearest of all. `psnr`: to the right
  truth, in the hole, in dB. `pasted`: nearer to the exemplar pasted into the hole than to the
  truth. `copy_paste_other`: the copy-paste score against the next edit's exemplar, which shows the
  score that chance gives; None if that exemplar is uniform.
  """
  results = report.read_json(os.path.join(folder, report.RESULTS))
  bench = coco_ee.Bench(os.path.join(root, BENCH), exemplar_size=None)
  if len(results['edits']) != len(bench):
    raise DataError(f'{folder} has {len(results["edits"])} edits, {bench.root} has {len(bench)}')
  sha256 = [edit['sha256'] for edit in results['edits']]
  path = os.path.join(folder, report.SCORES)
  if os.path.exists(path) and (known := report.read_json(path)).get('sha256') == sha256:
    return known
  truths, answers = read_truths(root)
  edits = [bench[i] for i in range(len(bench))]
  pictures = pictures or os.path.join(folder, 'results')
  shown = np.stack([figures.read_picture(pictures, edit['id']) for edit in edits])
  holes = np.stack([edit['mask'] for edit in edits]) >= 128
  distances = pixels.distances(shown, truths, holes)
  right = distances[np.arange(len(answers)), answers]
  pastes = np.stack([figures.paste(edit) for edit in edits])
  to_paste = pixels.distances(shown, pastes[:, None], holes)[:, 0]
  exemplars = [edits[i - 1]['exemplar'] for i in range(len(edits))]
  with ThreadPoolExecutor() as pool:
    others = list(pool.map(_copy_paste, shown, holes, exemplars))
  scores = dict(
    sha256=sha256,
    identified=pixels.identified(distances, answers).tolist(),
    psnr=pixels.psnr(right).tolist(),
    pasted=(to_paste < right).tolist(),
    copy_paste_other=others,
  )
  files.write_json(path, scores)
  return scores


def _copy_paste(result, hole, exemplar):
  region = pixels.box(hole, published=False)
  try:
    return copy_paste.copy_paste_score(result[region], exemplar, hole[region])
  except ValueError:  # a uniform exemplar has no score
    return None


def run_report(
  root: str, output: str, seeds: Sequence[str], more_seeds: Sequence[str] = ()
) -> None:
  """The command `report`."""
  words = ' '.join([*seeds, *more_seeds]).replace(',', ' ').split()
  if wrong := [word for word in words if not word.isdecimal()]:
    raise UserError(f'--seeds={",".join(words)}: {wrong[0]!r} is not a seed; write --seeds=0,1,2')
  print(report.write(root, output, [int(word) for word in words]))


ROOT = doors.Flag('root', doors.REQUIRED, 'folder of the ablation')
BENCH_FLAGS = (
  doors.Flag('output', doors.REQUIRED, 'folder of the ablation'),
  doors.Flag('edits', 256, 'number of edits', least=3),
  doors.Flag('seed', 0, 'of the edits'),
  doors.Flag('version', 1, 'of the drawn scenes', int, 1, 2),
)
SCORE_FLAGS = (
  ROOT,
  doors.Flag('folder', doors.REQUIRED, 'folder of the evaluation'),
  doors.Flag('pictures', None, 'folder of its pictures, if not FOLDER/results', str),
)
REPORT_FLAGS = (
  ROOT,
  doors.Flag('output', doors.REQUIRED, 'folder for the table and the pictures'),
  doors.Flag('seeds', [], 'the seeds, as 0,1,2 or 0 1 2', list, shown='all'),
)
COMMANDS = {
  'bench': doors.Command(write_bench, 'draw the edits and their truths', BENCH_FLAGS),
  'score': doors.Command(score, 'score an evaluation against the truths', SCORE_FLAGS),
  'report': doors.Command(
    run_report, 'write the table and the pictures', REPORT_FLAGS, 'more_seeds'
  ),
}


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call_one(COMMANDS, __doc__, argv)


if __name__ == '__main__':
  run()
