"""Kill a training again and again at chosen moments; it must end as an undisturbed training does.

  python -m benchmarks.soak --output=soak.json                 # 50 kills
  python -m benchmarks.soak --kills=4 --seed=3 --folder=/tmp/soak

A tiny Paint by Example (`get_config` below; this file is its config file) is trained once
undisturbed. Then it is trained in rounds and killed by SIGKILL, SIGTERM, or SIGTERM to its whole
process group, at each of MOMENTS, and started again with the same command. At the end of a round
all logged numbers, grids, parameters, averages and the optimizer's state must be equal to the
undisturbed run's to the bit. No step may be logged twice, no checkpoint lost, and no temporary
file, process or shared memory left. The exit status is 1 if anything differs. `--seed` chooses the
order of the moments, and `--module` and `--config` another training.
"""

import collections
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness
from exedit.input_pipeline import synthetic
from exedit.runtime.doors import Flag
from exedit.runtime.errors import DataError

TIMED = ('images_per_second', 'data_wait', 'model_tflops', 'mfu', 'goodput')
SIGNALS = ('SIGKILL', 'SIGTERM', 'SIGTERM to the group')
MARK = 'EXEDIT_SOAK'  # an environment variable of every process of this soak
PATIENCE = 3600.0  # seconds for a start, or for the answer to SIGTERM, on a busy machine
PATIENCE_AFTER = 300.0  # seconds until all processes of an ended run must be gone
FLAGS = (
  Flag('kills', 50, 'number of kills', least=1),
  Flag('seed', 0, 'of the moments and signals'),
  Flag('module', 'exedit.train', 'the door of the training'),
  Flag(
    'config', 'benchmarks/soak.py', 'its config file, which takes the data folder after a colon'
  ),
  Flag('folder', '', 'an empty folder to work in, which is kept'),
)


def get_config(root: str):
  """configs/pbe.py:tiny with 32,000 parameters; `root` is the folder of its data."""
  from configs import pbe

  config = pbe.get_config('tiny')
  config.update(dict(steps=48, batch_size=4, log_every=1, save_every=3, edit_every=24))
  config.data.update(dict(root=root, workers=1))
  config.data.threads = 1
  config.synthetic.update(dict(scenes=128, val_scenes=8, shards=2))
  config.model.unet.update(dict(channels=8, groups=4, heads=2, mult=(1,), attention_levels=()))
  config.model.clip.update(dict(width=16, mlp=32, layers=1, heads=2))
  config.model.context_dim = 16
  config.optimizer.update(dict(lr=1e-3, warmup=2))
  config.edit.update(dict(count=2, steps=2))
  return config


# One start of the run, as its files, output and processes show it.


@dataclasses.dataclass
class Start:
  """A started training. `saved` and `logged`: the checkpoints and log lines that it found."""

  process: subprocess.Popen
  workdir: Path
  data: Path
  output: Path
  mark: str
  began: float
  saved: set[int]
  logged: int

  def words(self) -> str:
    return self.output.read_text(errors='replace')

  def checkpoints(self) -> set[int]:
    return checkpoints(self.workdir)

  def lines(self) -> int:
    return line_count(self.workdir) - self.logged

  def has_lock(self) -> bool:
    path = self.workdir / 'lock'
    return path.exists() and f'"pid": {self.process.pid},' in path.read_text()

  def has_worker(self) -> bool:
    return any('spawn_main' in read(f'{pid}/cmdline') for pid in processes(self.mark))

  def makes_grid(self) -> bool:
    """Whether the step before the next grid is logged."""
    try:
      config = json.loads((self.workdir / 'config.json').read_text())
    except FileNotFoundError:
      return False
    every = config['edit_every']
    return bool(every) and self.lines() >= every - max(self.saved, default=0) % every


MOMENTS: dict[str, tuple[Callable[[Start], bool], float]] = {  # (it has come, seconds after it)
  'any moment': (lambda start: True, 8.0),
  'drawing data': (lambda start: any(n.startswith('.') for n in listed(start.data)), 0.2),
  'restoring': (Start.has_lock, 0.5),
  'compiling': (lambda start: 'compiling the step' in start.words(), 2.0),
  'data-worker start': (Start.has_worker, 1.0),
  'a step': (lambda start: start.lines() > 1, 0.1),
  'checkpoint write': (
    lambda start: any('tmp' in name for name in listed(start.workdir / 'checkpoints')),
    0.05,
  ),
  'checkpoint clean-up': (lambda start: bool(start.checkpoints() - start.saved), 0.02),
  'a grid of edits': (Start.makes_grid, 1.0),
  'the end': (lambda start: '\ngoodput' in start.words(), 0.3),
}


def checkpoints(workdir: Path) -> set[int]:
  """The steps of the finished checkpoints."""
  return {int(name) for name in listed(workdir / 'checkpoints') if name.isdigit()}


def line_count(workdir: Path) -> int:
  path = workdir / 'metrics.jsonl'
  return path.read_bytes().count(b'\n') if path.exists() else 0


def listed(folder: Path) -> list[str]:
  return os.listdir(folder) if folder.is_dir() else []


def processes(mark: str) -> list[int]:
  """All live processes of a soak."""
  pids = [int(name) for name in listed(Path('/proc')) if name.isdigit()]
  return [pid for pid in pids if f'{MARK}={mark}' in read(f'{pid}/environ')]


def read(name: str) -> str:
  """A file of /proc, with spaces for zero bytes; '' for processes that have ended."""
  try:
    return Path('/proc', name).read_bytes().replace(b'\0', b' ').decode(errors='replace')
  except OSError:
    return ''


# The soak.


class Soak:
  """Starts, kills and compares trainings; `faults` are sentences about what is wrong."""

  def __init__(self, folder: Path, module: str, config: str, seed: int, say: Callable = print):
    self.folder, self.module, self.config, self.say = folder, module, config, say
    self.random = random.Random(seed)
    self.mark = f'{os.getpid()}-{time.time_ns()}'
    self.faults: list[str] = []
    self.kills: list[dict[str, Any]] = []
    self.segments: set[str] = set()  # shared memory of all killed processes
    self.starts = 0
    self.waiting: list[tuple[str, str]] = []  # (moment, signal) of the next kills

  def start(self, name: str, cold: bool = False) -> Start:
    """Starts the run with the same command; `cold`: with an empty compile cache."""
    self.starts += 1
    workdir, data = self.folder / name, self.folder / f'{name}-data'
    output = self.folder / f'{name}.{self.starts}.out'
    env = os.environ | {
      MARK: self.mark,
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(self.folder / (f'cache-{self.starts}' if cold else 'cache')),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    command = ['-m', self.module, f'--config={self.config}:{data}', f'--workdir={workdir}']
    with open(output, 'wb') as file:
      process = subprocess.Popen(
        [sys.executable, *command],
        cwd=Path(__file__).absolute().parent.parent,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    found = checkpoints(workdir), line_count(workdir)
    return Start(process, workdir, data, output, self.mark, time.monotonic(), *found)

  def fault(self, start: Start, what: str) -> None:
    self.faults.append(f'start {start.output.stem}: {what}')
    self.say(f'FAULT {self.faults[-1]}')

  def whole(self) -> Start:
    """The undisturbed run."""
    start = self.start('whole')
    if start.process.wait():
      raise SystemExit(f'the undisturbed run failed:\n{start.words()}')
    return start

  def round(self, name: str, kills: int) -> Start:
    """One run to its end, with up to `kills` kills."""
    for _ in range(kills):
      if not self.waiting:  # every pair comes once before any pair comes again
        self.waiting = [(moment, how) for moment in MOMENTS for how in SIGNALS]
        self.random.shuffle(self.waiting)
      moment, how = self.waiting.pop()
      if moment == 'drawing data':  # the run draws equal data again
        shutil.rmtree(self.folder / f'{name}-data', ignore_errors=True)
      start = self.start(name, cold=moment == 'compiling' and self.random.random() < 0.3)
      hit = self.kill(start, moment, how)
      self.check(start, moment, how, hit)
      if not hit:
        self.waiting.insert(0, (moment, how))
      if 'done: ' in start.words() or 'nothing to do' in start.words():
        return start
    start = self.start(name)
    self.wait(start)
    self.check(start, 'undisturbed', '', False)
    return start

  def kill(self, start: Start, moment: str, how: str) -> bool:
    """Sends the signal at the moment; False if the run ended before."""
    come, after = MOMENTS[moment]
    delay = self.random.uniform(0, after)
    while not come(start):
      if start.process.poll() is not None:
        return False
      if time.monotonic() - start.began > PATIENCE:
        self.fault(start, f'did not come to: {moment}')
        break
      time.sleep(0.005)
    time.sleep(delay)
    for pid in processes(self.mark):
      self.segments |= set(re.findall(r'/dev/shm/psm_\w+', read(f'{pid}/maps')))
    if start.process.poll() is not None:
      return False
    if how == 'SIGTERM to the group':
      os.killpg(start.process.pid, signal.SIGTERM)
    else:
      start.process.send_signal(getattr(signal, how))
    self.wait(start)
    return True

  def wait(self, start: Start) -> None:
    try:
      start.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
      self.fault(start, 'does not end')
      os.killpg(start.process.pid, signal.SIGKILL)
      start.process.wait()

  def check(self, start: Start, moment: str, how: str, hit: bool) -> None:
    """Checks the status, the output and the checkpoints of a start that has ended."""
    status, words, newest = start.process.returncode, start.words(), max(start.saved, default=0)
    step = max(start.checkpoints(), default=0)
    if hit:
      self.kills.append(dict(moment=moment, signal=how, status=status, step=step))
      self.say(f'{len(self.kills)}: {how} at {moment}, status {status}, saved step {step}')
    allowed = {0}  # SIGTERM saves; after SIGKILL, the run had just ended
    if hit and how == 'SIGKILL':
      allowed.add(-signal.SIGKILL)
    elif hit and moment == 'any moment':
      allowed.add(-signal.SIGTERM)  # while Python imports
    if status not in allowed:
      self.fault(start, f'{how} at {moment}: status {status}, its last words: {words[-800:]!r}')
    if hit and status == 0 and not re.search(r'^(stopped|done|.*nothing to do)', words, re.M):
      self.fault(start, f'{how} at {moment}: it does not say how it ended')
    if 'Traceback' in words or 'is damaged' in words:
      self.fault(start, f'{how} at {moment}: {words[-800:]!r}')
    resumed = re.search(r'^going on from step (\d+)', words, re.M)
    if start.saved and resumed and int(resumed[1]) != newest:
      self.fault(start, f'went on from step {resumed[1]} although {newest} was saved')
    stopped = re.search(r'^stopped and saved at step (\d+)', words, re.M)
    if stopped and int(stopped[1]) != step:
      self.fault(start, f'said it saved step {stopped[1]}, but the newest is {step}')
    if step < newest:
      self.fault(start, f'lost the checkpoint of step {newest}')
    self.no_processes(start)

  def no_processes(self, start: Start) -> None:
    """Checks that all processes of the start end by themselves."""
    deadline = time.monotonic() + PATIENCE_AFTER
    while left := processes(self.mark):
      if time.monotonic() > deadline:
        lines = [f'{pid} {read(f"{pid}/cmdline")[:80]}' for pid in left]
        self.fault(start, f'left processes behind: {"; ".join(lines)}')
        for pid in left:
          os.kill(pid, signal.SIGKILL)
        return
      time.sleep(0.02)

  def compare(self, start: Start, whole: Start) -> None:
    """Checks that a killed run is equal to the undisturbed run, and that it left nothing."""
    for what, result in RESULTS.items():
      if result(start) != result(whole):
        self.fault(start, f'{what} differ from the undisturbed run')
    left = [str(p) for p in start.workdir.rglob('*') if re.search(r'tmp|partial', p.name)]
    left += [str(p) for p in start.data.rglob('.*') if p.name != synthetic.LOCK]
    left += [name for name in self.segments if os.path.exists(name)]
    if left:
      self.fault(start, f'left behind: {", ".join(left)}')


def numbers(start: Start) -> list[dict]:
  """metrics.jsonl without the values that depend on the clock."""
  lines = (start.workdir / 'metrics.jsonl').read_text().splitlines()
  return [{n: v for n, v in json.loads(line).items() if n not in TIMED} for line in lines]


def state(start: Start) -> dict:
  """The parameters, the averages, and the checksums of the whole state."""
  from exedit.runtime import checksums
  from exedit.weights.formats import run

  newest = start.workdir / 'checkpoints' / str(max(start.checkpoints()))
  bits = {}
  for which in ('params', 'ema'):
    params, _ = run.restore_params(start.workdir, which)
    bits |= {f'{which}/{name}': array.tobytes() for name, array in params.items()}
  return dict(seal=checksums.read_seal(newest), bits=bits)


def names(start: Start) -> list[str]:
  """The files of the workdir, without those whose names differ: TensorBoard's, checkpoints'."""
  files = (p.relative_to(start.workdir) for p in start.workdir.rglob('*') if p.is_file())
  return sorted(str(p) for p in files if p.parts[0] not in ('tb', 'checkpoints'))


RESULTS: dict[str, Callable[[Start], Any]] = {
  'logged numbers': numbers,
  'parameters or optimizer state': state,
  'grids': lambda start: [p.read_bytes() for p in sorted(start.workdir.glob('samples/*'))],
  'files': names,
  'checkpoints that are kept': lambda start: len(start.checkpoints()),
  'data files': lambda start: sorted(listed(start.data)),
}


def soak(folder: Path, kills: int, seed: int, module: str, config: str) -> dict[str, Any]:
  """Kills this number of times; the report."""
  began, say, rounds = time.monotonic(), lambda line: print(line, flush=True), 0
  run = Soak(folder, module, config, seed, say)
  whole = run.whole()
  say(f'undisturbed: {time.monotonic() - began:.0f} s')
  while len(run.kills) < kills:
    rounds += 1
    run.compare(run.round(f'round{rounds}', kills - len(run.kills)), whole)
    say(f'round {rounds}: compared, {len(run.faults)} faults so far')
    if not run.faults:
      for path in folder.glob(f'round{rounds}*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
  counts = collections.Counter((k['moment'], k['signal']) for k in run.kills)
  return dict(
    settings=dict(kills=len(run.kills), seed=seed, rounds=rounds, starts=run.starts),
    seconds=round(time.monotonic() - began, 1),
    by_moment={moment: [str(counts[moment, how]) for how in SIGNALS] for moment in MOMENTS},
    faults=run.faults,
    each=run.kills,
    machine=harness.machine(),
  )


def main(output: str, kills: int, seed: int, module: str, config: str, folder: str) -> None:
  """Soaks in a folder; keeps it if `folder` names one, or if there were faults."""
  place = Path(folder or tempfile.mkdtemp(prefix='soak.')).absolute()
  if folder and listed(place):
    raise DataError(f'{folder} is not empty: name another folder')
  place.mkdir(parents=True, exist_ok=True)
  report = soak(place, kills, seed, module, config)
  verdict = f'{len(report["faults"])} FAULTS' if report['faults'] else 'all equal to undisturbed'
  lines = [*harness.table(('', *SIGNALS), report['by_moment'].items())]
  harness.finish(report, [*lines, f'{report["seconds"]:.0f} s: {verdict}'], output)
  if report['faults']:
    print(f'look into {place}')
    sys.exit(1)
  if not folder:
    shutil.rmtree(place)


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  harness.door(main, FLAGS, __doc__)
