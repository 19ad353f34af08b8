"""DOOR: weights out of a run, into a folder that can be handed on.

  python -m exedit.convert --from=/tmp/tiny --to=weights/mine [--which=ema] [--dtype=float16]

The folder holds config.json, model.safetensors and the run's metrics.jsonl; `exedit.sample`,
`exedit.evaluate` and `paint_by_example.load` read it as they read a workdir.
"""

from pathlib import Path

from absl import flags

from exedit import doors
from exedit.errors import UserError
from exedit.weights import folder

FROM = flags.DEFINE_string('from', None, "a training run's workdir, or an exported folder")
TO = flags.DEFINE_string('to', None, 'the folder to make')
WHICH = flags.DEFINE_enum('which', 'ema', ['ema', 'params'], 'moving average or the last step')
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'float16'], 'what to store them in')


def main(argv: list[str]) -> None:
  source, target = FROM.value, TO.value
  if not source or not target:
    missing = 'to' if source else 'from'
    raise UserError(f'--{missing} is missing: exedit.convert --from=WORKDIR --to=FOLDER')
  config, params, step = folder.read(source, WHICH.value)
  log = Path(source) / 'metrics.jsonl'
  folder.write(target, config, params, step=step, dtype=DTYPE.value, log=log)
  size = (Path(target) / folder.MODEL).stat().st_size
  print(f'{target}: step {step}, {len(params)} arrays, {size / 1e6:.1f} MB in {DTYPE.value}')


if __name__ == '__main__':
  doors.run(main)
