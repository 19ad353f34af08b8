"""Runs of tests/toy.py as people start them, and what they leave behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
from flax import nnx

from exedit.input_pipeline import synthetic
from exedit.models import parameters
from exedit.runtime import checksums
from exedit.training import loop
from exedit.training.config import read_config
from exedit.weights.layouts import own
from tests import ROOT, simulated, toy, toy_config

TIMED = ('images_per_second', 'data_wait', 'model_tflops', 'mfu', 'goodput')


def train(workdir, *, allow_changes=False, ignore_memory=False, **settings):
  """A training in this process; returns its last state."""
  how = dict(allow_changes=allow_changes, ignore_memory=ignore_memory)
  return loop.train(str(workdir), read_config(settings), **how)


def start(root, workdir, cache, *overrides, **variables):
  """A training that needs seconds, unless told otherwise, as a process of its own."""
  env = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    **variables,
  }
  config = f'--config=tests/toy_config.py:{root}'
  long = ('--config.steps=90', '--config.save_every=3', '--config.edit_every=30')
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.toy', config, f'--workdir={workdir}', *long, *overrides],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def shards(tmp_path_factory):
  """A folder with the toy's data."""
  folder = str(tmp_path_factory.mktemp('shards'))
  synthetic.ensure(folder, **toy_config.get_config(folder).synthetic.to_dict())
  return folder


def start_two(root, workdir, cache, *overrides, others=(), **variables):
  """Two processes of one training, of two devices each; `others` are flags of the second alone."""
  address = f'localhost:{free_port()}'
  place = (f'--coordinator={address}', '--num_processes=2')
  devices = simulated(2) | variables
  each = [(*overrides, *place), (*overrides, *others, *place)]
  return [
    start(root, workdir, cache, *flags, f'--process_id={i}', **devices)
    for i, flags in enumerate(each)
  ]


def places(count):
  """JAX's variables for each of several processes on this machine."""
  address = f'localhost:{free_port()}'
  shared = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=str(count))
  return [shared | dict(JAX_PROCESS_ID=str(i)) for i in range(count)]


def free_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def end(process, expected=0, seconds=300):
  """What the process said, when it has ended with the expected status."""
  try:
    output, _ = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGKILL)
    raise AssertionError(f'still there: {process.communicate()[0]}') from None
  expected = (expected,) if isinstance(expected, int) else expected
  assert process.returncode in expected, output
  return output


def at_line(workdir, count, process=None):
  """Return as soon as the run has logged so many steps."""
  path = workdir / 'metrics.jsonl'
  deadline = time.monotonic() + 300
  while not path.exists() or path.read_text().count('\n') < count:
    assert process is None or process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline, 'the run does not come so far'
    time.sleep(0.005)


def lines(workdir):
  """metrics.jsonl without what depends on the clock."""
  text = (workdir / 'metrics.jsonl').read_text()
  records = [json.loads(line) for line in text.splitlines()]
  return [{n: v for n, v in record.items() if n not in TIMED} for record in records]


def digests(workdir, step):
  return checksums.read_seal(workdir / 'checkpoints' / str(step))


def export(path, width=64, part=''):
  """A folder with the toy's parameters, all of them or those of one part."""
  _, params = parameters.flatten(toy.build(width=width, rngs=nnx.Rngs(5)))
  params = {n: np.asarray(a) for n, a in params.items() if n.startswith(part)}
  own.write(path, dict(system='toy', model=dict(width=width), data={}), params, step=3)
  return str(path), params
