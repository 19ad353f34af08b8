"""A small benchmark with all that its evaluation takes, and that evaluation as a call."""

import contextlib
import functools
from typing import Any

import numpy as np
import pytest

from exedit.evaluation import evaluate_bench, instruments
from exedit.metrics import quality_score
from exedit.runtime.errors import explain
from tests import bench, judges, small

SIZE = 40
CHEAP = dict(steps=2, sampler='ddim')


@contextlib.contextmanager
def quickly():
  """The model and each set of networks are loaded and compiled once."""
  with small.quickly(), pytest.MonkeyPatch.context() as patch:
    networks = instruments.networks
    load = functools.cache(lambda items: networks(dict(items)))
    patch.setattr(instruments, 'networks', lambda paths: load(tuple(paths.items())))
    yield


def world(root):
  """A benchmark, weights, networks, a mixture and real images; nothing is written to them."""
  bench.write(root / 'bench', size=SIZE)
  (root / 'real').mkdir()
  for k in range(6):
    bench.picture(300 + k, (60 + k, 50)).save(root / 'real' / f'{k}.png')
  rng = np.random.default_rng(0)
  means, factors = rng.normal(size=(2, judges.DIM)), np.stack([np.eye(judges.DIM) / 3] * 2)
  gmm = quality_score.GMM(np.array([0.5, 0.5]), means, factors)
  np.savez(root / 'gmm.npz', **arrays(gmm))
  small.export(root / 'weights')
  judges.write(root / 'networks')
  return root


def arrays(gmm) -> dict[str, Any]:
  return gmm.to_arrays()


def arguments(world, cache) -> dict[str, Any]:
  """Arguments of `evaluate_bench.evaluate`, as a config gives them."""
  networks = {n: str(world / 'networks' / f'{n}.safetensors') for n in ('clip', 'dino', 'lpips')}
  return dict(
    data=dict(root=str(world / 'bench')),
    reference=dict(root=str(world / 'real')),
    gmm=str(world / 'gmm.npz'),
    features=networks,
    cache=str(cache),
    say=lambda line: None,
  )


def score(output, **given: Any):
  return evaluate_bench.evaluate(output, **given)


def refuse(*args, **kwargs):
  """The one line with which an evaluation says no."""
  with pytest.raises(Exception) as caught:
    score(*args, **kwargs)
  line = explain(caught.value)
  assert line is not None and '\n' not in line and len(line) < 400
  return line
