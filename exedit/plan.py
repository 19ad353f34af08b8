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
import os
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from exedit.planning import compile_step, report, search, topology
from exedit.runtime import doors, files
from exedit.runtime.errors import UserError
from exedit.training.sharding import SHARDINGS


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
    if sharding not in SHARDINGS:
      raise UserError(f"--sharding is '{sharding}'; use one of {', '.join(SHARDINGS)}")
    result['mesh'] = dict(sharding=sharding)
  if remat is not None:
    unet = {**config['model'].get('unet', {}), 'remat': remat}
    result['model'] = {**config['model'], 'unet': unet}
  return result


def check_output(path: str) -> None:
  """UserError if the report cannot be written, before minutes of compiling."""
  folder = os.path.dirname(path) or '.'
  if os.path.isdir(path) or not os.access(folder, os.W_OK):
    raise UserError(f'cannot write {path}: name another file, in a folder that exists, as --output')


def define_flags() -> None:
  """Define the flags of this door."""
  values = flags.FLAGS
  about = 'a training run, such as configs/pbe.py'
  doors.define_config(about)
  flags.DEFINE_string('topology', None, f'the slice: {topology.EXAMPLES}, ...', values)
  flags.DEFINE_integer(
    'batch', None, "images of all chips (default: the config's)", 1, flag_values=values
  )
  flags.DEFINE_string('sharding', None, f"{', '.join(SHARDINGS)} (default: the config's)", values)
  flags.DEFINE_string('remat', None, "none, block or conv1 (default: the config's)", values)
  flags.DEFINE_bool('search', False, 'find the largest batch that fits', values)
  flags.DEFINE_enum(
    'effort',
    'quick',
    [*compile_step.EFFORTS],
    "the compiler's; 'full' takes ten times as long",
    flag_values=values,
  )
  flags.DEFINE_bool('refresh', False, 'compile again instead of using cached results', values)
  flags.DEFINE_string('output', 'plan.json', 'the file for the whole report as JSON', values)


def main(_: list[str]) -> None:
  """Plan the run that the flags describe; print the table and write the JSON file."""
  values = flags.FLAGS
  if not values.config or not values.topology:
    raise UserError(
      f'plan needs --config=configs/pbe.py and --topology, such as {topology.EXAMPLES}'
    )
  try:
    where = topology.parse(values.topology)
  except ValueError as error:
    raise UserError(str(error)) from error
  given = compile_step.with_defaults(values.config.to_dict())
  config = overridden(given, batch=values.batch, sharding=values.sharding, remat=values.remat)
  compile_step.check(config)
  check_output(values.output)
  if topology.compiler() is None:
    raise UserError("the TPU's compiler is not installed: pip install -r requirements-plan.txt")
  result = search.plan(
    config,
    where,
    images=given['steps'] * given['batch_size'],
    search=values.search,
    compiled=functools.partial(
      compile_step.cached_compile, refresh=values.refresh, effort=values.effort
    ),
  )
  files.write_json(values.output, json.loads(json.dumps(result)))
  print(f'{report.table(result)}; all of it as JSON: {values.output}')
  if not result['fits']:
    sys.exit(1)


if __name__ == '__main__':
  define_flags()
  doors.run(main)
