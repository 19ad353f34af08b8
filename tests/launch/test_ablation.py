"""The ablation: each row adds one thing to the row before, and the report computes its numbers."""

import json
import os
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.stats

from exedit import paint_by_example as pbe
from exedit.configs import pbe as configs
from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import references
from exedit.models import parameters
from exedit.runtime import doors
from exedit.runtime.errors import DataError, UserError
from exedit.training.config import Config
from exedit.training.given import given_weights
from launch import ablation, ablation_figures, ablation_report
from tests import small
from tests.refusals import refusal

THINGS = dict(
  prior=['init_parts'],
  augmentation=['data.arbitrary_mask', 'data.augment'],
  bottleneck=['model.bottleneck'],
  guidance=['edit.scale', 'model.p_drop'],
)
SIZES = ('', ':tiny')


def door(*argv):
  doors.call_one(ablation.COMMANDS, ablation.__doc__, ['ablation', *argv])


# The rows.


def flat(variant: str) -> dict:
  """All settings of a variant by their dotted names."""
  settings, _ = jax.tree.flatten_with_path(
    configs.get_config(variant).to_dict(), is_leaf=lambda x: x is None
  )
  return {
    '.'.join(str(step.key) for step in path if hasattr(step, 'key')): x for path, x in settings
  }


def changed(a: str, b: str) -> list[str]:
  one, other = flat(a), flat(b)
  return sorted(name for name in {**one, **other} if one.get(name) != other.get(name))


@pytest.mark.parametrize('size', SIZES)
def test_each_row_is_the_one_before_and_one_thing_more(size):
  assert configs.ROWS == ('baseline', *THINGS)
  for before, row in zip(configs.ROWS, configs.ROWS[1:]):
    assert changed(before + size, row + size) == THINGS[row]
  assert flat('baseline' + size)['model.bottleneck'] is False
  assert flat('guidance' + size)['model.p_drop'] == 0.2


def test_the_last_row_is_the_recipe_itself():
  assert changed('full', 'guidance') == [
    'init_clip',
    'init_from',
  ]  # set by the user
  assert changed('tiny', 'guidance:tiny') == ['init_parts']
  assert changed('tiny', 'generator:tiny') == ['edit.scale', 'model.p_drop', 'trainable']


def test_every_row_builds_the_same_parameters():
  rows = [configs.get_config(f'{row}:tiny').to_dict()['model'] for row in ('baseline', 'guidance')]
  one, other = ({name: a.shape for name, a in pbe.abstract(row)[1].items()} for row in rows)
  assert one == other


@pytest.mark.parametrize(
  ('variant', 'tokens', 'side', 'width'),
  [('baseline', 257, 224, 768), ('prior:tiny', 17, 32, 128), ('bottleneck:tiny', 1, 32, 128)],
)
def test_the_context_is_all_of_clips_tokens_or_one(variant, tokens, side, width):
  settings = configs.get_config(variant).to_dict()['model']
  tiny = configs.get_config('tiny').to_dict()['model']  # depth and UNet do not change the context
  settings |= {name: tiny[name] for name in ('unet', 'autoencoder')}
  graph, shapes = pbe.abstract({**settings, 'clip': {**settings['clip'], 'layers': 1}})
  exemplar = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
  context = jax.eval_shape(lambda p, e: parameters.merge(graph, p).context(e), shapes, exemplar)
  assert context.shape == (2, tokens, width)


def test_the_command_line_takes_a_row_in_tiny_and_overrides_it(monkeypatch):
  argv = ['train', '--config=configs/pbe.py:bottleneck:tiny', '--config.init_from=somewhere']
  monkeypatch.setattr(sys, 'argv', argv)  # ml_collections reads the overrides from it
  values = doors.flag_values([doors.Flag('config', None, '', 'config')])
  values(argv)
  assert (values.config.init_from, values.config.model.bottleneck) == ('somewhere', True)
  assert values.config.data.size == 32
  with pytest.raises(ValueError, match="no variant 'prior:huge'; use full, .* or guidance:tiny"):
    configs.get_config('prior:huge')


# The prior, as a training takes it.


def given(**changes):
  """The weights that a training of the tests' small model without its bottleneck starts from."""
  settings = dict(small.MODEL, bottleneck=False)
  given = dict(system='paint_by_example', steps=1, batch_size=1, data={}, model=settings)
  return given_weights(pbe.SYSTEM, Config(**{**given, **changes}).as_dict())


def test_a_row_takes_the_unet_of_a_prior_that_had_another_context(tmp_path):
  prior = small.export(tmp_path / 'prior')
  everything, ours = given(init_from=prior), given(init_from=prior, init_parts='unet')
  assert {name.split('.')[0] for name in everything} == {'unet', 'clip', 'conditioner'}
  assert set(ours) == {name for name in everything if name.startswith('unet.')}
  name = next(name for name in ours if 'attn2.to_k' in name)
  np.testing.assert_array_equal(ours[name].read(), small.params()[name])


def test_a_prior_that_is_missing_or_takes_nothing_is_one_line(tmp_path):
  with pytest.raises(UserError, match="init_parts is 'unet', but no weights .* --config.init_from"):
    given(init_parts='unet')
  with pytest.raises(ValueError, match="init_parts is 'unett', which matches no parameter"):
    given(init_from=small.export(tmp_path / 'prior'), init_parts='unett')


# The benchmark and the scores.


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A benchmark of six edits, and evaluations of two results with known scores: truth and paste."""
  root = tmp_path_factory.mktemp('ablation')
  ablation.write_bench(str(root), 6, 1)
  references.write(f'{root}/bench', 'copy_paste', f'{root}/references/copy_paste')
  for kind in ('truth', 'copy_paste'):
    evaluation(root / 'references' / f'{kind}-evaluation')
  return root


def evaluation(folder, value=0.5, benchmark='b'):
  """Writes what the ablation reads of an evaluation's results.json; edit 3 has no score."""
  scores = [None if i == 3 else value for i in range(6)]
  edits = [
    dict(id=i, sha256=f'{i}', metrics=dict(copy_paste=score, background_psnr=30.0))
    for i, score in enumerate(scores)
  ]
  folder.mkdir(parents=True)
  made = dict(benchmark=dict(sha256=benchmark, edits=6), versions=dict(jax='0'), edits=edits)
  (folder / 'results.json').write_text(json.dumps(made))


def test_the_benchmark_is_made_once_and_in_the_published_layout(world):
  bench = coco_ee.Bench(f'{world}/bench', exemplar_size=None)
  truths, answers = ablation.read_truths(str(world))
  assert (len(bench), truths.shape) == (6, (6, 10, 32, 32, 3))
  for i, edit in enumerate([bench[k] for k in range(6)]):
    truth = truths[i, answers[i]]
    hole = edit['mask'] > 0
    np.testing.assert_array_equal(truth[~hole], edit['source'][~hole])
    assert (truth[hole] != edit['source'][hole]).any()
  before = os.stat(world / 'truths.npz').st_mtime_ns
  ablation.write_bench(str(world), 6, 1)
  assert os.stat(world / 'truths.npz').st_mtime_ns == before
  with pytest.raises(DataError, match="'edits': 6.*'edits': 7.*: name another folder"):
    ablation.write_bench(str(world), 7, 1)


def test_scores_of_what_is_known(world):
  root = str(world)
  truth = ablation.score(root, f'{root}/references/truth-evaluation', f'{root}/references/truth')
  assert truth['identified'] == [True] * 6 and truth['pasted'] == [False] * 6
  assert min(truth['psnr']) >= 99
  folder = f'{root}/references/copy_paste-evaluation'
  paste = ablation.score(root, folder, f'{root}/references/copy_paste')
  assert paste['pasted'] == [True] * 6 and max(paste['psnr']) < 40
  assert all(0 <= x < 0.9 for x in paste['copy_paste_other'])
  # Scores are reused, but not those of other pictures.
  assert ablation.score(root, folder, 'nowhere') == paste
  results = json.loads(
    (world / 'references' / 'copy_paste-evaluation' / 'results.json').read_text()
  )
  results['edits'][0]['sha256'] = 'another'
  other = world / 'other'
  other.mkdir()
  (other / 'results.json').write_text(json.dumps(results))
  (other / 'scores.json').write_text(json.dumps(paste))
  with pytest.raises(DataError, match='nowhere/000000000000.png cannot be read'):
    ablation.score(root, str(other), 'nowhere')
  with pytest.raises(DataError, match='is of other pictures than results.json: score it'):
    ablation_report._read(str(other))


# The report, on made results.

SEEDS = (0, 1, 4)


def identified(row: str, seed: int) -> int:
  """How many of six edits a made run got right."""
  return dict(baseline=1, prior=1, augmentation=2, bottleneck=3, guidance=5)[row] + (seed == 4)


@pytest.fixture
def results(tmp_path, world):
  """All that launch/ablation.sh leaves, with made scores, and pictures of the truth."""
  root = tmp_path / 'out'
  for name in ('bench', 'truths.npz', 'references'):
    root.mkdir(exist_ok=True)
    (root / name).symlink_to(world / name)
  own = root / 'references'
  own.unlink()
  own.mkdir()
  for kind in ablation_report.REFERENCES:
    if (world / 'references' / kind).exists():
      (own / kind).symlink_to(world / 'references' / kind)
    made(own / f'{kind}-evaluation', 6)
  for seed in SEEDS:
    for row in configs.ROWS:
      run = root / f'seed-{seed}' / row
      made(run / 'evaluation', identified(row, seed), 0.2 if row == 'guidance' else 0.5)
      (run / 'evaluation' / 'results').symlink_to(world / 'references' / 'truth')
      config(run)
    made(root / f'seed-{seed}' / 'guidance' / 'scale-1', 4)
    config(root / f'seed-{seed}' / 'generator')
  return root


def made(folder, right, value=0.5):
  evaluation(folder, value)
  scores = dict(identified=[i < right for i in range(6)], psnr=[10.0 + right] * 6)
  scores |= dict(pasted=[False] * 6, copy_paste_other=[0.1] * 6, sha256=[f'{i}' for i in range(6)])
  (folder / 'scores.json').write_text(json.dumps(scores))


def config(folder, **changes):
  folder.mkdir(parents=True, exist_ok=True)
  settings = dict(steps=7, batch_size=2, synthetic=dict(scenes=9), edit=dict(scale=3.0), model={})
  (folder / 'config.json').write_text(json.dumps(settings | changes))


def test_the_report_adds_up(results, tmp_path):
  """Means and deviations by numpy, intervals by scipy's Student t."""
  text = ablation_report.write(str(results), str(tmp_path / 'report'))
  found = json.loads((tmp_path / 'report' / 'table.json').read_text())
  assert found['seeds'] == [0, 1, 4] and found['runs']['prior']['steps'] == 7
  for row in configs.ROWS:
    seeds = [identified(row, seed) / 6 for seed in SEEDS]
    cell = found['rows'][row]['identification']
    np.testing.assert_allclose(cell['seeds'], seeds)
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(seeds), scipy.stats.sem(seeds))
    np.testing.assert_allclose(
      [cell['value'], cell['deviation'], cell['low'], cell['high']],
      [np.mean(seeds), np.std(seeds, ddof=1), low, high],
      rtol=1e-3,
    )
  # Per edit, an edit without a score left out: 0.2 - 0.1 and 0.5 - 0.1.
  np.testing.assert_allclose(found['rows']['guidance']['above_chance']['value'], 0.1)
  np.testing.assert_allclose(
    found['changes']['bottleneck -> guidance']['above_chance']['value'], -0.3
  )
  step = found['changes']['augmentation -> bottleneck']['identification']
  np.testing.assert_allclose([step['low'], step['value'], step['high']], 1 / 6)
  assert '| augmentation -> bottleneck | **+0.167 [+0.167, +0.167]** |' in text
  assert '| baseline -> prior | +0.000 [+0.000, +0.000] |' in text
  assert found['scales']['scale 1']['identification']['value'] == pytest.approx(4 / 6)
  assert found['references']['truth']['identification']['value'] == 1
  assert (tmp_path / 'report' / 'table.md').read_text() == text


def test_students_t_for_any_number_of_seeds():
  freedoms = range(1, 60)
  ours = [ablation_report._student(f) for f in freedoms]
  np.testing.assert_allclose(ours, scipy.stats.t.ppf(0.975, freedoms), rtol=2e-3)


def test_one_seed_has_no_interval(results):
  found = ablation_report.gather(str(results), [1])
  cell = found['rows']['prior']['psnr']
  assert (cell['n'], cell['value'], cell['low'], cell['deviation']) == (1, 11.0, None, None)
  assert '| prior | 0.167 | 11.00 |' in ablation_report.markdown(found)


def test_the_bars_are_as_high_as_their_values(results, tmp_path):
  ablation_report.write(str(results), str(tmp_path / 'report'))
  picture = np.asarray(PIL.Image.open(tmp_path / 'report' / 'bars.png'))
  f = ablation_figures
  panel = picture[: f.HEIGHT, : f.WIDTH]
  bar = np.array([int(f.BAR[i : i + 2], 16) for i in (1, 3, 5)])
  step = (f.WIDTH - f.LEFT - f.RIGHT) / 5
  heights = []
  for i in range(5):  # beside the dots
    column = panel[:, round(f.LEFT + (i + 0.5) * step - 0.25 * step)]
    heights.append(f.HEIGHT - f.BOTTOM - np.flatnonzero((column == bar).all(1))[0])
  values = [np.mean([identified(row, seed) for seed in SEEDS]) / 6 for row in configs.ROWS]
  whole = f.HEIGHT - f.TOP - f.BOTTOM  # of the highest tick, which is 1
  np.testing.assert_allclose(heights, np.array(values) * whole, atol=2)
  sheet = PIL.Image.open(tmp_path / 'report' / 'sheet.png')
  assert sheet.width > 9 * 96 and sheet.height > 6 * 96


def test_labels_keep_apart():
  moved = ablation_figures._apart([100.0, 102.0, 60.0, 101.0], 15)
  assert np.diff(np.sort(moved)).min() >= 15 and moved[2] == 60.0
  low = ablation_figures.HEIGHT - ablation_figures.BOTTOM
  assert max(ablation_figures._apart([low - 1.0, low - 2.0, low - 3.0], 15)) <= low


@pytest.mark.parametrize(('break_it', 'line'), [
  (lambda root: (root / 'seed-1/prior/evaluation/results.json').unlink(),
   'seed-1/prior/evaluation/results.json is missing: launch/ablation.sh makes it'),
  (lambda root: (root / 'seed-4/guidance/evaluation/scores.json').write_text('{'),
   'seed-4/guidance/evaluation/scores.json cannot be read'),
  (lambda root: config(root / 'seed-1/bottleneck', steps=8),
   "bottleneck of seed 1 was trained with {'steps': 8"),
  (lambda root: replace(root / 'seed-1/prior/evaluation', benchmark='other'),
   'seed-1/prior/evaluation is of another benchmark (other) than the first row (b)'),
])  # fmt: skip
def test_what_is_missing_or_mixed_is_one_line(results, tmp_path, capsys, break_it, line):
  break_it(results)
  argv = 'report', f'--root={results}', f'--output={tmp_path}/report'
  assert line in refusal(capsys, door, *argv)
  assert not (tmp_path / 'report').exists()


def replace(folder, **changes):
  shutil.rmtree(folder)
  evaluation(folder, **changes)
  (folder / 'scores.json').write_text(json.dumps(dict(sha256=[f'{i}' for i in range(6)])))


@pytest.mark.parametrize(
  'argv, line',
  [
    (['report', '--root=.', '--output=x'], 'has no folder seed-0'),
    (['score', '--root=x'], '--folder=... is missing'),
    (['report', '--root=x', '--output=x', '--seeds=0,b'], "--seeds=0,b: 'b' is not a seed"),
  ],
)
def test_wrong_flags_are_one_line(tmp_path, monkeypatch, capsys, argv, line):
  monkeypatch.chdir(tmp_path)
  assert line in refusal(capsys, door, *argv)


@pytest.mark.parametrize(
  'given', [['--seeds=0,1,2'], ['--seeds=0 1 2'], ['--seeds=0', '--seeds=1,2']]
)
def test_the_report_takes_seeds(monkeypatch, given):
  seen = []
  monkeypatch.setattr(ablation_report, 'write', lambda root, output, seeds: seen.extend(seeds))
  door('report', '--root=x', '--output=y', *given)
  assert seen == [0, 1, 2]


# The script, with a stand-in for python that only records its arguments.


def test_the_script_trains_and_scores_every_row_in_order(script):
  status, said = script(
    'ablation', SEEDS='3 5', STEPS='8', BATCH='4', SCALES='2', FLAGS='--config.ema.decay=0'
  )
  assert status == 0
  trained = [line for line in said if 'exedit.train' in line]
  names = [(s, n) for n in configs.ROWS for s in '35']
  wanted = [('3', 'generator'), ('5', 'generator'), *names]
  for line, (seed, name) in zip(trained, wanted, strict=True):
    assert f'--config=configs/pbe.py:{name}:tiny --workdir=o/seed-{seed}/{name} ' in line
    assert f'--config.seed={seed} --config.steps=8 --config.batch_size=4 ' in line
    assert '--config.ema.decay=0' in line
    prior = f'--config.init_from=o/seed-{seed}/generator'
    assert (prior in line) == (name not in ('generator', 'baseline'))
  rated = [line for line in said if 'exedit.evaluate' in line]
  assert len(rated) == 2 * (5 + 1) + 4 and sum('--config.scale=2' in line for line in rated) == 2
  assert sum('launch.ablation score' in line for line in said) == len(rated)
  assert 'launch.ablation report --root=o --output=o/report' in said[-1]


def test_the_script_ends_where_a_training_fails(script):
  status, said = script('ablation', SEEDS='0', FAIL='pbe.py:prior:tiny')
  assert status != 0 and not any('launch.ablation report' in line for line in said)
