"""Opens thousands of bad files: each must be read or refused in one line, in time and memory.

  python -m tests.fuzz --files=2000 --seed=0 [--keep=DIR]

File i is a function of (seed, i). Each is opened with a limit of memory and time. These are
failures: an exception that is no UserError, a line that does not name the file, a hang, a changed
or new file beside it, a command in the file that was obeyed. The program names each file before it
opens it, so that the last line names the file of a crash; it prints a table by kind and exits with
1 after a failure.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import functools
import json
import resource
import signal
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
from exedit import paint_by_example as pbe
from exedit.editing import jobs, session
from exedit.editing import recipe as recipes
from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.formats import files
from tests import fuzz_files

SECONDS = 60.0  # per file; on an idle machine the slowest take about 3
CANARY = 'sung'


# What opens the files


def open_weights(path: Path) -> None:
  """Reads every tensor of a file."""
  for tensor in files.open_tensors(path).values():
    array = tensor.read()
    assert array.shape == tensor.shape and array.dtype == tensor.dtype
    assert array.flags['C_CONTIGUOUS']


def open_image(path: Path) -> None:
  """Reads a photo."""
  image = images.load(path)
  assert image.shape[0] == 1 and image.shape[-1] == 3
  assert float(image.min()) >= -1 and float(image.max()) <= 1


def open_mask(path: Path) -> None:
  """Reads a mask."""
  assert set(np.unique(images.load_mask(path))) <= {0.0, 1.0}


def _top(path: Path) -> Path:
  return next(parent for parent in path.parents if parent.name == 'w')


def open_folder(path: Path) -> None:
  """Does everything that an edit does before the network runs."""
  made = session.Session(str(_top(path)))
  made.settings()
  found = shapes(json.dumps(made.config['model']))
  if isinstance(found, str):
    raise UserError(f'{made.found.where}: {found}')
  made.found.fit(found)
  for tensor in list(made.found.tensors.values())[:2]:
    tensor.read()


@functools.cache
def shapes(model: str) -> dict | str:
  """The shapes of the parameters, or the error; most damage does not change the network."""
  try:
    return pbe.abstract(json.loads(model), 'the config')[1]
  except UserError as error:
    return str(error)


def open_checkpoint(path: Path) -> None:
  """Finds an original checkpoint; no file says the number of groups of these small networks."""
  find.weights(path.with_suffix('.safetensors'), groups=4)


def open_clip(path: Path) -> None:
  """Finds a CLIP tower as a training does."""
  find.clip_tower(_top(path)).fit()


def open_recipe(path: Path) -> None:
  """Reads a recipe, whose text must then give the same recipe."""
  found = recipes.read(str(path))
  recipes.settings_of(found, pbe.SYSTEM, str(path))
  assert recipes.parse(json.loads(found.text())) == found
  recipes.locate(found.weights['source'], str(path.parent))


def open_list(path: Path) -> None:
  """Checks a list as `exedit.sample` does; every fault must be one line."""
  place = str(path if path.suffix in ('.jsonl', '.csv') else _top(path))
  own = pbe.Settings(steps=20, scale=3.0, sampler='ddim')
  found, faults = jobs.read(place, str(_top(path) / 'out'), pbe.SYSTEM, own, 999)
  faults += jobs.clashes(jobs.samples(found, 2), pbe.SYSTEM, [place], True)
  good, more = jobs.check_all(found, pbe.SYSTEM, 16)
  assert len(good) + len(more) == len(found)
  for fault in (faults := [*faults, *more]):
    if '\n' in str(fault) or len(str(fault)) > 2000:
      raise AssertionError(f'no line: {str(fault)[:200]!r}')
  jobs.refuse(faults, place, len(found), 'Mend them')


# Running them


class Case(NamedTuple):
  """One bad file: its kind, its maker, the functions that open it, and their memory in bytes."""

  kind: str
  make: Callable
  doors: tuple[Callable[[Path], None], ...]
  memory: int


@dataclasses.dataclass
class Row:
  """The outcomes of the files of one kind."""

  accepted: int = 0
  refused: int = 0
  seconds: float = 0.0
  slowest: float = 0.0
  failures: list[str] = dataclasses.field(default_factory=list)


def cases(count: int, seed: int, only: str = '') -> Iterator[tuple[Case, list[int]]]:
  """Yields the kinds (that begin with `only`) in turn; costly kinds share every twentieth file."""
  kinds = {
    (open_weights,): fuzz_files.WEIGHTS,
    (open_image, open_mask): fuzz_files.PICTURES,
    (open_folder,): fuzz_files.FOLDERS,
    (open_checkpoint,): fuzz_files.CHECKPOINTS,
    (open_clip,): fuzz_files.CLIPS,
    (open_recipe,): fuzz_files.RECIPES,
    (open_list,): fuzz_files.LISTS,
  }
  every = [
    Case(kind, make, doors, 2**32 if open_image in doors else 2**30)
    for doors, makers in kinds.items()
    for kind, make in makers.items()
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
  """Makes and opens every file, and returns the outcomes by kind."""
  jax.numpy.zeros(3).block_until_ready()  # starts JAX before memory is limited
  table: dict[str, Row] = {}
  for case, seed in todo:
    row = table.setdefault(case.kind, Row())
    for door in case.doors:
      print(f'{case.kind}, seed {seed}, {door.__name__}', flush=True)
      outcome, text, took = _one(case, door, seed, seconds, keep)
      row.seconds, row.slowest = row.seconds + took, max(row.slowest, took)
      row.accepted += outcome == 'accepted'
      row.refused += outcome == 'refused'
      if outcome == 'failed':
        row.failures.append(f'seed {seed}, {door.__name__}: {text}')
  return table


def _one(case, door, seed, seconds, keep) -> tuple[str, str, float]:
  """('accepted', 'refused' or 'failed'; the line; seconds) for one file and one function."""
  with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
    warnings.simplefilter('ignore')
    folder = Path(name)
    made = case.make(np.random.default_rng(seed), folder / CANARY)
    for file, data in made.items():
      (folder / file).parent.mkdir(parents=True, exist_ok=True)
      (folder / file).write_bytes(data)
    path = folder / next(iter(made))
    start = time.monotonic()
    outcome, text = _judge(door, path, case.memory, seconds)
    took = time.monotonic() - start
    if outcome == 'refused' and (str(path) not in text and folder.name not in text):
      outcome, text = 'failed', f'the line does not name the file: {text}'
    if outcome == 'refused' and ('\n' in text or len(text) > 2000):
      outcome, text = 'failed', f'not one line: {text[:300]!r}'
    after = {
      str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if not p.is_dir()
    }
    if CANARY in after:
      outcome, text = 'failed', 'a command in the file was obeyed'
    elif after != made:
      outcome, text = 'failed', f'files left or changed: {sorted(after)}'
    if outcome == 'failed' and keep:
      keep.mkdir(parents=True, exist_ok=True)
      for file, data in made.items():
        place = keep / '-'.join(map(str, seed)) / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return outcome, text, took


def _judge(door, path, memory, seconds) -> tuple[str, str]:
  """The outcome; the file is opened within the limits."""
  try:
    with _limits(memory, seconds):
      door(path)
    return 'accepted', ''
  except UserError as error:
    return 'refused', str(error.args[0])  # without its list
  except KeyboardInterrupt:
    raise
  except BaseException as error:
    return 'failed', f'{type(error).__name__}: {str(error)[:300]}'


class _Hang(BaseException):
  """No door catches it."""


@contextlib.contextmanager
def _limits(memory: int, seconds: float) -> Iterator[None]:
  """Allows `memory` bytes above what is in use, and some time; a hang in C ends the program."""

  def stop(*_):
    raise _Hang(f'no answer within {seconds:g} s')

  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  handler = signal.signal(signal.SIGALRM, stop)
  faulthandler.dump_traceback_later(seconds + 60, exit=True, file=sys.__stderr__)
  if sys.platform == 'linux':
    now = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, hard))
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    faulthandler.cancel_dump_traceback_later()
    signal.signal(signal.SIGALRM, handler)


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
  jax.config.update('jax_platforms', 'cpu')
  table = run(cases(args.files, args.seed, args.only), keep=args.keep)
  print(show(table))
  return 1 if any(row.failures for row in table.values()) else 0


if __name__ == '__main__':
  sys.exit(main())
