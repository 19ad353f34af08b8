"""Train steps on simulated devices: what happened, as JSON.

A program of its own, because the number of devices is fixed once JAX has started:
python -m tests.on_devices <function> '<json list of its arguments, a list each>'
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from configs import pbe
from exedit import autoencoder_kl, contrastive, paint_by_example
from exedit.models import kernels
from exedit.planning import hlo
from exedit.runtime import devices as device_rows
from exedit.training import checkpoint, prefetch, sharding
from exedit.training.step import make_program
from tests import simulated, toy

SMALL = dict(  # all parts of configs/pbe.py:tiny, as small as they go
  unet=dict(channels=32, groups=8, mult=(1,), layers=1, attention_levels=(0,), heads=2),
  autoencoder=dict(kind='space_to_depth', patch=4),
  clip=dict(width=128, mlp=32, layers=1, heads=2, patch=8, image_size=16),
  conditioner=dict(layers=1),
  context_dim=16,
  schedule=dict(prediction='v'),
)
SYSTEMS = dict(
  toy=(toy.SYSTEM, dict(width=4096), 'unet'),
  toy16=(toy.SYSTEM, dict(width=4096, dtype='bfloat16'), 'unet'),
  pbe=(paint_by_example.SYSTEM, SMALL, 'unet|conditioner|clip'),
  autoencoder=(
    autoencoder_kl.SYSTEM,
    dict(
      autoencoder=dict(fold=2, channels=8, mult=(1, 2), layers=1, groups=4, scale=1.0), spread=1.0
    ),
    'autoencoder',
  ),
  clip=(
    contrastive.SYSTEM,
    dict(
      clip=dict(width=16, layers=1, heads=2, mlp=32, patch=8, image_size=16),
      text=dict(vocabulary=7, length=5, width=16, layers=1, heads=2, mlp=32),
      dim=8,
    ),
    '.*',
  ),
)
ARRAYS = dict(  # for `exchange`, and how they are split
  conv=(3, 3, 32, 64),
  low=(4, 64),
  high=(20, 64),
  square=(64, 64),
  middle=(12, 64),
  wide=(32, 48),
  odd=(9, 64),
  long=(128,),
  beside=(16, 96),
  kept=(2, 128, 80),
  small=(6, 40),
  bias=(64,),
  scale=(),
)
SPECS = dict(
  conv=P(None, None, 'fsdp', None),
  low=P('fsdp', None),
  high=P('fsdp', None),
  square=P('fsdp', None),
  middle=P('fsdp', None),
  wide=P('fsdp', None),
  odd=P(None, 'fsdp'),
  long=P('fsdp'),
  beside=P(),
  kept=P(),
  small=P(),
  bias=P(),
  scale=P(),
)
OPTIMIZER = dict(lr=1e-3, warmup=0, clip=1.0)


def batch(size, side=16):
  rng = np.random.default_rng(0)
  return dict(
    image=rng.integers(0, 256, (size, side, side, 3), np.uint8),
    mask=rng.integers(0, 256, (size, side, side), np.uint8),
    exemplar=rng.integers(0, 256, (size, side, side, 3), np.uint8),
    id=np.arange(100, 100 + size, dtype=np.int32),
    corrupt=np.zeros(size, np.int32),
    tokens=np.array([[5, i % 6 % 5, 6, 6, 6] for i in range(size)], np.int32),  # some are equal
  )


def program(system, mesh, accumulate=1, size=16, **settings):
  module, model, trainable = SYSTEMS[system]
  ema = dict(decay=0.9)
  return make_program(
    module,
    model=model,
    optimizer=OPTIMIZER,
    ema=ema,
    mesh=mesh,
    trainable=trainable,
    batch_size=size,
    accumulate=accumulate,
    seed=0,
    steps=10,
    **settings,
  )


@functools.cache
def begin(system):
  """A state on the host, the same for every mesh; drawn by name, for compiling `init` is slow."""
  made = program(system, {})

  def draw(name, like):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    deviation = max(np.prod(like.shape[:-1]), 4) ** -0.5
    return np.float32(deviation * rng.standard_normal(like.shape) + name.endswith('.scale'))

  params, frozen = (
    {n: draw(n, a) for n, a in tree.items()} for tree in (made.state.params, made.frozen)
  )
  zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), made.state)
  return dataclasses.replace(zeros, params=params, ema=params), frozen


def place(tree, like):
  return jax.tree.map(lambda a, shape: jax.device_put(a, shape.sharding), tree, like)


def run(system, mesh, accumulate=1, steps=2, size=16):
  """Some steps on one mesh."""
  made = program(system, mesh, accumulate, size)
  now, frozen = place(begin(system), (made.state, made.frozen))
  examples = prefetch.to_devices(sharding.batch_sharding(made.mesh))(batch(size))
  lowered = made.step.lower(now, frozen, examples)
  compiled = lowered.compile()
  held = held_bytes(now)
  losses = []
  for _ in range(steps):
    before = jax.tree.leaves(now.params)[0]
    now, metrics = compiled(now, frozen, examples)
    losses.append(float(metrics['loss']))
  return dict(
    losses=losses,
    grad_norm=float(metrics['grad_norm']),
    state_bytes=held,
    params_bytes=held_bytes(now.params),
    donated_bytes=compiled.memory_analysis().alias_size_in_bytes,
    freed=before.is_deleted(),
    sharded=sorted(n for n, a in now.params.items() if any(a.sharding.spec)),
    buckets=np.asarray(metrics['bucket_sum'] / metrics['bucket_count']).tolist()
    if 'bucket_sum' in metrics
    else None,
    asked=[dataclasses.asdict(one) for one in hlo.collectives(lowered.as_text())],
    compiled=hlo.count_collectives(compiled.as_text()),
  )


def held_bytes(tree):
  return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))


def move(*stations):
  """One step on each mesh in turn, through a checkpoint; each is (mesh settings, devices).

  What comes back is compared bit by bit with what was saved.
  """
  losses, same, now = [], [], None
  with tempfile.TemporaryDirectory() as workdir:
    for mesh, count in stations:
      made = program('toy', mesh, devices=jax.devices()[:count])
      saved, (now, frozen) = now, place(begin('toy'), (made.state, made.frozen))
      if saved is not None:
        now = checkpoint.Checkpoints(workdir).restore(made.state)
        same.append(jax.tree.all(jax.tree.map(as_saved, saved, now, made.state)))
      examples = prefetch.to_devices(sharding.batch_sharding(made.mesh))(batch(16))
      now, metrics = made.step(now, frozen, examples)
      losses.append(float(metrics['loss']))
      checkpoints = checkpoint.Checkpoints(workdir)
      checkpoints.save(int(now.step), now)
      checkpoints.close()
  return dict(losses=losses, same=same)


def as_saved(saved, back, wanted):
  bits = np.asarray(saved).tobytes() == np.asarray(back).tobytes()
  return bits and back.sharding == wanted.sharding


def full_size(mesh, per_device=4):
  """The collectives of the published recipe's step; nothing is allocated or compiled."""
  config = pbe.get_config().to_dict()
  size = per_device * jax.device_count()
  names = ('model', 'optimizer', 'ema', 'trainable', 'accumulate', 'seed', 'steps')
  given = {name: config[name] for name in names}
  made = make_program(paint_by_example.SYSTEM, mesh=mesh, batch_size=size, **given)
  shapes = dict(image=(512, 512, 3), mask=(512, 512), exemplar=(224, 224, 3), id=(), corrupt=())
  examples = {
    name: jax.ShapeDtypeStruct((size, *shape), jnp.uint8 if shape else jnp.int32)
    for name, shape in shapes.items()
  }
  text = made.step.lower(made.state, made.frozen, examples).as_text()
  return [dataclasses.asdict(one) for one in hlo.collectives(text)]


def exchange(sizes):
  """Arrays gathered and summed on a mesh of these sizes, and the StableHLO of it.

  Device i of those with different examples computes (i + 1) times each array.
  """
  mesh = sharding.make_mesh('zero1', **sizes)
  rng = np.random.default_rng(0)
  arrays = {name: np.float32(rng.standard_normal(shape)) for name, shape in ARRAYS.items()}

  def step(parts):
    whole = sharding.gather(parts, SPECS, mesh)
    factor = jax.lax.axis_index(sharding.AXES) + 1.0
    return whole, sharding.mean({n: factor * a for n, a in whole.items()}, SPECS, mesh)

  lowered = jax.jit(
    jax.shard_map(step, mesh=mesh, in_specs=(SPECS,), out_specs=(P(), SPECS), check_vma=False)
  ).lower(arrays)
  whole, mean = lowered.compile()(arrays)
  factor = (mesh.size + 1) / 2
  return dict(
    whole=[name for name in arrays if np.array_equal(whole[name], arrays[name])],
    mean=[name for name in arrays if np.allclose(mean[name], factor * arrays[name], rtol=1e-5)],
    text=lowered.as_text(),
  )


def shared():
  """Attention by a TPU's kernel, its rows over the devices: is it that of one device?"""
  rng = np.random.default_rng(0)
  q, k, v = (np.float32(rng.standard_normal((4, 128, 2, 8))) for _ in range(3))
  run = lambda scale, q, k, v: kernels.splash(scale * q, k, v, interpret=True)
  one, all_ = (device_rows.over_devices(run, 2.0, jax.devices()[:n])(q, k, v) for n in (1, None))
  return dict(same=bool(np.array_equal(one, all_)), devices=len(all_.devices()))


def with_devices(count, function, cases):
  """A function of this module for each list of arguments, with `count` simulated devices."""
  env = {**os.environ, **simulated(count)}
  command = [sys.executable, '-m', 'tests.on_devices', function.__name__, json.dumps(cases)]
  root = os.path.dirname(os.path.dirname(__file__))
  done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


if __name__ == '__main__':
  functions = dict(run=run, move=move, full_size=full_size, exchange=exchange, shared=shared)
  print(json.dumps([functions[sys.argv[1]](*case) for case in json.loads(sys.argv[2])]))
