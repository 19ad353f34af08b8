r"""The comparison of the paper (arXiv 2211.13227, table 1) on one benchmark, as one table.

  python -m launch.ablation bench --output=drawn --edits=48 --version=2
  python -m benchmarks.compared --config=configs/coco_ee.py --config.data.root=drawn/bench \
      --config.prompts=drawn/prompts.csv --ours=weights/tiny --text=SD --image=BLENDED \
      --output=compared

Rows: Paint by Example (`--ours`), an inpainting model of Stable Diffusion (`--inpainting`), Blended
Diffusion by text with a text-to-image model (`--text`) and by the exemplar (`--image`, weights that
`exedit.convert --clip` joined), the exemplar pasted, pasted and harmonised, and the untouched
source. Each row is an evaluation in a folder of its own, which exedit.evaluate
scores; the same command continues. Beside a drawn benchmark lie its truths, and then the table has
the share of results that are nearest to the right one of ten, and the PSNR to it in the hole.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from exedit.evaluation import coco_ee, make_edits, pages
from exedit.input_pipeline.coco_ee import references
from exedit.metrics import confidence
from exedit.runtime import doors, files
from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError
from exedit.runtime.settings import benchmark
from exedit.weights import find
from launch import ablation

PASTES = ('copy_paste', 'harmonised', 'source')
SAMPLING = ('steps', 'scale', 'sampler', 'spacing', 'guidance_interval')  # of every system
# Settings that not all systems have.
NOT_SHARED = ('mask_resize', 'clip_scale', 'views', 'strength', 'prompts', 'prompt')
FLAGS = (
  Flag('config', None, 'configs/coco_ee.py: the benchmark, the networks', 'config'),
  Flag('output', doors.REQUIRED, 'folder of the evaluations and of the table', str),
  Flag('ours', None, 'weights of Paint by Example', str),
  Flag('text', None, 'weights of Stable Diffusion, for Blended Diffusion', str),
  Flag('image', None, 'weights of Blended Diffusion by an exemplar (exedit.convert --clip)', str),
  Flag('inpainting', None, 'weights of an inpainting model of Stable Diffusion', str),
)  # fmt: skip


def evaluations(config: dict[str, Any], **weights: str | None) -> Iterator[tuple[str, dict]]:
  """Yields the name of each row and the arguments of its evaluation."""
  shared = {name: value for name, value in config.items() if name not in NOT_SHARED}
  texts = {name: config[name] for name in ('prompts', 'prompt') if config.get(name)}
  strength = config.get('strength')
  strength = 1.0 if strength is None else strength  # the same for both of Blended Diffusion
  own = dict(
    ours=dict(mask_resize=config.get('mask_resize')),
    inpainting=texts,
    text=dict(texts, strength=strength),
    image=dict({n: config.get(n) for n in ('clip_scale', 'views')}, strength=strength),
  )
  for name, more in own.items():
    if weights.get(name):
      yield name, dict(shared, weights=weights[name], **more)
  for kind in PASTES:
    yield kind, dict(shared, pictures=kind)


def compare(
  output: str, config: dict[str, Any], say=print, **weights: str | None
) -> dict[str, dict[str, str]]:
  """Makes and scores all rows, writes table.json and returns it: cells by row and column.

  Raises:
    UserError: as `coco_ee.evaluate`; for weights and their settings before any row is made.
  """
  rows = [*evaluations(config, **weights)]
  for _, how in rows:
    if path := how.get('weights'):
      given = {n: how[n] for n in (*SAMPLING, *NOT_SHARED[:4]) if n in how}
      make_edits.edit_settings(find.weights(path), bool(how.get('prompts')), **given)
  root = str(config['data']['root'])
  drawn = os.path.dirname(root.rstrip('/'))
  has_truths = os.path.exists(os.path.join(drawn, ablation.TRUTHS))
  table = {}
  for name, how in rows:
    say(f'\n{name}')
    folder = os.path.join(output, name)
    if how.get('pictures'):
      how['pictures'] = os.path.join(output, 'pictures', name)
      references.write(root, name, how['pictures'])
    results = coco_ee.evaluate(folder, **how, say=say)
    cells = {
      metric: pages.number(found['value'])
      for metric, found in results['metrics'].items()
      if found['value'] is not None
    }
    if has_truths:
      scores = ablation.score(drawn, folder, how.get('pictures'))
      cells = _against_truths(scores) | cells
    table[name] = cells
  files.write_json(os.path.join(output, 'table.json'), table)
  return table


def _against_truths(scores: dict[str, Any]) -> dict[str, str]:
  hits, n = sum(scores['identified']), len(scores['identified'])
  low, high = confidence.wilson(hits, n)
  return {
    'identification': f'{hits / n:.3f} [{low:.3f}, {high:.3f}]',
    'psnr_in_hole': f'{np.mean(scores["psnr"]):.2f}',
  }


def main(config: Any, output: str, **weights: str | None) -> None:
  """Prints the table."""
  if config is None:
    raise UserError('--config is missing: use --config=configs/coco_ee.py')
  given = benchmark(config)
  if given.pop('bench', 'coco_ee') != 'coco_ee':
    raise UserError('--config must be configs/coco_ee.py: the other benchmark is not in a folder')
  if (weights['text'] or weights['inpainting']) and not given.get('prompts'):
    raise UserError('--text and --inpainting need --config.prompts: a list with id and prompt')
  table = compare(output, given, **weights)
  columns = list(dict.fromkeys(column for cells in table.values() for column in cells))
  rows = [[name, *(cells.get(c, '-') for c in columns)] for name, cells in table.items()]
  print('\n'.join(['', *pages.text_table(['', *columns], rows)]))


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
