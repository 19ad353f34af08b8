"""The report of a plan: what follows from a compiled step, as numbers and as text."""

import datetime
from collections.abc import Mapping
from typing import Any

from exedit.planning import roofline, topology
from exedit.planning.topology import GIB, Topology
from exedit.training import sharding

Report = dict[str, Any]
MEMORY = dict(
  argument='arguments: state, frozen networks, batch',
  temp='temporaries',
  output='outputs',
  alias='  of these in the place of arguments',
  generated_code='program',
)


def make(
  config: Mapping[str, Any], where: Topology, found: Mapping[str, Any], images: int
) -> Report:
  """The numbers of a plan.

  Args:
    config: the settings of a training run. images: the number of images of the whole run.
    found: the findings of `compile_step`.
  """
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
    sharding=config['mesh'].get('sharding', sharding.DEFAULT),
    remat=config['model'].get('unet', {}).get('remat', 'none'),
    **found,
  )
  if found['fits']:
    result['roofline'] = _roofline(where, found, batch_size)
    rates = result['roofline']['images_per_second']
    hours = {name: images / rate / 3600 for name, rate in rates.items()}
    chip_hours = {name: h * where.size for name, h in hours.items()}
    result['recipe'] = dict(images=images, hours=hours, chip_hours=chip_hours)
    result['assumptions'] = list(roofline.ASSUMPTIONS)
  return result | dict(versions=topology.versions())


def _roofline(where: Topology, found: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
  """Seconds of a step and images per second, with perfect overlap and with none."""
  work, collectives = found['flops'], found['collectives']
  bound = roofline.estimate(where, work['executed'], float(found['traffic']), collectives)
  peak = where.chip.peak * where.size
  return dict(
    compute=bound.compute,
    memory=bound.memory,
    interconnect=bound.interconnect,
    bound=bound.bound,
    seconds=dict(best=bound.best, serial=bound.serial),
    images_per_second=dict(best=batch_size / bound.best, serial=batch_size / bound.serial),
    mfu={name: work['model'] / peak / getattr(bound, name) for name in ('best', 'serial')},
  )


# The text for a terminal.


def table(result: Report) -> str:
  """The report as text."""
  per_chip = f'{result["per_chip"]:g}'
  axes = ', '.join(f'{name} {size}' for name, size in result['mesh'].items())
  lines = [
    f'{result["topology"]}: {result["chips"]} x {result["chip"]["kind"]}; sharding '
    f'{result["sharding"]} ({axes}); batch {result["batch_size"]}, {per_chip} per chip, accumulate '
    f'{result["accumulate"]}; remat {result["remat"]}',
    '',
    *(_memory(result) if result['fits'] else [_too_large(result)]),
    '',
    'work of one step',
    _row('the model', f'{result["flops"]["model"] / 1e12:,.3g} TFLOP'),
    _row(
      'computed by each chip',
      f'{result["flops"]["executed"] / 1e12:,.3g} TFLOP, including recomputation',
    ),
  ]
  if result['fits']:
    lines += ['', *_collectives(result), '', *_times(result)]
  if 'search' in result:
    tries = (f'{t["batch_size"]} {"fits" if t["fits"] else "does not"}' for t in result['search'])
    lines += ['', f'search: {", ".join(tries)}']
  return '\n'.join([*lines, '', _compiler(result)])


def _row(name: str, value: str) -> str:
  return f'  {name:<42} {value}'


def _memory(result: Report) -> list[str]:
  memory, usable = result['memory'], result['chip']['usable_bytes']
  rows = [_row(text, f'{memory[name] / GIB:8.3f} GiB') for name, text in MEMORY.items()]
  left = (usable - memory['peak']) / GIB
  peak = f'{memory["peak"] / GIB:8.3f} GiB of {usable / GIB:.2f}: fits, {left:.2f} left'
  return ['memory of one chip', *rows, _row('together', peak)]


def _too_large(result: Report) -> str:
  needs, usable = result['needs'], result['chip']['usable_bytes']
  needed = f'{needs / GIB:.2f} GiB' if needs else 'more'
  quick = '; --effort=full may need less' if result['effort'] == 'quick' else ''
  return f'does not fit: one chip would need {needed}, and has {usable / GIB:.2f} GiB{quick}'


def _collectives(result: Report) -> list[str]:
  rows = [
    _row(kind, f'{number:5} {size / 1e6:12,.1f} MB')
    for kind, (number, size) in sorted(result['collectives'].items())
  ]
  return ['collectives of one step, and bytes of each chip', *(rows or ['  none'])]


def _times(result: Report) -> list[str]:
  chip, times, recipe = result['chip'], result['roofline'], result['recipe']
  both = lambda values, form: f'{values["best"]:{form}} to {values["serial"]:{form}}'
  milliseconds = {name: seconds * 1e3 for name, seconds in times['seconds'].items()}
  roofs = (
    ('compute', f'{chip["peak_flops"] / 1e12:.0f} TFLOP/s'),
    ('memory', f'{chip["hbm_bandwidth"] / 1e9:.0f} GB/s'),
    ('interconnect', f'{chip["links"]} links of {chip["link_bandwidth"] / 1e9:.0f} GB/s'),
  )
  return [
    'a step takes at least',
    *(_row(f'{name}, {speed}', f'{times[name] * 1e3:8.1f} ms') for name, speed in roofs),
    _row('all overlapped, or one after the other', f'{both(milliseconds, ".1f")} ms'),
    _row('images per second', both(times['images_per_second'], ',.0f')),
    _row('model FLOPs utilisation', both(times['mfu'], '.0%')),
    _row(
      f'the {recipe["images"] / 1e6:,.4g} M images of the recipe',
      f'{both(recipe["hours"], ",.1f")} hours, {both(recipe["chip_hours"], ",.0f")} chip-hours',
    ),
    'which assumes',
    *(f'  {line}' for line in result['assumptions']),
  ]


def _compiler(result: Report) -> str:
  spent = {k: datetime.timedelta(seconds=round(s)) for k, s in result['seconds'].items()}
  cached = 'compiled before: ' if result['cached'] else ''
  return (
    f'{cached}traced in {spent["trace"]}, compiled in {spent["compile"]} with {result["effort"]} '
    f'effort; jax {result["versions"]["jax"]}, libtpu {result["versions"]["libtpu"]}'
  )
