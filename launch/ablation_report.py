"""The ablation's results of all seeds, gathered: as a table, as bars, as pictures to look at."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from configs.pbe import ROWS
from exedit.input_pipeline.errors import DataError
from exedit.metrics import confidence
from exedit.runtime import files
from launch import ablation_figures as figures

REFERENCES = ('source', 'copy_paste', 'harmonised', 'truth')
RESULTS, SCORES = 'results.json', 'scores.json'
# Student's t, 97.5 %, by degrees of freedom from 1.
T = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216, 2.22814)


@dataclasses.dataclass(frozen=True)
class Metric:
  """A column: its heading, which way is better, and a score per edit from an evaluation's files."""

  title: str
  better: str  # 'higher', 'lower' or '' for what is to be read beside another
  scores: Callable[[Mapping[str, Any], Mapping[str, Any]], np.ndarray]
  form: str = '.3f'


def _of(name):
  """A column of results.json, NaN where an edit has none."""
  return lambda results, scores: _floats(edit['metrics'].get(name) for edit in results['edits'])


def _also(name):
  """A column of scores.json."""
  return lambda results, scores: _floats(scores[name])


def _floats(values):
  return np.array([np.nan if v is None else float(v) for v in values])


def _above_chance(results, scores):
  return _of('copy_paste')(results, scores) - _also('copy_paste_other')(results, scores)


METRICS = dict(
  identification=Metric('identification', 'higher', _also('identified')),
  psnr=Metric('PSNR in the hole, dB', 'higher', _also('psnr'), '.2f'),
  copy_paste=Metric('copy-paste score', 'lower', _of('copy_paste')),
  copy_paste_other=Metric("the same, another's exemplar", '', _also('copy_paste_other')),
  above_chance=Metric('copy-paste above chance', 'lower', _above_chance),
  pasted=Metric('nearer to a paste than to the truth', 'lower', _also('pasted')),
  background_psnr=Metric('background PSNR, dB', 'higher', _of('background_psnr'), '.2f'),
)


def write(root: str, output: str, seeds: Sequence[int] | None = None) -> str:
  """Write table.md, table.json, bars.png and sheet.png into `output`; returns the table.

  DataError where an evaluation is missing or of another benchmark, before anything is written.
  """
  found = gather(root, seeds)
  text = markdown(found)
  os.makedirs(output, exist_ok=True)
  figures.bars(found, os.path.join(output, 'bars.png'), METRICS)
  columns = {row: os.path.join(_run(root, found['seeds'][0], row), 'results') for row in ROWS}
  columns |= {'the truth': f'{root}/references/truth', 'a paste': f'{root}/references/copy_paste'}
  figures.sheet(os.path.join(root, 'bench'), columns, os.path.join(output, 'sheet.png'))
  files.write_json(os.path.join(output, 'table.json'), found)
  files.write_bytes(os.path.join(output, 'table.md'), text.encode())
  return text


# Gathering.


def gather(root: str, seeds: Sequence[int] | None = None) -> dict:
  """Every row's metrics, by seed and over the seeds, and those of the references.

  rows, scales: {name: {metric: dict(seeds=[...], value, deviation, low, high, n)}}, the interval
  that of Student's t over the seeds. changes: {'a -> b': {metric: ...}} of the differences within
  each seed. references: {name: {metric: dict(value, low, high, n)}}, by bootstrap over the edits.
  """
  seeds = sorted(seeds or _seeds(root))
  first = read(os.path.join(_run(root, seeds[0], ROWS[0])))[0]
  benchmark = first['benchmark']
  rows = {row: [_means(_run(root, s, row), benchmark) for s in seeds] for row in ROWS}
  scales = {scale: [_means(_run(root, s, 'guidance', scale), benchmark) for s in seeds]
            for scale in _scales(root, seeds[0])}  # fmt: skip
  pairs = [*zip(ROWS, ROWS[1:], strict=False)]
  changes = {f'{a} -> {b}': _differences(rows[a], rows[b]) for a, b in pairs}
  for scale, values in scales.items():
    changes[f'bottleneck -> guidance, {scale}'] = _differences(rows['bottleneck'], values)
  return dict(
    seeds=seeds,
    benchmark=benchmark,
    versions=first['versions'],
    runs=_settings(root, seeds),
    rows={name: _over_seeds(values) for name, values in rows.items()},
    scales={name: _over_seeds(values) for name, values in scales.items()},
    changes=changes,
    references={
      kind: _over_edits(os.path.join(root, 'references', f'{kind}-evaluation'), benchmark)
      for kind in REFERENCES
    },
  )


def _seeds(root):
  names = os.listdir(root) if os.path.isdir(root) else []
  seeds = [int(n[5:]) for n in names if n.startswith('seed-') and n[5:].isdigit()]
  if not seeds:
    raise DataError(f'{root} holds no seed-0 or other: launch/ablation.sh with OUT={root} makes it')
  return seeds


def _run(root, seed, row, scale='evaluation'):
  return os.path.join(root, f'seed-{seed}', row, scale.replace(' ', '-'))


def _scales(root, seed):
  folder = os.path.dirname(_run(root, seed, 'guidance'))
  names = [n for n in os.listdir(folder) if n.startswith('scale-')] if os.path.isdir(folder) else []
  return sorted((n.replace('-', ' ') for n in names), key=lambda name: float(name[6:]))


def _settings(root, seeds):
  """Steps, batch and scale of every row, from the first seed; DataError where seeds differ."""
  found = {}
  for seed in seeds:
    for row in ('generator', *ROWS):
      config = read_json(os.path.join(os.path.dirname(_run(root, seed, row)), 'config.json'))
      ours = dict(steps=config['steps'], batch_size=config['batch_size'])
      ours |= dict(scenes=config['synthetic']['scenes'], scale=config['edit']['scale'])
      if found.setdefault(row, ours) != ours:
        raise DataError(f'{row} of seed {seed} was trained with {ours}, not {found[row]}')
  return found


def read(folder: str, benchmark: Mapping[str, Any] | None = None) -> tuple[dict, dict]:
  """results.json and scores.json of an evaluation, of this benchmark where one is given."""
  results, scores = (read_json(os.path.join(folder, name)) for name in (RESULTS, SCORES))
  if benchmark and results['benchmark']['sha256'] != benchmark['sha256']:
    theirs, ours = results['benchmark']['sha256'][:12], benchmark['sha256'][:12]
    raise DataError(f'{folder} is of another benchmark ({theirs}) than the first row ({ours})')
  if scores['sha256'] != [edit['sha256'] for edit in results['edits']]:
    raise DataError(f'{folder}/{SCORES} is of other pictures than {RESULTS}: score it again')
  return results, scores


def read_json(path: str) -> dict:
  """A file of the ablation; DataError, naming it, where it is missing or damaged."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except FileNotFoundError:
    raise DataError(f'{path} is missing: launch/ablation.sh makes it, and goes on') from None
  except (OSError, ValueError) as error:
    raise DataError(f'{path} cannot be read ({error}): remove it and run again') from None


def _means(folder, benchmark):
  pair = read(folder, benchmark)
  return {name: float(np.nanmean(metric.scores(*pair))) for name, metric in METRICS.items()}


def _over_edits(folder, benchmark):
  """A reference's metrics: one set of pictures, so the edits are all that varies."""
  pair, found = read(folder, benchmark), {}
  for name, metric in METRICS.items():
    scores = metric.scores(*pair)
    interval = confidence.mean_interval(scores[np.isfinite(scores)])
    found[name] = dataclasses.asdict(interval)
  return found


def _over_seeds(values):
  return {name: _spread([v[name] for v in values]) for name in METRICS}


def _differences(a, b):
  return {name: _spread([y[name] - x[name] for x, y in zip(a, b, strict=True)]) for name in METRICS}


def _student(freedom: int) -> float:
  """Student's t, 97.5 %; from 11 on by Fisher's expansion about the normal's, to a thousandth."""
  if freedom <= len(T):
    return T[freedom - 1]
  return 1.95996 + 2.37227 / freedom + 2.82250 / freedom**2


def _spread(values: Sequence[float]) -> dict:
  """Mean and deviation over seeds, and the interval of Student's t; none for one seed."""
  n, mean = len(values), float(np.mean(values))
  found = dict(seeds=list(values), value=mean, n=n, deviation=None, low=None, high=None)
  if n > 1:
    deviation = float(np.std(values, ddof=1))
    half = _student(n - 1) * deviation / math.sqrt(n)
    found |= dict(deviation=deviation, low=mean - half, high=mean + half)
  return found


# The table.


def markdown(found: Mapping[str, Any]) -> str:
  """Rows, references, scales and changes as tables for a page."""
  seeds = ', '.join(map(str, found['seeds']))
  n = found['benchmark']['edits']
  names = [name for name in METRICS]
  lines = [f'{n} held-out edits; mean over seeds {seeds} ± standard deviation.', '']
  lines += _header('row', names)
  lines += [_line(name, row, names, _deviated) for name, row in found['rows'].items()]
  lines += ['', 'Needs no training; mean over the edits [95 % bootstrap interval].', '']
  lines += _header('reference', names)
  lines += [_line(name, row, names, _between) for name, row in found['references'].items()]
  if found['scales']:
    own = found['runs']['guidance']['scale']
    lines += ['', f'The row `guidance` sampled at other scales than its own ({own:g}).', '']
    lines += _header('scale', names)
    lines += [_line(name[6:], row, names, _deviated) for name, row in found['scales'].items()]
  lines += ['', "Change within each seed [95 %, Student's t over the seeds]; bold: 0 outside.", '']
  lines += _header('from -> to', names)
  lines += [_line(name, row, names, _changed) for name, row in found['changes'].items()]
  return '\n'.join(lines) + '\n'


def _header(first, names):
  arrows = dict(higher=' ↑', lower=' ↓')
  titles = [METRICS[name].title + arrows.get(METRICS[name].better, '') for name in names]
  return [f'| {" | ".join([first, *titles])} |', '|---' * (len(names) + 1) + '|']


def _line(name, row, names, cell):
  return f'| {" | ".join([name, *(cell(row[m], METRICS[m].form) for m in names)])} |'


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
