"""The console commands that pip installs: `exedit-NAME` runs the door `python -m exedit.NAME`."""

import os
import runpy
import sys

DOORS = {f'exedit-{name}': f'exedit.{name}' for name in ('train', 'sample', 'evaluate', 'convert')}
DOORS |= {f'exedit-{name}': f'exedit.{name}' for name in ('encode', 'plan', 'gmm')}
DOORS |= {
  'exedit-show': 'exedit.input_pipeline.show',
  'exedit-synthetic': 'exedit.input_pipeline.synthetic',
  'exedit-coco-ee': 'exedit.input_pipeline.coco_ee',
  'exedit-references': 'exedit.input_pipeline.references',
}


def run() -> None:
  """Runs the door of the command by which this process was started.

  The door runs as the program, as with `python -m`, because its flags and its help are those of the
  program's main module.
  """
  command, _ = os.path.splitext(os.path.basename(sys.argv[0]))
  runpy.run_module(DOORS[command], run_name='__main__', alter_sys=True)
