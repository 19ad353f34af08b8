"""DOOR: does this config fit that slice of TPUs, and what would training there take?

  python -m exedit.plan --config=configs/pbe.py --topology=v5e:4x4 --batch=64 --sharding=fsdp
  python -m exedit.plan --config=configs/pbe.py --topology=v5e:4x4 --sharding=fsdp --search

Compiles the real training step with the TPU's own compiler, on a machine that has none (needs
`pip install libtpu`; full size takes minutes, and is remembered): memory of each chip, collectives,
floating-point work, and the least time by a roofline. Exit status 1 where it does not fit.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from exedit.planning import ahead, roofline, topology
from exedit.planning.topology import GIB, Topology
from exedit.runtime import doors, files
from exedit.runtime.errors import UserError
from exedit.training import log
from exedit.training.sharding import DEFAULT, SHARDINGS

MOST = 4096  # images per chip at which a search gives up
NOTES = dict(
  argument='arguments: state, frozen networks, batch',
  temp='temporaries',
  output='outputs',
  alias='  of these in the place of arguments',
  generated_code='program',
)

Report = dict[str, Any]


def plan(
  config: Mapping[str, Any],
  where: Topology,
  *,
  search: bool = False,
  refresh: bool = False,
  effort: str = 'quick',
  compiled: Callable[..., ahead.Findings] = ahead.compiled,
  status: Callable[[str], Callable[[str, float], None]] | None = None,
) -> Report:
  """The report for one batch size or, searching, for the largest that fits.

  Args:
    config: settings of a training run, the overrides applied.
    search: `config.batch_size` is only where to begin.
    refresh: compile although the result is known.
    effort: the compiler's, see `ahead.compiled`.
    compiled: (config, topology, refresh, tick, effort) -> findings.
    status: (what is tried) -> tick.
  """
  tell = status or Status()
  tried: list[dict[str, Any]] = []
  rows = rows_of(config, where)

  def attempt(batch_size: int) -> ahead.Findings:
    tick = tell(f'batch {batch_size} on {where}{_outlook(tried, rows)}')
    found = compiled({**config, 'batch_size': batch_size}, str(where), refresh, tick, effort)
    spent = 0.0 if found['cached'] else sum(found['seconds'].values())
    tried.append(dict(batch_size=batch_size, fits=found['fits'], seconds=spent, **_peak(found)))
    return found

  batch_size = config['batch_size']
  if not search:
    return report(config, where, attempt(batch_size))
  results: dict[int, ahead.Findings] = {}

  def fits(per_row: int) -> bool:
    results[per_row] = attempt(per_row * rows)
    return results[per_row]['fits']

  best = largest(fits, max(1, batch_size // rows))
  chosen = best or 1  # nothing fits: the smallest, and why not
  return {
    **report({**config, 'batch_size': chosen * rows}, where, results[chosen]),
    'search': tried,
  }


def largest(fits: Callable[[int], bool], start: int, most: int = MOST) -> int:
  """The largest n up to `most` that fits, 0 if not even 1 does: doubled, then the gap halved."""
  low, high, n = 0, most + 1, min(start, most)
  while high - low > 1:
    if fits(n):
      low = n
    else:
      high = n
    n = min(2 * low, most) if high > most else (low + high) // 2
  return low


def rows_of(config: Mapping[str, Any], where: Topology) -> int:
  """The number that the batch size must be a multiple of: devices times accumulated parts."""
  return where.size * config['accumulate']


def report(config: Mapping[str, Any], where: Topology, found: ahead.Findings) -> Report:
  """Findings, and what follows from them for this slice and this config's own recipe."""
  chip, batch_size = where.chip, config['batch_size']
  result: Report = dict(
    topology=str(where),
    chips=where.size,
    chip=dict(
      kind=chip.kind,
      peak_flops=chip.peak,
      hbm_bytes=chip.hbm * GIB,
      usable_bytes=found.get('available') or chip.usable * GIB,
      hbm_bandwidth=chip.bandwidth,
      link_bandwidth=chip.link,
      links=where.links,
    ),
    batch_size=batch_size,
    per_chip=batch_size / where.size,
    accumulate=config['accumulate'],
    sharding=config['mesh'].get('sharding', DEFAULT),
    remat=config['model'].get('unet', {}).get('remat', 'none'),
    **found,
  )
  if found['fits']:
    result['roofline'] = timed(where, found, batch_size)
    result['recipe'] = recipe(config, where, result['roofline'])
    result['assumptions'] = list(roofline.ASSUMPTIONS)
  return result | dict(versions=topology.versions())


def timed(where: Topology, found: ahead.Findings, batch_size: int) -> dict[str, Any]:
  """Seconds of a step and images per second, at best and without any overlap."""
  work, spent = found['flops'], found['collectives']
  least = roofline.estimate(where, work['executed'], float(found['traffic']), spent)
  peak = where.chip.peak * where.size
  return dict(
    compute=least.compute,
    memory=least.memory,
    interconnect=least.interconnect,
    bound=least.bound,
    seconds=dict(best=least.best, serial=least.serial),
    images_per_second=dict(best=batch_size / least.best, serial=batch_size / least.serial),
    mfu={name: work['model'] / peak / getattr(least, name) for name in ('best', 'serial')},
  )


def recipe(config: Mapping[str, Any], where: Topology, times: Mapping[str, Any]) -> dict[str, Any]:
  """Hours and chip-hours for as many images as the config's own steps and batch have."""
  images = config['recipe_images']
  hours = {name: images / rate / 3600 for name, rate in times['images_per_second'].items()}
  return dict(
    images=images, hours=hours, chip_hours={name: h * where.size for name, h in hours.items()}
  )


# What a person sees.


class Status:
  """A line on stderr while a compiler works: in place on a terminal, else a new one each minute."""

  def __init__(self, out=None):
    self.out = out or sys.stderr
    self.terminal, self._open = self.out.isatty(), False

  def __call__(self, what: str) -> Callable[[str, float], None]:
    shown, said, width = -math.inf, '', 0
    self.end()

    def tick(doing: str, seconds: float) -> None:
      nonlocal shown, said, width
      text = f'{what}: {doing}, {log.duration(seconds)}'
      if self.terminal:
        self.out.write(f'\r{text:<{width}}')
        width, self._open = len(text), True
      elif doing != said or seconds - shown >= 60:
        self.out.write(text + '\n')
        shown, said = seconds, doing
      self.out.flush()

    return tick

  def end(self) -> None:
    """Leave the line as it stands."""
    if self._open:
      self.out.write('\n')
      self._open = False


def table(result: Report) -> str:
  """The report for a shell."""
  per = result['per_chip'] if result['per_chip'] % 1 else int(result['per_chip'])
  axes = ', '.join(f'{name} {size}' for name, size in result['mesh'].items())
  lines = [
    f'{result["topology"]}: {result["chips"]} x {result["chip"]["kind"]}; sharding '
    f'{result["sharding"]} ({axes}); batch {result["batch_size"]}, {per} per chip, accumulate '
    f'{result["accumulate"]}; remat {result["remat"]}',
    '',
    *(_memory(result) if result['fits'] else [_too_large(result)]),
    '',
    'work of one step',
    _row('the model', f'{result["flops"]["model"] / 1e12:,.3g} TFLOP'),
    _row(
      'computed by each chip',
      f'{result["flops"]["executed"] / 1e12:,.3g} TFLOP, with what is computed again',
    ),
  ]
  if result['fits']:
    lines += ['', *_collectives(result), '', *_times(result)]
  if 'search' in result:
    tries = (f'{t["batch_size"]} {"fits" if t["fits"] else "does not"}' for t in result['search'])
    lines += ['', f'search: {", ".join(tries)}']
  spent = result['seconds']
  ago = 'compiled before: ' if result['cached'] else ''
  made = f'jax {result["versions"]["jax"]}, libtpu {result["versions"]["libtpu"]}'
  times = f'traced in {log.duration(spent["trace"])}, compiled in {log.duration(spent["compile"])}'
  return '\n'.join([*lines, '', f'{ago}{times} with {result["effort"]} effort; {made}'])


def _row(name, value):
  return f'  {name:<42} {value}'


def _memory(result):
  memory, room = result['memory'], result['chip']['usable_bytes']
  rows = [_row(text, f'{memory[name] / GIB:8.3f} GiB') for name, text in NOTES.items()]
  left = (room - memory['peak']) / GIB
  peak = f'{memory["peak"] / GIB:8.3f} GiB of {room / GIB:.2f}: fits, {left:.2f} left'
  return ['memory of one chip', *rows, _row('together', peak)]


def _too_large(result):
  needs, room = result['needs'], result['chip']['usable_bytes']
  much = f'{needs / GIB:.2f} GiB' if needs else 'more'
  quick = '; --effort=full may find room' if result['effort'] == 'quick' else ''
  return f'does not fit: one chip would need {much}, and has {room / GIB:.2f} GiB{quick}'


def _collectives(result):
  rows = [
    _row(kind, f'{number:5} {size / 1e6:12,.1f} MB')
    for kind, (number, size) in sorted(result['collectives'].items())
  ]
  return ['collectives of one step, and bytes of each chip', *(rows or ['  none'])]


def _times(result):
  chip, times = result['chip'], result['roofline']
  best, serial = times['seconds']['best'], times['seconds']['serial']
  rate, mfu, run = times['images_per_second'], times['mfu'], result['recipe']
  hours, chips = run['hours'], run['chip_hours']
  speeds = (
    ('compute', f'{chip["peak_flops"] / 1e12:.0f} TFLOP/s'),
    ('memory', f'{chip["hbm_bandwidth"] / 1e9:.0f} GB/s'),
    ('interconnect', f'{chip["links"]} links of {chip["link_bandwidth"] / 1e9:.0f} GB/s'),
  )
  return [
    'a step takes at least',
    *(_row(f'{name}, {speed}', f'{times[name] * 1e3:8.1f} ms') for name, speed in speeds),
    _row('all overlapped, or one after the other', f'{best * 1e3:.1f} to {serial * 1e3:.1f} ms'),
    _row('images per second', f'{rate["best"]:,.0f} to {rate["serial"]:,.0f}'),
    _row('model FLOPs utilisation', f'{mfu["best"]:.0%} to {mfu["serial"]:.0%}'),
    _row(
      f'the {run["images"] / 1e6:,.4g} M images of the recipe',
      f'{hours["best"]:,.1f} to {hours["serial"]:,.1f} hours, {chips["best"]:,.0f} to '
      f'{chips["serial"]:,.0f} chip-hours',
    ),
    'which assumes',
    *(f'  {line}' for line in result['assumptions']),
  ]


def _peak(found):
  return dict(bytes=found['memory']['peak'] if found['fits'] else found['needs'])


def _outlook(tried, rows):
  """What a search has still before it, as far as that can be said."""
  if not tried:
    return ''
  spent = [one['seconds'] for one in tried if one['seconds']]
  each = f' of about {log.duration(sum(spent) / len(spent))}' if spent else ''
  fit = max((one['batch_size'] // rows for one in tried if one['fits']), default=0)
  not_fit = min((one['batch_size'] // rows for one in tried if not one['fits']), default=None)
  left = f'at most {(not_fit - fit - 1).bit_length()} more' if not_fit else 'more to come'
  return f' (try {len(tried) + 1}, {left}{each})'


# The door.


def settled(
  config: Mapping[str, Any],
  *,
  batch: int | None = None,
  sharding: str | None = None,
  remat: str | None = None,
) -> dict[str, Any]:
  """The config with the flags' overrides; `recipe_images` are those of its own steps and batch."""
  result = {**config, 'recipe_images': config['steps'] * config['batch_size']}
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


def writable(path: str) -> None:
  """UserError now, not after minutes, where the report could not be written."""
  folder = os.path.dirname(path) or '.'
  if os.path.isdir(path) or not os.access(folder, os.W_OK):
    raise UserError(f'cannot write {path}: name another file, in a folder that exists, as --output')


def define_flags() -> None:
  """`--config` is a training run's, the others say where it would go and what to change."""
  values = flags.FLAGS
  how = 'a training run, configs/pbe.py'
  doors.define_config(how)
  flags.DEFINE_string('topology', None, f'the slice: {topology.EXAMPLES}, ...', values)
  flags.DEFINE_integer('batch', None, "of all chips (default: the config's)", 1, flag_values=values)
  flags.DEFINE_string('sharding', None, f'{", ".join(SHARDINGS)} (default: as above)', values)
  flags.DEFINE_string('remat', None, 'none, block, conv1 (default: as above)', values)
  flags.DEFINE_bool('search', False, 'find the largest batch that fits', values)
  flags.DEFINE_enum(
    'effort',
    'quick',
    list(ahead.EFFORTS),
    "the compiler's: 'full' takes ten times as long",
    flag_values=values,
  )
  flags.DEFINE_bool('refresh', False, 'compile again what is remembered', values)
  flags.DEFINE_string('output', 'plan.json', 'where all of it goes as JSON', values)


def main(_: list[str]) -> None:
  """Open the door: a config and a slice in, a table and a JSON file out."""
  values = flags.FLAGS
  if not values.config or not values.topology:
    raise UserError(
      f'plan needs --config=configs/pbe.py and --topology, such as {topology.EXAMPLES}'
    )
  try:
    where = topology.parse(values.topology)
  except ValueError as error:
    raise UserError(str(error)) from error
  config = settled(
    values.config.to_dict(), batch=values.batch, sharding=values.sharding, remat=values.remat
  )
  ahead.check(config)
  writable(values.output)
  if topology.compiler() is None:
    raise UserError("the TPU's compiler is not installed: pip install -r requirements-plan.txt")
  status = Status()
  result = plan(
    config,
    where,
    search=values.search,
    refresh=values.refresh,
    effort=values.effort,
    status=status,
  )
  status.end()
  files.write_json(values.output, json.loads(json.dumps(result)))
  print(f'{table(result)}; all of it as JSON: {values.output}')
  if not result['fits']:
    sys.exit(1)


if __name__ == '__main__':
  define_flags()
  doors.run(main)
