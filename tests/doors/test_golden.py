"""Three training steps of a small Paint by Example, to the number."""

import jax
import numpy as np

from configs import pbe
from exedit import paint_by_example
from exedit.input_pipeline import synthetic
from exedit.input_pipeline.open_images import make_example
from exedit.input_pipeline.tf_example import parse_example
from exedit.training import sharding
from exedit.training.step import make_program

LOSSES = [0.8100281953811646, 0.8100281357765198, 0.7963488101959229]
GRAD_NORMS = [0.23301483690738678, 0.269351601600647, 0.2556997537612915]

CHANGED = """
The first steps of training are not what they were: {name} {got} instead of {golden}.
If you did not mean to change the model, its initialisation, the data, the random numbers or the
optimizer, find out what did. If you did, put the new numbers into this file and say in
the commit message why they changed: every run and every checkpoint made before is of another model.
"""


def test_first_steps():
  config = pbe.get_config('tiny').to_dict()
  config['model']['unet'] |= dict(channels=16, heads=2, mult=(1, 1), attention_levels=(1,))
  config['model']['clip'] |= dict(width=16, layers=1, mlp=32)
  names = ('model', 'ema', 'trainable', 'accumulate', 'seed')
  program = make_program(
    paint_by_example.SYSTEM,
    optimizer=config['optimizer'] | dict(warmup=2),
    mesh=dict(data=1),
    batch_size=8,
    steps=10,
    **{name: config[name] for name in names},
  )
  settings = {
    k: v for k, v in config['data'].items() if k not in ('root', 'split', 'workers', 'on_corrupt')
  }
  rows = [
    make_example(
      parse_example(synthetic.record(0, 'train', i)), np.random.default_rng(i), **settings
    )
    for i in range(8)
  ]
  batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  batch |= dict(id=np.arange(8, dtype=np.int32), corrupt=np.zeros(8, np.int32))
  batch = jax.device_put(batch, sharding.batch_sharding(program.mesh))
  now, frozen = program.init(jax.random.key(0))
  losses, norms = [], []
  for _ in range(3):
    now, metrics = program.step(now, frozen, batch)
    losses.append(float(metrics['loss']))
    norms.append(float(metrics['grad_norm']))
  for name, got, golden in (('loss', losses, LOSSES), ('grad_norm', norms, GRAD_NORMS)):
    np.testing.assert_allclose(
      got, golden, rtol=1e-3, err_msg=CHANGED.format(name=name, got=got, golden=golden)
    )
