"""Trains a system, or continues the training in its workdir.

  python -m exedit.train --config=configs/pbe.py:tiny --workdir=/tmp/tiny

Every key of the config is a flag: --config.optimizer.lr=3e-5. After a crash, a kill or SIGTERM
(which saves first) the same command continues, and ends exactly as the uninterrupted run would
have. SIGTERM before the first step ends the run as soon as Python has control, which is not while
XLA compiles; SIGTERM while Python still imports ends the process, because nothing has begun.
"""

import sys

from absl import flags

from exedit.runtime import compilation, doors, processes, remote, signals, versions
from exedit.runtime.errors import UserError
from exedit.training import loop, workdir
from exedit.training.config import read_config


def define_flags() -> None:
  """The flags that do not change the training: where it runs, and how it ends."""
  processes.define_flags()
  what = 'exit status of a run that was told to stop and has saved before its last step'
  flags.DEFINE_integer('stopped_status', 0, what, 0, 255)


def main(argv: list[str]) -> None:
  """Trains as the flags say."""
  given = flags.FLAGS
  if not given.config or not given.workdir:
    raise UserError('train needs --config=configs/pbe.py:tiny (or another) and --workdir=DIR')
  if remote.is_remote(given.workdir):
    workdir.quiet_stores()
  finished = False
  try:
    with signals.Stop(at_once=True):
      processes.join_processes(**processes.place_flags(given))
      with processes.ending_together():
        compilation.keep_memory()
        config = read_config(given.config.to_dict())
        state = loop.train(given.workdir, config, versions.process_began())
        finished = bool(state.step >= config.steps)
  except signals.Stopped as stopped:
    print(stopped, flush=True)
  if not finished:
    sys.exit(given.stopped_status)


if __name__ == '__main__':
  doors.define_config('the settings, such as configs/pbe.py:tiny')
  flags.DEFINE_string('workdir', None, 'folder of the run, to start in or to continue')
  define_flags()
  doors.run(main)
