"""Trains a system, or continues the training in its workdir.

  python -m exedit.train --config=configs/pbe.py:tiny --workdir=/tmp/tiny

Every key of the config is a flag: --config.optimizer.lr=3e-5. After a crash, a kill or SIGTERM
(which saves first) the same command continues, and ends exactly as the uninterrupted run would
have. SIGTERM before the first step ends the run as soon as Python has control, which is not while
XLA compiles. Ctrl-C saves too; before the first step it ends the run with status 130.
"""

import signal
import sys
from collections.abc import Sequence
from typing import Any

from exedit.runtime import doors, place, signals
from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError
from exedit.training import keys

FLAGS = (
  Flag('config', None, 'the settings, such as configs/pbe.py:tiny; all keys are below', 'config'),
  Flag('workdir', None, 'folder of the run, to start in or to continue', str),
  Flag(
    'stopped_status', 0, 'exit status of a run that was told to stop and has saved before its last '
    'step', int, 0, 255,
  ),
  Flag(
    'allow_changes', False, 'go on with another model, system, data or loss than the run was begun '
    'with',
  ),
  Flag('ignore_memory', False, 'start even if the arrays are larger than the memory'),
  *place.FLAGS,
)  # fmt: skip


def main(
  config: Any,
  workdir: str | None,
  stopped_status: int,
  allow_changes: bool,
  ignore_memory: bool,
  **processes_flags,
) -> None:
  """Trains as the flags say."""
  if not config or not workdir:
    raise UserError('train needs --config=configs/pbe.py:tiny (or another) and --workdir=DIR')
  finished = False
  try:
    with signals.Stop(at_once=True, door=__file__):
      from exedit.runtime import compilation, processes, remote, versions
      from exedit.training import loop
      from exedit.training.config import read_config
      from exedit.training.workdir import quiet_stores

      if remote.is_remote(workdir):
        quiet_stores()
      processes.join_processes(**processes_flags)
      with processes.ending_together():
        compilation.keep_memory()
        settings = read_config(config)
        how = dict(allow_changes=allow_changes, ignore_memory=ignore_memory)
        state = loop.train(workdir, settings, versions.process_began(), **how)
        finished = bool(state.step >= settings.steps)
  except signals.Stopped as stopped:
    if stopped.number == signal.SIGINT:
      raise
    print(stopped, flush=True)
  if not finished:
    sys.exit(stopped_status)


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv, keys=keys.listing)


if __name__ == '__main__':
  run()
