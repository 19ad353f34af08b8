"""Plans a training run: does it fit on a slice of TPUs, and how long would it take there?

  python -m exedit.plan --config=configs/pbe.py --topology=v5e:4x4 --batch=64 --sharding=fsdp
  python -m exedit.plan --config=configs/pbe.py --topology=v5e:4x4 --sharding=fsdp --search

Compiles the real training step with the TPU's own compiler, on a machine without TPUs. Prints the
memory of each chip, the collectives, the floating-point work, and the least time by a roofline.
Needs `pip install -r requirements-plan.txt`. At full size it takes minutes; results are cached. The
exit status is 1 if the run does not fit.
"""

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from exedit.runtime import doors
from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError
from exedit.runtime.settings import training

OWN = "the config's"
EXAMPLES = 'v5e:4x4, v6e:4x4 or v5p:2x2x2'
FLAGS = (
  Flag('config', None, 'a training run, such as configs/pbe.py', 'config'),
  Flag('topology', None, f'the slice, such as {EXAMPLES}', str),
  Flag('batch', None, 'images of all chips', int, 1, shown=OWN),
  Flag('sharding', None, 'what chips divide', ['data', 'zero1', 'fsdp'], shown=OWN),
  Flag('remat', None, 'what is computed again in the backward pass: none, block or conv1', str,
       shown=OWN),
  Flag('search', False, 'find the largest batch that fits'),
  Flag('effort', 'quick', "the compiler's; full takes ten times as long", ['quick', 'full']),
  Flag('refresh', False, 'compile again instead of using cached results'),
  Flag('output', 'plan.json', 'the file for the whole report as JSON'),
)  # fmt: skip


def overridden(
  config: Mapping[str, Any],
  *,
  batch: int | None = None,
  sharding: str | None = None,
  remat: str | None = None,
) -> dict[str, Any]:
  """The config with the values of the flags; None keeps the config's own value."""
  result = dict(config)
  if batch is not None:
    result['batch_size'] = batch
  if sharding is not None:
    result['mesh'] = dict(sharding=sharding)
  if remat is not None:
    unet = {**config['model'].get('unet', {}), 'remat': remat}
    result['model'] = {**config['model'], 'unet': unet}
  return result


def main(config: Any, topology: str | None, output: str, **given: Any) -> None:
  """Plan the run that the flags describe; print the table and write the JSON file."""
  if not config or not topology:
    raise UserError(f'plan needs --config=configs/pbe.py and --topology, such as {EXAMPLES}')
  from exedit.planning import compile_step, report, search
  from exedit.planning import topology as slices
  from exedit.runtime import files

  try:
    where = slices.parse(topology)
  except ValueError as error:
    raise UserError(str(error)) from error
  asked = compile_step.with_defaults(training(config))
  changes = {name: given[name] for name in ('batch', 'sharding', 'remat')}
  settings = overridden(asked, **changes)
  compile_step.check(settings)
  files.check_output(output)
  if slices.compiler() is None:
    raise UserError("the TPU's compiler is not installed: pip install -r requirements-plan.txt")
  how = dict(refresh=given['refresh'], effort=given['effort'])
  result = search.plan(
    settings,
    where,
    images=asked['steps'] * asked['batch_size'],
    search=given['search'],
    compiled=functools.partial(compile_step.cached_compile, **how),
  )
  files.write_json(output, json.loads(json.dumps(result)))
  print(f'{report.table(result)}; all of it as JSON: {output}')
  if not result['fits']:
    sys.exit(1)


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
