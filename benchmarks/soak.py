"""Kill a training again and again at moments chosen on purpose; nothing may come of it.

  python -m benchmarks.soak --output=soak.json                 # 50 kills
  python -m benchmarks.soak --kills=4 --seed=3 --folder=/tmp/soak

A tiny Paint by Example (`get_config` below: this file is its own config file) is trained once
undisturbed and then, in rounds, killed: SIGKILL, SIGTERM and SIGTERM to its whole process group, in
turns, at each of MOMENTS, which are seen in the run's files, output and children. Every kill is
followed by the same command again, until the run is at its end; then every logged number, the
grids, the parameters, their average and the optimizer's state must be those of the undisturbed run
to the bit, each step logged once, no checkpoint lost, and no temporary file, process or shared
memory left. The exit status is 1 where anything differs. `--module` and `--config` put another
training in its place; the moments are drawn from `--seed`, though not what the machine makes of it.
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

ROOT = Path(__file__).absolute().parent.parent
if not __package__:  # run by its path: its own folder would be the first to be searched
  sys.path[0] = str(ROOT)

from exedit.input_pipeline.errors import DataError  # noqa: E402
from exedit.runtime import doors  # noqa: E402

TIMED = ('images_per_second', 'data_wait', 'model_tflops', 'mfu', 'goodput')
SIGNALS = ('SIGKILL', 'SIGTERM', 'SIGTERM to the group')
MARK = 'EXEDIT_SOAK'  # in the environment of every process that is ours
PATIENCE = 3600.0  # seconds that a start, or the answer to SIGTERM, may take on a busy machine
PATIENCE_AFTER = 300.0  # seconds in which the processes of a dead run must be gone


def get_config(root: str):
  """The smallest real training: configs/pbe.py:tiny with 32,000 parameters; data go to `root`."""
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


# One start of the run, and what can be seen of it.


@dataclasses.dataclass
class Start:
  """A started training: `words` is what it said so far, `seen` the steps that it found saved."""

  process: subprocess.Popen
  workdir: Path
  data: Path
  output: Path
  began: float
  seen: set[int]
  logged: int

  def words(self) -> str:
    return self.output.read_text(errors='replace')

  def checkpoints(self) -> set[int]:
    return saved(self.workdir)

  def writing(self) -> bool:
    return any('tmp' in name for name in listed(self.workdir / 'checkpoints'))

  def lines(self) -> int:
    return line_count(self.workdir / 'metrics.jsonl') - self.logged

  def has_lock(self) -> bool:
    path = self.workdir / 'lock'
    return path.exists() and f'"pid": {self.process.pid},' in path.read_text()

  def has_worker(self) -> bool:
    return any('spawn_main' in command_line(pid) for pid in children(self.process.pid))


MOMENTS: dict[str, tuple[Callable[[Start], bool], float]] = {  # what is seen, and seconds beyond it
  'any moment': (lambda start: True, 8.0),
  'drawing data': (lambda start: any(n.startswith('.') for n in listed(start.data)), 0.2),
  'restoring': (Start.has_lock, 0.5),
  'compiling': (lambda start: 'compiling the step' in start.words(), 2.0),
  'data-worker start': (Start.has_worker, 1.0),
  'a step': (lambda start: start.lines() > 1, 0.1),
  'checkpoint write': (Start.writing, 0.05),
  'checkpoint clean-up': (lambda start: bool(start.checkpoints() - start.seen), 0.02),
  'a grid of edits': (lambda start: start.lines() >= edit_in(start), 1.0),
  'the end': (lambda start: '\ngoodput' in start.words(), 0.3),
}


def edit_in(start: Start) -> int:
  """Lines until the next grid is made."""
  try:
    config = json.loads((start.workdir / 'config.json').read_text())
  except FileNotFoundError:  # a new run that has not come so far
    return 10**9
  every = config['edit_every'] or 10**9
  return every - max(start.seen, default=0) % every


def saved(workdir: Path) -> set[int]:
  """The steps of the finished checkpoints."""
  return {int(name) for name in listed(workdir / 'checkpoints') if name.isdigit()}


def listed(folder: Path) -> list[str]:
  try:
    return os.listdir(folder)
  except FileNotFoundError:
    return []


def line_count(path: Path) -> int:
  try:
    return path.read_bytes().count(b'\n')
  except FileNotFoundError:
    return 0


# Processes, by what /proc says of them.


def children(pid: int) -> list[int]:
  try:
    return [int(p) for p in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()] + [
      int(p)
      for task in listed(Path(f'/proc/{pid}/task'))
      if int(task) != pid
      for p in Path(f'/proc/{pid}/task/{task}/children').read_text().split()
    ]
  except (FileNotFoundError, ProcessLookupError):
    return []


def command_line(pid: int) -> str:
  try:
    return Path(f'/proc/{pid}/cmdline').read_text().replace('\0', ' ')
  except (FileNotFoundError, ProcessLookupError):
    return ''


def ours(mark: str) -> list[int]:
  """The processes alive that carry the mark."""
  found = []
  for name in listed(Path('/proc')):
    try:
      if name.isdigit() and f'{MARK}={mark}'.encode() in Path(f'/proc/{name}/environ').read_bytes():
        found.append(int(name))
    except OSError:  # gone by now, or a zombie
      continue
  return found


def shared_memory(pid: int) -> set[str]:
  """The segments of shared memory that a process has mapped."""
  try:
    text = Path(f'/proc/{pid}/maps').read_text()
  except OSError:
    return set()
  return set(re.findall(r'/dev/shm/psm_\w+', text))


# The soak.


class Soak:
  """Starts, kills and compares; `faults` are the sentences about what should not be."""

  def __init__(self, folder: Path, module: str, config: str, seed: int, say: Callable = print):
    self.folder, self.module, self.config, self.say = folder, module, config, say
    self.random = random.Random(seed)
    self.mark = f'{os.getpid()}-{time.time_ns()}'
    self.faults: list[str] = []
    self.kills: list[dict[str, Any]] = []
    self.segments: set[str] = set()
    self.starts = 0
    self.waiting: list[tuple[str, str]] = []  # moments and signals that are still to come

  def start(self, name: str, cold: bool = False) -> Start:
    """The same command as ever; `cold`: with an empty compile cache."""
    self.starts += 1
    workdir, data = self.folder / name, self.folder / f'{name}-data'
    output = self.folder / f'{name}.{self.starts}.out'
    cache = self.folder / (f'cache-{self.starts}' if cold else 'cache')
    env = {
      **os.environ,
      MARK: self.mark,
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    config = f'--config={self.config}:{data}'
    with open(output, 'wb') as file:
      process = subprocess.Popen(
        [sys.executable, '-m', self.module, config, f'--workdir={workdir}'],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    logged = line_count(workdir / 'metrics.jsonl')
    return Start(process, workdir, data, output, time.monotonic(), saved(workdir), logged)

  def fault(self, start: Start, what: str) -> None:
    line = f'start {start.output.stem}: {what}'
    self.faults.append(line)
    self.say(f'FAULT {line}')

  def whole(self) -> Start:
    """The undisturbed run."""
    start = self.start('whole')
    start.process.wait()
    if start.process.returncode:
      raise SystemExit(f'the undisturbed run failed:\n{start.words()}')
    return start

  def turn(self) -> tuple[str, str]:
    """The next moment and signal; all pairs come before one comes again."""
    if not self.waiting:
      self.waiting = [(moment, name) for moment in MOMENTS for name in SIGNALS]
      self.random.shuffle(self.waiting)
    return self.waiting.pop()

  def round(self, name: str, kills: int) -> Start:
    """One run to its end, killed up to `kills` times on the way."""
    for _ in range(kills):
      moment, how = self.turn()
      if moment == 'drawing data':  # again; it is the same to the bit
        shutil.rmtree(self.folder / f'{name}-data', ignore_errors=True)
      start = self.start(name, cold=moment == 'compiling' and self.random.random() < 0.3)
      hit = self.kill(start, moment, how)
      self.after(start, moment, how, hit)
      if not hit:
        self.waiting.insert(0, (moment, how))
      if 'done: ' in start.words() or 'nothing to do' in start.words():
        return start
    start = self.start(name)
    self.wait(start)
    self.after(start, 'undisturbed', '', False)
    return start

  def kill(self, start: Start, moment: str, how: str) -> bool:
    """Wait for the moment, then send the signal; False where the run ended before it came."""
    seen, beyond = MOMENTS[moment]
    delay = self.random.uniform(0, beyond)
    while not seen(start):
      if start.process.poll() is not None:
        return False
      if time.monotonic() - start.began > PATIENCE:
        self.fault(start, f'did not come to: {moment}')
        break
      time.sleep(0.005)
    ahead = time.monotonic() + delay
    while time.monotonic() < ahead and start.process.poll() is None:
      time.sleep(0.001)
    for pid in [start.process.pid, *children(start.process.pid)]:
      self.segments |= shared_memory(pid)
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

  def after(self, start: Start, moment: str, how: str, hit: bool) -> None:
    """What must hold when a start has ended."""
    status, words, steps = start.process.returncode, start.words(), start.checkpoints()
    step = max(steps, default=0)
    if hit:
      self.kills.append(dict(moment=moment, signal=how, status=status, step=step))
      self.say(f'{len(self.kills)}: {how} at {moment}, status {status}, saved step {step}')
    expected = {0}
    if hit and how == 'SIGKILL':
      expected = {-signal.SIGKILL, 0}  # 0: it had just ended
    elif hit and moment == 'any moment':
      expected = {0, -signal.SIGTERM}  # while Python imports, before the door is open
    if status not in expected:
      self.fault(start, f'{how} at {moment}: status {status}, its last words: {words[-800:]!r}')
    if hit and status == 0 and not re.search(r'^(stopped|done|.*nothing to do)', words, re.M):
      self.fault(start, f'{how} at {moment}: no word of its end')
    if 'Traceback' in words or 'is damaged' in words:
      self.fault(start, f'{how} at {moment}: {words[-800:]!r}')
    went_on = re.search(r'^going on from step (\d+)', words, re.M)
    if start.seen and went_on and int(went_on[1]) != max(start.seen):
      self.fault(start, f'went on from step {went_on[1]} though {max(start.seen)} was saved')
    stopped = re.search(r'^stopped and saved at step (\d+)', words, re.M)
    if stopped and int(stopped[1]) != step:
      self.fault(start, f'said it saved step {stopped[1]}, but the newest is {step}')
    if step < max(start.seen, default=0):
      self.fault(start, f'lost the checkpoint of step {max(start.seen)}')
    self.no_processes(start)

  def no_processes(self, start: Start) -> None:
    """All that the start began must end by itself, soon after it."""
    deadline = time.monotonic() + PATIENCE_AFTER
    while left := ours(self.mark):
      if time.monotonic() > deadline:
        lines = [f'{pid} {command_line(pid)[:80]}' for pid in left]
        self.fault(start, f'left processes behind: {"; ".join(lines)}')
        for pid in left:
          os.kill(pid, signal.SIGKILL)
        return
      time.sleep(0.02)

  def compare(self, start: Start, whole: Start) -> None:
    """The run that was killed against the one that was not."""
    for what, reader in FOUND.items():
      if reader(start) != reader(whole):
        self.fault(start, f'{what} differ from the undisturbed run')
    left = [str(p) for p in start.workdir.rglob('*') if re.search(r'tmp|partial', p.name)]
    left += [str(p) for p in start.data.rglob('.*')]
    left += [name for name in self.segments if os.path.exists(name)]
    if left:
      self.fault(start, f'left behind: {", ".join(left)}')


def numbers(start: Start) -> list[dict]:
  """metrics.jsonl without what depends on the clock."""
  lines = (start.workdir / 'metrics.jsonl').read_text().splitlines()
  return [{n: v for n, v in json.loads(line).items() if n not in TIMED} for line in lines]


def state(start: Start) -> dict:
  """Checksums of parameters, average and optimizer state, after reading them again."""
  from exedit.runtime import checksums
  from exedit.weights.formats import run

  newest = start.workdir / 'checkpoints' / str(max(start.checkpoints()))
  bits = {}
  for which in ('params', 'ema'):
    params, _ = run.restore_params(start.workdir, which)
    bits |= {f'{which}/{name}': array.tobytes() for name, array in params.items()}
  return dict(seal=checksums.read_seal(newest), bits=bits)


def names(start: Start) -> list[str]:
  """The files of the workdir, TensorBoard's and a checkpoint's own names left out."""
  files = (p.relative_to(start.workdir) for p in start.workdir.rglob('*') if p.is_file())
  return sorted(str(p) for p in files if p.parts[0] not in ('tb', 'checkpoints'))


FOUND: dict[str, Callable[[Start], Any]] = {
  'logged numbers': numbers,
  'parameters or optimizer state': state,
  'grids': lambda start: [p.read_bytes() for p in sorted(start.workdir.glob('samples/*'))],
  'files': names,
  'checkpoints that are kept': lambda start: len(listed(start.workdir / 'checkpoints')),
  'data files': lambda start: sorted(listed(start.data)),
}


def soak(
  folder: Path, kills: int, seed: int, module: str, config: str, say: Callable = print
) -> dict[str, Any]:
  """Kill so many times; what was done, and the faults that were found."""
  began = time.monotonic()
  run = Soak(folder, module, config, seed, say)
  whole = run.whole()
  say(f'undisturbed: {time.monotonic() - began:.0f} s')
  rounds = 0
  goodput = []
  while len(run.kills) < kills:
    rounds += 1
    last = run.round(f'round{rounds}', kills - len(run.kills))
    run.compare(last, whole)
    goodput += re.findall(r'^goodput.*', last.words(), re.M)[-1:]
    say(f'round {rounds}: compared, {len(run.faults)} faults so far; {"".join(goodput[-1:])}')
    if not run.faults:
      for path in folder.glob(f'round{rounds}*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
  counts = collections.Counter((k['moment'], k['signal']) for k in run.kills)
  return dict(
    kills=len(run.kills),
    seed=seed,
    rounds=rounds,
    starts=run.starts,
    seconds=round(time.monotonic() - began, 1),
    by_moment={m: {s: counts[m, s] for s in SIGNALS} for m in MOMENTS},
    faults=run.faults,
    goodput=goodput,
    each=run.kills,
  )


def table(result: dict[str, Any]) -> str:
  """The kills by moment and signal, and the verdict."""
  width = max(map(len, MOMENTS))
  rows = [f'{"":<{width}}' + ''.join(f'  {name:>20}' for name in SIGNALS)]
  for moment, row in result['by_moment'].items():
    rows.append(f'{moment:<{width}}' + ''.join(f'  {row[name]:>20}' for name in SIGNALS))
  faults = len(result['faults'])
  rows.append(
    f'{result["kills"]} kills, {result["starts"]} starts, {result["rounds"]} runs to the end in '
    f'{result["seconds"]:.0f} s: ' + (f'{faults} FAULTS' if faults else 'all as undisturbed')
  )
  return '\n'.join(rows)


def main(
  kills: int, seed: int, module: str, config: str, output: str | None, folder: str | None
) -> None:
  """Soak in a folder that is kept where one is named, or where something was wrong."""
  place = Path(folder or tempfile.mkdtemp(prefix='soak.')).absolute()
  if folder and listed(place):
    raise DataError(f'{folder} is not empty: name another folder')
  place.mkdir(parents=True, exist_ok=True)
  result = soak(place, kills, seed, module, config, lambda line: print(line, flush=True))
  print(table(result))
  if output:
    Path(output).write_text(json.dumps(result, indent=2) + '\n')
  if result['faults']:
    print(f'look into {place}')
    sys.exit(1)
  if not folder:
    shutil.rmtree(place)


def _flags():
  from absl import flags

  values = flags.FlagValues()
  given = dict(flag_values=values)
  flags.DEFINE_integer('kills', 50, 'how often', 1, **given)
  flags.DEFINE_integer('seed', 0, 'of the moments and signals', **given)
  flags.DEFINE_string('module', 'exedit.train', 'the door of the training', **given)
  flags.DEFINE_string('config', 'benchmarks/soak.py', 'takes the data folder behind :', **given)
  flags.DEFINE_string('output', None, 'JSON of all that was done and found', **given)
  flags.DEFINE_string('folder', None, 'an empty folder to work in, kept at the end', **given)
  return values


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  doors.call(main, _flags(), __doc__, sys.argv)
