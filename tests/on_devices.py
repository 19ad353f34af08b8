"""Run train steps on several meshes of this process's devices and print what happened as JSON.

A program of its own, because the number of devices is fixed once JAX has started:
python -m tests.on_devices <system> '<json list of [mesh, accumulate]>'
"""

import json
import os
import subprocess
import sys

import jax
import numpy as np

from exedit import paint_by_example
from exedit.program import make_program
from exedit.training import mesh as meshes
from exedit.training import prefetch
from tests import toy

SMALL = dict(  # all parts of configs/pbe.py:tiny, as small as they go
  unet=dict(channels=32, groups=8, mult=(1,), layers=1, attention_levels=(0,), heads=2),
  autoencoder=dict(kind='space_to_depth', patch=4),
  clip=dict(width=128, mlp=32, layers=1, heads=2, patch=8, image_size=16),
  conditioner=dict(layers=1),
  context_dim=16,
  schedule=dict(prediction='v'),
)
SYSTEMS = dict(
  toy=(toy, dict(width=4096), 'unet'),
  pbe=(paint_by_example, SMALL, 'unet|conditioner|clip'),
)


def batch(size, side=16):
  rng = np.random.default_rng(0)
  return dict(
    image=rng.integers(0, 256, (size, side, side, 3), np.uint8),
    mask=rng.integers(0, 256, (size, side, side), np.uint8),
    exemplar=rng.integers(0, 256, (size, side, side, 3), np.uint8),
    id=np.arange(100, 100 + size, dtype=np.int32),
    corrupt=np.zeros(size, np.int32),
  )


def run(system, mesh, accumulate, steps=2, size=16):
  module, model, trainable = SYSTEMS[system]
  optimizer = dict(lr=1e-3, warmup=0)
  program = make_program(
    module, model, optimizer, dict(decay=0.9), mesh, trainable, size, accumulate, 0, steps
  )
  now, frozen = program.init(jax.random.key(0))
  rows = prefetch.to_devices(meshes.batch_sharding(program.mesh))(batch(size))
  compiled = program.step.lower(now, frozen, rows).compile()
  held = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(now))
  losses = []
  for _ in range(steps):
    before = jax.tree.leaves(now.params)[0]
    now, metrics = compiled(now, frozen, rows)
    losses.append(float(metrics['loss']))
  return dict(
    losses=losses,
    grad_norm=float(metrics['grad_norm']),
    state_bytes=held,
    donated_bytes=compiled.memory_analysis().alias_size_in_bytes,
    freed=before.is_deleted(),
    sharded=sorted(n for n, a in now.params.items() if any(a.sharding.spec)),
    buckets=np.asarray(metrics['bucket_sum'] / metrics['bucket_count']).tolist(),
  )


def with_devices(count, system, cases):
  """`run` for each case in a process with `count` simulated devices."""
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  env['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={count}'
  command = [sys.executable, '-m', 'tests.on_devices', system, json.dumps(cases)]
  root = os.path.dirname(os.path.dirname(__file__))
  done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


if __name__ == '__main__':
  print(json.dumps([run(sys.argv[1], *case) for case in json.loads(sys.argv[2])]))
