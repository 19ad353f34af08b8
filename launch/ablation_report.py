"""The report of the ablation: collects the results of all seeds and writes a table and pictures."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from exedit.configs.pbe import ROWS
from exedit.metrics import confidence
from exedit.runtime import files
from exedit.runtime.errors import DataError
from launch import ablation_figures as figures

REFERENCES = ('source', 'copy_paste', 'harmonised', 'truth')
RESULTS, SCORES = 'results.json', 'scores.json'
# Student's t at 97.5 %, for 1 to 10 degrees of freedom.
T = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216, 2.22814)


class Metric(NamedTuple):
  """A column of the table."""

  title: str
  better: str  # 'higher', 'lower', or '' for a number that only explains another one
  form: str = '.3f'


METRICS = dict(
  identification=Metric('identification', 'higher'),
  psnr=Metric('PSNR in the hole, dB', 'higher', '.2f'),
  copy_paste=Metric('copy-paste score', 'lower'),
  copy_paste_other=Metric("the same, another's exemplar", ''),
  above_chance=Metric('copy-paste above chance', 'lower'),
  pasted=Metric('nearer to a paste than to the truth', 'lower'),
  background_psnr=Metric('background PSNR, dB', 'higher', '.2f'),
)


def write(root: str, output: str, seeds: Sequence[int] = ()) -> str:
  """Writes table.md, table.json, bars.png and sheet.png into `output`; returns the table.

  seeds: those to report; empty: all in `root`.

  Raises:
    DataError: if an evaluation is missing or belongs to another benchmark. Then nothing is written.
  """
  found = gather(root, seeds)
  text = markdown(found)
  columns = {row: os.path.join(_run(root, found['seeds'][0], row), 'results') for row in ROWS}
  columns |= {'the truth': f'{root}/references/truth', 'a paste': f'{root}/references/copy_paste'}
  figures.sheet(os.path.join(root, 'bench'), columns, os.path.join(output, 'sheet.png'))
  figures.bars(found, os.path.join(output, 'bars.png'), METRICS)
  files.write_json(os.path.join(output, 'table.json'), found)
  files.write_text(os.path.join(output, 'table.md'), text)
  return text


# Collecting.


def gather(root: str, seeds: Sequence[int] = ()) -> dict:
  """Collects the metrics of all rows and references.

  Returns:
    rows, scales: {name: {metric: dict(seeds=[...], value, deviation, low, high, n)}} with intervals
    by Student's t over the seeds. changes: {'a -> b': {metric: ...}}, the same for the differences
    within each seed. references: {name: {metric: dict(value, low, high, n)}} with intervals by
    bootstrap over the edits. seeds, benchmark, versions and runs say what was reported.
  """
  seeds = sorted(seeds or _seeds(root))
  first = _read(_run(root, seeds[0], ROWS[0]))[0]
  benchmark = first['benchmark']

  def over_seeds(row, scale='evaluation'):
    return [_means(_run(root, seed, row, scale), benchmark) for seed in seeds]

  rows = {row: over_seeds(row) for row in ROWS}
  scales = {scale: over_seeds('guidance', scale) for scale in _scales(root, seeds[0])}
  changes = {f'{a} -> {b}': _changes(rows[a], rows[b]) for a, b in zip(ROWS, ROWS[1:])}
  for scale, values in scales.items():
    changes[f'bottleneck -> guidance, {scale}'] = _changes(rows['bottleneck'], values)
  references = {
    kind: _over_edits(os.path.join(root, 'references', f'{kind}-evaluation'), benchmark)
    for kind in REFERENCES
  }
  return dict(
    seeds=seeds,
    benchmark=benchmark,
    versions=first['versions'],
    runs=_settings(root, seeds),
    rows={name: _spreads(values) for name, values in rows.items()},
    scales={name: _spreads(values) for name, values in scales.items()},
    changes={name: _spreads(values) for name, values in changes.items()},
    references=references,
  )


def _seeds(root):
  names = files.listing(root) if os.path.isdir(root) else []
  seeds = [int(n[5:]) for n in names if n.startswith('seed-') and n[5:].isdigit()]
  if not seeds:
    raise DataError(f'{root} has no folder seed-0: OUT={root} launch/ablation.sh makes it')
  return seeds


def _run(root, seed, row, scale='evaluation'):
  return os.path.join(root, f'seed-{seed}', row, scale.replace(' ', '-'))


def _scales(root, seed):
  folder = os.path.dirname(_run(root, seed, 'guidance'))
  there = files.listing(folder) if os.path.isdir(folder) else []
  names = [name for name in there if name.startswith('scale-')]
  return sorted((n.replace('-', ' ') for n in names), key=lambda name: float(name[6:]))


def _settings(root, seeds):
  """The steps, batch size, scenes and scale of every row, which must be equal for all seeds."""
  found = {}
  for seed in seeds:
    for row in ('generator', *ROWS):
      config = read_json(os.path.join(root, f'seed-{seed}', row, 'config.json'))
      ours = dict(steps=config['steps'], batch_size=config['batch_size'])
      ours |= dict(scenes=config['synthetic']['scenes'], scale=config['edit']['scale'])
      if found.setdefault(row, ours) != ours:
        raise DataError(f'{row} of seed {seed} was trained with {ours}, not {found[row]}')
  return found


def read_json(path: str) -> dict:
  """Reads a file of the ablation; DataError if it is missing or damaged."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except FileNotFoundError:
    raise DataError(f'{path} is missing: launch/ablation.sh makes it') from None
  except (OSError, ValueError) as error:
    raise DataError(f'{path} cannot be read ({error}): remove it and run again') from None


def _read(folder):
  """(results.json, scores.json) of an evaluation, which must describe the same pictures."""
  results, scores = (read_json(os.path.join(folder, name)) for name in (RESULTS, SCORES))
  if scores['sha256'] != [edit['sha256'] for edit in results['edits']]:
    raise DataError(f'{folder}/{SCORES} is of other pictures than {RESULTS}: score it again')
  return results, scores


def _columns(folder: str, benchmark: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Every metric of an evaluation by edit, NaN for an edit that has no score."""
  results, scores = _read(folder)
  theirs, ours = results['benchmark']['sha256'], benchmark['sha256']
  if theirs != ours:
    raise DataError(
      f'{folder} is of another benchmark ({theirs[:12]}) than the first row ({ours[:12]})'
    )
  numbers = lambda values: np.array([np.nan if v is None else float(v) for v in values])
  result = lambda name: numbers(edit['metrics'].get(name) for edit in results['edits'])
  copy_paste, other = result('copy_paste'), numbers(scores['copy_paste_other'])
  return dict(
    identification=numbers(scores['identified']),
    psnr=numbers(scores['psnr']),
    copy_paste=copy_paste,
    copy_paste_other=other,
    above_chance=copy_paste - other,
    pasted=numbers(scores['pasted']),
    background_psnr=result('background_psnr'),
  )


def _means(folder, benchmark):
  return {name: float(np.nanmean(x)) for name, x in _columns(folder, benchmark).items()}


def _over_edits(folder, benchmark):
  """The metrics of a reference, which has one set of pictures: only the edits vary."""
  return {
    name: dataclasses.asdict(confidence.mean_interval(scores[np.isfinite(scores)]))
    for name, scores in _columns(folder, benchmark).items()
  }


def _changes(a, b):
  return [{name: y[name] - x[name] for name in METRICS} for x, y in zip(a, b, strict=True)]


def _spreads(values):
  return {name: _spread([v[name] for v in values]) for name in METRICS}


def _spread(values: Sequence[float]) -> dict:
  """The mean over seeds, its standard deviation and its interval; one seed has only a mean."""
  n, mean = len(values), float(np.mean(values))
  found = dict(seeds=list(values), value=mean, n=n, deviation=None, low=None, high=None)
  if n > 1:
    deviation = float(np.std(values, ddof=1))
    half = _student(n - 1) * deviation / math.sqrt(n)
    found |= dict(deviation=deviation, low=mean - half, high=mean + half)
  return found


def _student(freedom: int) -> float:
  """Student's t at 97.5 %; above 10 degrees of freedom by Fisher's expansion, to 0.002."""
  if freedom <= len(T):
    return T[freedom - 1]
  return 1.95996 + 2.37227 / freedom + 2.82250 / freedom**2


# The table.


def markdown(found: Mapping[str, Any]) -> str:
  """The rows, references, scales and changes as Markdown tables."""
  seeds, own = ', '.join(map(str, found['seeds'])), found['runs']['guidance']['scale']
  edits = found['benchmark']['edits']
  scales = {name.removeprefix('scale '): row for name, row in found['scales'].items()}
  parts = [
    f'{edits} held-out edits; mean over seeds {seeds} ± standard deviation.',
    _table('row', found['rows'], _deviated),
    'These references need no training; mean over the edits [95 % bootstrap interval].',
    _table('reference', found['references'], _between),
  ]
  if scales:
    parts.append(f'The row `guidance`, sampled at scales other than its own ({own:g}).')
    parts.append(_table('scale', scales, _deviated))
  parts.append("Change within each seed [95 %, Student's t over the seeds]; bold excludes 0.")
  parts.append(_table('from -> to', found['changes'], _changed))
  return '\n\n'.join(parts) + '\n'


def _table(first, rows, cell):
  arrows = dict(higher=' ↑', lower=' ↓')
  titles = [metric.title + arrows.get(metric.better, '') for metric in METRICS.values()]
  lines = [[first, *titles], ['---'] * (1 + len(titles))]
  for name, row in rows.items():
    lines.append([name, *(cell(row[m], metric.form) for m, metric in METRICS.items())])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _deviated(x, form):
  spread = '' if x['deviation'] is None else f' ± {x["deviation"]:{form}}'
  return f'{x["value"]:{form}}{spread}'


def _between(x, form):
  return f'{x["value"]:{form}} [{x["low"]:{form}}, {x["high"]:{form}}]'


def _changed(x, form):
  if x['low'] is None:
    return f'{x["value"]:+{form}}'
  text = f'{x["value"]:+{form}} [{x["low"]:+{form}}, {x["high"]:+{form}}]'
  return text if x['low'] <= 0 <= x['high'] else f'**{text}**'
