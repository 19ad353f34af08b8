"""benchmarks.growth measures a few devices, shards, images and edits."""

import json

from benchmarks import growth as benchmark
from benchmarks import harness


def test_every_table_is_measured(tmp_path, capsys):
  path = tmp_path / 'report.json'
  few = '--devices=2 --size=16 --batch=4 --shards=2,5 --records=20 --images=10,20 --edits=2,3'
  argv = ['benchmark', '--rounds=1', *few.split(), f'--output={path}']
  harness.door(benchmark.main, benchmark.FLAGS, benchmark.__doc__, argv=argv)
  report = json.loads(path.read_text())
  whole, split = report['devices']
  assert (whole['sharding'], split['sharding']) == ('data', 'fsdp')
  # Most arrays of the tiny width are smaller than sharding.MIN_ELEMENTS, so they stay whole.
  assert 0.4 * whole['state_bytes'] < split['state_bytes'] < 0.97 * whole['state_bytes']
  assert whole['argument_bytes'] > split['argument_bytes'] and split['step'] > 0
  assert [row['shards'] for row in report['shards']] == [2, 5]
  small, large = report['images']
  assert large['shard_bytes'] == 2 * small['shard_bytes']
  assert large['index_bytes'] - small['index_bytes'] == 10 * 16
  assert [row['edits'] for row in report['edits']] == [2, 3]
  assert 'first index' in capsys.readouterr().out
