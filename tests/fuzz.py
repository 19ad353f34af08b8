"""Thousands of bad files for the doors: each is read or refused in one line, in time and in memory.

  python -m tests.fuzz --files=2000 --seed=0 [--keep=DIR]

File i is a function of (seed, i). A worker process under a memory limit opens it; the parent
watches the clock. A failure is any exception but UserError, a line that does not name the file, a
crash, a hang, a changed or new file beside it, or a command in it that was obeyed. Prints a table
by kind and exits 1 where anything failed.
"""

import argparse
import dataclasses
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from exedit import images
from exedit.runtime.errors import UserError
from exedit.weights.formats import files
from tests import fuzz_folders, fuzz_images, fuzz_pickles, fuzz_weights

SECONDS = 60.0  # per file; on an idle machine the slowest take about 3
CANARY = 'sung'


def open_weights(path: Path) -> None:
  """Every tensor of a file, one after the other."""
  for tensor in files.open_tensors(path).values():
    array = tensor.read()
    assert array.shape == tensor.shape and array.dtype == tensor.dtype
    assert array.flags['C_CONTIGUOUS']


def open_image(path: Path) -> None:
  """A photo."""
  image = images.load(path)
  assert image.shape[0] == 1 and image.shape[-1] == 3
  assert float(image.min()) >= -1 and float(image.max()) <= 1


def open_mask(path: Path) -> None:
  """A mask."""
  assert set(np.unique(images.load_mask(path))) <= {0.0, 1.0}


class Case(NamedTuple):
  """One bad file: what kind it is, who makes it, who opens it, and in how many bytes of memory."""

  kind: str
  make: Callable
  doors: tuple[Callable[[Path], None], ...]
  memory: int


@dataclasses.dataclass
class Row:
  """What became of the files of one kind."""

  accepted: int = 0
  refused: int = 0
  seconds: float = 0.0
  slowest: float = 0.0
  failures: list[str] = dataclasses.field(default_factory=list)


def cases(count: int, seed: int, only: str = '') -> Iterator[tuple[Case, list[int]]]:
  """Every kind (that begins so) by turns; the costly ones share every twentieth file."""
  every = [
    *(Case(k, m, (open_weights,), 2**30) for k, m in fuzz_weights.MAKERS.items()),
    *(Case(k, m, (open_weights,), 2**30) for k, m in fuzz_pickles.MAKERS.items()),
    *(Case(k, m, (open_image, open_mask), 2**32) for k, m in fuzz_images.MAKERS.items()),
    *(
      Case(k, m, (door,), 2**30)
      for door, makers in fuzz_folders.DOORS.items()
      for k, m in makers.items()
    ),
  ]
  bombs = [case for case in every if 'bombs' in case.kind or 'costly' in case.kind]
  giants = [case for case in every if 'megapixels' in case.kind]
  common = [case for case in every if case not in bombs + giants]
  rare = [*bombs, *bombs, *bombs, *giants]
  if only:
    common, rare = [case for case in every if case.kind.startswith(only)], []
  for i in range(count):
    case = rare[i // 20 % len(rare)] if rare and i % 20 == 7 else common[i % len(common)]
    yield case, [seed, i]


def run(
  todo: Iterable[tuple[Case, list[int]]], seconds: float = SECONDS, keep: Path | None = None
) -> dict[str, Row]:
  """Makes and opens every file; a table by kind, failures and all."""
  table: dict[str, Row] = {}
  worker = _Worker()
  try:
    for case, seed in todo:
      row = table.setdefault(case.kind, Row())
      for door in case.doors:
        outcome, text, took = _one(worker, case, door, seed, seconds, keep)
        row.seconds, row.slowest = row.seconds + took, max(row.slowest, took)
        row.accepted += outcome == 'accepted'
        row.refused += outcome == 'refused'
        if outcome == 'failed':
          row.failures.append(f'seed {seed}, {door.__name__}: {text}')
  finally:
    worker.stop()
  return table


def _one(worker, case, door, seed, seconds, keep) -> tuple[str, str, float]:
  """(accepted, refused or failed; the line; seconds) of one file at one door."""
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      made = case.make(np.random.default_rng(seed), folder / CANARY)
    for file, data in made.items():
      (folder / file).parent.mkdir(parents=True, exist_ok=True)
      (folder / file).write_bytes(data)
    path = folder / next(iter(made))
    start = time.monotonic()
    outcome, text = worker.open(door, path, case.memory, seconds)
    took = time.monotonic() - start
    if outcome == 'refused' and (str(path) not in text and folder.name not in text):
      outcome, text = 'failed', f'the line does not name the file: {text}'
    if outcome == 'refused' and ('\n' in text or len(text) > 2000):
      outcome, text = 'failed', f'not one line: {text[:300]!r}'
    held = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if not p.is_dir()}
    if CANARY in held:
      outcome, text = 'failed', 'a command in the file was obeyed'
    elif held != made:
      outcome, text = 'failed', f'files left or changed: {sorted(held)}'
    if outcome == 'failed' and keep:
      keep.mkdir(parents=True, exist_ok=True)
      for file, data in made.items():
        place = keep / '-'.join(map(str, seed)) / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return outcome, text, took


class _Worker:
  """A process that opens files; it is replaced where it hangs or dies."""

  def __init__(self):
    self.process = self.pipe = None

  def start(self):
    context = multiprocessing.get_context('spawn')
    self.pipe, theirs = context.Pipe()
    self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
    self.process.start()
    theirs.close()
    self.pipe.recv()  # it has imported everything

  def open(self, door, path, memory, seconds) -> tuple[str, str]:
    """What the door made of the file: accepted, refused or failed, and in what words."""
    if self.process is None:
      self.start()
    try:
      self.pipe.send((door, path, memory))
      if self.pipe.poll(seconds):
        return self.pipe.recv()
      outcome = 'failed', f'no answer within {seconds:g} s'
    except (EOFError, ConnectionError):
      self.process.join()
      outcome = 'failed', f'the process died (exit code {self.process.exitcode})'
    self.stop()
    return outcome

  def stop(self):
    if self.process is not None:
      self.process.kill()
      self.process.join()
    self.process = self.pipe = None


def _serve(pipe) -> None:
  """The worker's loop."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff talks to itself
  _start_jax()
  pipe.send('ready')
  while True:
    door, path, memory = pipe.recv()
    pipe.send(_judge(door, path, memory))


def _start_jax() -> None:
  """JAX is up and running before memory is limited."""
  jax.numpy.zeros(3).block_until_ready()


def _judge(door, path, memory) -> tuple[str, str]:
  """The door's answer, with so many bytes of memory above what is in use."""
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  if sys.platform == 'linux':
    now = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, hard))
  try:
    door(path)
    return 'accepted', ''
  except UserError as error:
    return 'refused', str(error.args[0])  # what is listed below has lines of its own
  except BaseException as error:
    return 'failed', f'{type(error).__name__}: {str(error)[:300]}'
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def show(table: dict[str, Row]) -> str:
  """The table as text, with totals."""
  lines = [
    f'{"kind":30} {"files":>6} {"accepted":>9} {"refused":>8} {"failed":>7} {"s":>7} {"worst":>6}'
  ]
  total = Row()
  for kind, row in [*table.items(), ('all', total)]:
    count = row.accepted + row.refused + len(row.failures)
    lines.append(
      f'{kind:30} {count:6} {row.accepted:9} {row.refused:8} {len(row.failures):7}'
      f' {row.seconds:7.1f} {row.slowest:6.2f}'
    )
    total.accepted, total.refused = total.accepted + row.accepted, total.refused + row.refused
    total.seconds, total.slowest = total.seconds + row.seconds, max(total.slowest, row.slowest)
    total.failures = total.failures + row.failures
  return '\n'.join([*lines, *(f'{k}: {f}' for k, r in table.items() for f in r.failures)])


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--files', type=int, default=2000, help='how many bad files')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', default='', help='kinds that begin so, such as config')
  parser.add_argument('--keep', type=Path, help='a folder for the files that something failed on')
  args = parser.parse_args()
  table = run(cases(args.files, args.seed, args.only), keep=args.keep)
  print(show(table))
  return 1 if any(row.failures for row in table.values()) else 0


if __name__ == '__main__':
  sys.exit(main())
