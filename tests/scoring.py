"""Score pictures as one of several processes with several simulated devices each.

This is a program because the number of devices is fixed once JAX has started:
python -m tests.scoring WORLD PICTURES OUTPUT, with the variables that JAX reads.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from exedit.evaluation import coco_ee, resources, vectors
from exedit.runtime import processes
from tests import ROOT, bench, evaluations, runs, simulated

COUNT = 11  # pictures whose vectors are written: a multiple of neither the devices nor the batch


def looked_at(networks) -> dict[str, np.ndarray]:
  """The vectors that each network gives for the same pictures."""
  shown = [np.asarray(bench.picture(500 + k, (40, 50))) for k in range(COUNT)]
  whole = np.ones(shown[0].shape[:2], bool)
  found = {role: networks[role](iter(shown)) for role in ('clip', 'dino')}
  within = networks['lpips'].within((a, b, whole) for a, b in zip(shown, shown[::-1]))
  return found | dict(
    lpips=networks['lpips'](zip(shown, shown[::-1])),
    within=np.concatenate(list(within)),
    cut=networks['clip'](iter(shown), 1),  # several batches, the last one not full
  )


def count(path) -> int:
  """The number of vectors (or reasons for none) in one file."""
  with np.load(path) as arrays:
    return len(arrays['keys']) + len(arrays['without'])


def start_processes(count, devices, *arguments) -> list[str]:
  """Run the program in `count` processes and return the stdout of each."""
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', **simulated(devices)}
  command = [sys.executable, '-m', 'tests.scoring', *map(str, arguments)]
  pipe = subprocess.PIPE
  started = [
    subprocess.Popen(command, cwd=ROOT, env=env | place, stdout=pipe, stderr=pipe, text=True)
    for place in runs.places(count)
  ]
  said = [process.communicate(timeout=300) for process in started]
  for process, (_, error) in zip(started, said):
    assert process.returncode == 0, error[-3000:]
  return [out for out, _ in said]


def main(world: str, shown: str, output: str) -> None:
  processes.join_processes()
  given = evaluations.arguments(Path(world), None)
  fill, made = vectors.fill, []

  def counting(store, column, only=None):
    made.extend(store.missing(k for k in column.keys if only is None or k in only))
    fill(store, column, only)

  vectors.fill = counting
  coco_ee.evaluate(output, pictures=shown, **given)
  print(len(jax.local_devices()), len(made))
  if not jax.process_index():
    found = looked_at(resources.networks(given['features']))
    np.savez(Path(output) / 'vectors.npz', allow_pickle=False, **found)
  processes.wait_for_others('said')


if __name__ == '__main__':
  main(*sys.argv[1:])
