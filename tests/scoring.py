"""Score pictures as one of several processes with several simulated devices each.

A program of its own, because the number of devices is fixed once JAX has started:
python -m tests.scoring WORLD PICTURES OUTPUT CACHE, with the variables that JAX reads.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from exedit.evaluation import evaluate_bench
from exedit.runtime import processes
from tests import bench, evaluations

COUNT = 11  # pictures whose vectors are written: neither all devices' nor a batch's multiple


def pictures():
  return [np.asarray(bench.picture(500 + k, (40, 50))) for k in range(COUNT)]


def looked_at(networks) -> dict[str, np.ndarray]:
  """What each network says about these pictures."""
  shown = pictures()
  whole = np.ones(shown[0].shape[:2], bool)
  found = {role: networks[role](iter(shown)) for role in ('clip', 'dino')}
  return found | dict(
    lpips=networks['lpips'](zip(shown, shown[::-1])),
    within=networks['lpips'].within((a, b, whole) for a, b in zip(shown, shown[::-1])),
    cut=networks['clip'](iter(shown), 1),  # several batches, the last one not full
  )


def start_processes(count, devices, *arguments) -> list[str]:
  """The program in so many processes; returns what each said."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_PROCESSES': str(count)}
  env |= dict(JAX_COORDINATOR_ADDRESS=f'localhost:{port}')
  env['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
  started = [
    subprocess.Popen(
      [sys.executable, '-m', 'tests.scoring', *map(str, arguments)],
      cwd=Path(__file__).parent.parent, env=env | dict(JAX_PROCESS_ID=str(index)), text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    for index in range(count)
  ]  # fmt: skip
  said = [process.communicate(timeout=300) for process in started]
  for process, (_, error) in zip(started, said):
    assert process.returncode == 0, error[-3000:]
  return [out for out, _ in said]


def main(world: str, shown: str, output: str, cache: str) -> None:
  processes.join_processes()
  given = evaluations.arguments(Path(world), cache)
  counted = evaluate_bench.vectors.fill
  made = []

  def fill(kept, column, only=None):
    made.extend(kept.missing(k for k in column.jobs if only is None or k in only))
    counted(kept, column, only)

  evaluate_bench.vectors.fill = fill
  evaluate_bench.evaluate(output, pictures=shown, **given)
  print(len(jax.local_devices()), len(made))
  if not jax.process_index():
    networks = evaluate_bench.instruments.networks(given['features'])
    np.savez(Path(output) / 'vectors.npz', allow_pickle=False, **looked_at(networks))
  processes.wait_for_others('said')


if __name__ == '__main__':
  main(*sys.argv[1:])
