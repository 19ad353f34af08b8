"""Measures pytorch-fid for benchmarks/evaluate.py, in a process without JAX; prints a JSON line.

python -m benchmarks.evaluate_pytorch_fid '{"packages": ..., "weights": ..., "pictures": ..., ...}'
"""

import importlib
import importlib.metadata
import inspect
import json
import os
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness


def measure(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Time the features, the network alone and the distance; the features go to a file."""
  inception, fid_score = imported(spec['packages'])
  import torch
  from safetensors.torch import load_file

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  inception.load_state_dict_from_url = lambda *_, **__: load_file(spec['weights'])
  model = inception.InceptionV3().eval().to(device)
  fid_score.tqdm = lambda batches: batches
  files = sorted(Path(spec['pictures']).iterdir())
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  own = dict(device=device, num_workers=min(cores or 0, 8))  # as its command line does

  def features():
    return fid_score.get_activations(files, model, **own)  # its own batches of 50

  batch = torch.rand(spec['batch'], 3, 299, 299).to(device)

  @torch.inference_mode()
  def network():
    return model(batch)[0].cpu()

  np.save(spec['output'], features())  # the first run, which warms up, does not count
  memory = harness.peak_bytes()
  network()
  found = dict(features=best(features, 1)[0], network=best(network, 3)[0])
  first, second = np.load(spec['vectors'])
  gaussian = lambda rows: (np.mean(rows, axis=0), np.cov(rows, rowvar=False))

  def distance():
    return fid_score.calculate_frechet_distance(*gaussian(first), *gaussian(second))

  found['distance'], value = best(distance, 1)
  names = ('torch', 'torchvision', 'pytorch-fid', 'scipy')
  versions = {name: importlib.metadata.version(name) for name in names}
  return dict(found, value=float(value), peak_bytes=memory, versions=versions)


def imported(packages: str) -> tuple[Any, Any]:
  """Import (pytorch_fid.inception, pytorch_fid.fid_score), from a folder of packages if given."""
  if packages:
    sys.path.append(packages)  # at the end, because one of the packages contains a `tests`
  import torch

  try:
    importlib.import_module('torchvision')
  except RuntimeError:  # built for CUDA, but torch is not: define the two operators it looks for
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
      del sys.modules[name]
    for name in ('nms', 'qnms'):
      signature = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
      torch.library.define(f'torchvision::{name}', signature)
  fid_score: Any = importlib.import_module('pytorch_fid.fid_score')
  inception: Any = importlib.import_module('pytorch_fid.inception')
  from scipy import linalg

  if 'disp' not in inspect.signature(linalg.sqrtm).parameters:  # since SciPy 1.18
    sqrtm = lambda matrix, disp: (linalg.sqrtm(matrix), None)
    fid_score.linalg = types.SimpleNamespace(sqrtm=sqrtm)
  return inception, fid_score


def best(call: Callable[[], Any], rounds: int) -> tuple[float, Any]:
  """Return the seconds of the fastest of some calls, and the result of the last one."""
  seconds, result = [], None
  for _ in range(rounds):
    start = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - start)
  return min(seconds), result


if __name__ == '__main__':
  print(json.dumps(measure(json.loads(sys.argv[1]))))
