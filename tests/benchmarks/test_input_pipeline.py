"""The benchmark's two sides do the same work, and its door reports it."""

import json

import numpy as np
import pytest

from benchmarks import harness
from benchmarks import input_pipeline as benchmark


def test_both_sides_agree_in_distribution():
  """Same shares of the picture repainted and same colours, over draws that differ."""
  records = benchmark.pictures(1, 96, 64, 90) * 800
  sizes = dict(size=32, exemplar_size=32)
  ours = list(benchmark.ours(records, 100, **sizes))
  plain = list(benchmark.plain(records, 100, benchmark.Watch(), **sizes))
  repainted = np.concatenate([b['mask'].mean((1, 2)) / 255 for b in ours])
  theirs = np.concatenate([1 - b['mask'].mean((1, 2, 3)) for b in plain])
  assert repainted.mean() == pytest.approx(theirs.mean(), abs=0.03)
  assert repainted.std() == pytest.approx(theirs.std(), abs=0.03)
  colour = np.concatenate([b['exemplar'] for b in ours]).mean((0, 1, 2)) / 255
  other = np.concatenate([b['exemplar'] for b in plain]).mean((0, 2, 3))
  other = other * benchmark.CLIP_STD + benchmark.CLIP_MEAN
  np.testing.assert_allclose(colour, other, atol=0.02)


def test_the_door_reports(tmp_path, capsys):
  path = tmp_path / 'report.json'
  flags = '--count=4 --rounds=1 --batch_size=2 --width=80 --height=64 --size=32 --exemplar_size=16'
  argv = ['benchmark', f'--output={path}', *flags.split()]
  harness.door(benchmark.main, benchmark.FLAGS, benchmark.__doc__, argv=argv)
  report = json.loads(path.read_text())
  stages = {'parsing', 'decode', 'crop', 'masks', 'augmentation', 'batching'}
  assert stages == set(report['milliseconds_by_stage']['ours'])
  assert stages == set(report['milliseconds_by_stage']['plain'])
  assert report['ratio'] > 0 and report['machine']['commit']
  assert 'images/s/core' in capsys.readouterr().out
