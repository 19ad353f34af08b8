"""A plot of curves as SVG: points with intervals in both directions, joined by lines."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, BOTTOM, KEY = 900, 520, 60, 50, 250  # pixels; KEY: the legend's
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#222222')


class Point(NamedTuple):
  """A point of a curve; `across` and `up` are the ends of its intervals, or ()."""

  x: float
  y: float
  across: tuple[float, ...] = ()
  up: tuple[float, ...] = ()


def svg(
  curves: Mapping[str, Sequence[Point]],
  others: Mapping[str, Sequence[Point]],
  across: str,
  up: str,
) -> str:
  """Returns the plot. Curves are solid, `others` dashed; `across` and `up` name the axes."""
  points = [p for group in (curves, others) for curve in group.values() for p in curve]
  x_ticks = _ticks([v for p in points for v in (p.x, *p.across)])
  y_ticks = _ticks([v for p in points for v in (p.y, *p.up)])
  right = WIDTH - KEY
  place_x = lambda v: _between(v, x_ticks, LEFT, right)
  place_y = lambda v: _between(v, y_ticks, HEIGHT - BOTTOM, 10)
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="13"'
    ' font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>'
  ]
  for v in x_ticks:
    parts += [_line(place_x(v), 10, place_x(v), HEIGHT - BOTTOM, '#ddd')]
    parts += [_text(place_x(v), HEIGHT - BOTTOM + 18, f'{v:g}', 'middle')]
  for v in y_ticks:
    parts += [_line(LEFT, place_y(v), right, place_y(v), '#ddd')]
    parts += [_text(LEFT - 6, place_y(v) + 4, f'{v:g}', 'end')]
  parts += [_text((LEFT + right) / 2, HEIGHT - 10, across, 'middle')]
  parts += [f'<g transform="rotate(-90 16 {HEIGHT / 2})">{_text(16, HEIGHT / 2, up, "middle")}</g>']
  drawn = [(*pair, '') for pair in curves.items()]
  drawn += [(*pair, ' stroke-dasharray="5 4"') for pair in others.items()]
  for i, (name, curve, dashes) in enumerate(drawn):
    colour, level = COLOURS[i % len(COLOURS)], 20 + 20 * i
    for p in curve:
      if p.across and p.up:
        parts += [
          _line(place_x(p.across[0]), place_y(p.y), place_x(p.across[1]), place_y(p.y), colour)
        ]
        parts += [_line(place_x(p.x), place_y(p.up[0]), place_x(p.x), place_y(p.up[1]), colour)]
      parts += [f'<circle cx="{place_x(p.x):.1f}" cy="{place_y(p.y):.1f}" r="4" fill="{colour}"/>']
    path = ' '.join(f'{place_x(p.x):.1f},{place_y(p.y):.1f}' for p in curve)
    parts += [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>']
    parts += [_line(right + 15, level, right + 45, level, colour, dashes)]
    parts += [_text(right + 52, level + 4, name, 'start')]
  return '\n'.join([*parts, '</svg>']) + '\n'


def _ticks(values: Sequence[float]) -> list[float]:
  """Round values whose first and last enclose all of these."""
  low, high = min(values), max(values)
  span = max(high - low, 1e-6)
  step = 10.0 ** math.floor(math.log10(span))
  step = next(step * k for k in (0.2, 0.5, 1, 2) if span / (step * k) <= 8)
  first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
  return [float(round(step * k, 9)) for k in range(first, last + 1)]


def _between(value, ticks, start, end):
  return start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start)


def _line(x0, y0, x1, y1, colour, more=''):
  ends = f'x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"'
  return f'<line {ends} stroke="{colour}"{more}/>'


def _text(x, y, words, anchor):
  return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
