"""A small benchmark with everything that its evaluation takes, and that evaluation as a call."""

import contextlib
import functools
from typing import Any

import numpy as np
import pytest

from exedit.evaluation import coco_ee, resources
from exedit.metrics import quality_score
from exedit.runtime.errors import explain
from tests import bench, judges, small

SIZE = 40
CHEAP = dict(steps=2, sampler='ddim')


@contextlib.contextmanager
def quickly():
  """Load and compile the model and each set of networks once."""
  with small.loaded_once(), pytest.MonkeyPatch.context() as patch:
    networks = resources.networks
    load = functools.cache(lambda items: networks(dict(items)))
    patch.setattr(resources, 'networks', lambda paths: load(tuple(paths.items())))
    yield


def world(root):
  """Write a benchmark, weights, networks, a mixture and real images; tests only read them."""
  bench.write(root / 'bench', size=SIZE)
  (root / 'real').mkdir()
  for k in range(6):
    bench.picture(300 + k, (60 + k, 50)).save(root / 'real' / f'{k}.png')
  means = np.random.default_rng(0).normal(size=(2, judges.DIM))
  factors = np.stack([np.eye(judges.DIM) / 3] * 2)
  gmm = quality_score.GMM(np.array([0.5, 0.5]), means, factors)
  np.savez(root / 'gmm.npz', **arrays(gmm))
  small.export(root / 'weights', SIZE)  # trained on pictures of the sources' size
  judges.write(root / 'networks')
  return root


def arrays(gmm) -> dict[str, Any]:
  return gmm.to_arrays()


def arguments(world, cache) -> dict[str, Any]:
  """The arguments of `coco_ee.evaluate`, as a config gives them."""
  networks = {n: str(world / 'networks' / f'{n}.safetensors') for n in ('clip', 'dino', 'lpips')}
  return dict(
    data=dict(root=str(world / 'bench')),
    reference=dict(root=str(world / 'real')),
    gmm=str(world / 'gmm.npz'),
    features=networks,
    cache=cache and str(cache),
    say=lambda line: None,
  )


def plain(world) -> dict[str, Any]:
  """The same without networks, for tests of the edits alone."""
  return dict(arguments(world, world / 'cache'), features={}, gmm=None, reference={})


def score(output, **given: Any):
  return coco_ee.evaluate(str(output), **given)


def refuse(*args, **kwargs):
  """Return the one line with which an evaluation refuses its arguments."""
  with pytest.raises(Exception) as caught:
    coco_ee.evaluate(*args, **kwargs)
  line = explain(caught.value)
  assert line is not None and '\n' not in line and len(line) < 400, caught.value
  return line
