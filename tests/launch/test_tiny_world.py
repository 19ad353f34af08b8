"""launch/tiny_world.sh: every stage starts from the stages before it."""

import sys

from configs import autoencoder, clip, pbe, sd


def test_the_stages_in_order(script, tmp_path):
  out = tmp_path / 'out'
  settings = dict(SEED='3', EDITS='16', SHARE='30', FLAGS='--config.x=1')
  status, said = script('tiny_world', OUT=str(out), REAL=sys.executable, **settings)
  assert status == 0
  (drawn,) = [line for line in said if 'input_pipeline.synthetic' in line]
  assert f'--output={out}/data --version=2 --scenes=50000 --val_scenes=512 --shards=8' in drawn
  trained = [line for line in said if 'exedit.train' in line]
  wanted = (
    ('autoencoder', 'autoencoder.py:tiny', autoencoder.tiny(), {}),
    ('clip', 'clip.py:tiny', clip.tiny(), {}),
    ('sd', 'sd.py:tiny', sd.tiny(), dict(init_from='autoencoder', init_clip='clip')),
    ('pbe', 'pbe.py:lineage', pbe.lineage(), dict(init_from='sd', init_clip='clip')),
  )
  for line, (name, config, made, start) in zip(trained, wanted, strict=True):
    assert f'--config=configs/{config} --workdir={out}/{name} ' in line
    assert f'--config.data.root={out}/data --config.seed=3 ' in line and '--config.x=1' in line
    assert f'--config.steps={made.steps * 3 // 10} --config.synthetic.scenes=50000 ' in line
    for key in ('init_from', 'init_clip'):
      assert (f'--config.{key}={out}/{start.get(key)}' in line) == (key in start)
  assert '--config.init_parts=autoencoder|text' in trained[2] and 'init_parts' not in trained[3]
  exported = [line for line in said if 'exedit.convert' in line]
  for line, (run, weights) in zip(exported, (('sd', 'tiny-sd'), ('pbe', 'tiny')), strict=True):
    assert f'--from={out}/{run} --to={out}/weights/{weights} --dtype=float16' in line
  scored = [line for line in said if 'exedit.evaluate' in line]
  for line, kind in zip(scored, ('look', 'shape', 'pattern', 'text'), strict=True):
    weights = 'tiny-sd' if kind == 'text' else 'tiny'
    assert f'--weights={out}/weights/{weights} --output={out}/evaluation/{kind} ' in line
    assert f'--config.kind={kind} --config.edits=16' in line
  assert 'clip: train up to step' in (out / 'log.txt').read_text()


def test_it_ends_where_a_training_fails(script, tmp_path):
  status, said = script('tiny_world', OUT=str(tmp_path / 'out'), FAIL='clip.py:tiny')
  assert status != 0 and 'clip.py:tiny' in said[-1]
