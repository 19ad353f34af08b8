"""The outlines of the drawn world's subjects: each is a list of parts, painted in their order.

Coordinates are about -1..1, x to the right and y down; a scene stretches a subject to its box. A
part is filled or, with a width, drawn as a thick line. Its paint is the look's colours and pattern
(MAIN), the look's first colour in a darker tone (DARK), or a colour of its own, such as a wheel's.
"""

import dataclasses

import numpy as np

MAIN, DARK = 'main', 'dark'
BLACK, WHITE, GLASS, CREAM = (40, 38, 45), (250, 250, 246), (196, 228, 244), (244, 228, 196)
WOOD, GREEN, GOLD = (134, 88, 52), (74, 148, 66), (250, 206, 70)
ORANGE, STEEL = (244, 146, 50), (150, 156, 166)
CLAY, INK = (190, 104, 70), (62, 48, 52)


@dataclasses.dataclass(frozen=True)
class Part:
  """A polygon, or a line if it has a width; `edge`: it gets a thin dark contour."""

  paint: str | tuple[int, int, int]
  points: np.ndarray
  width: float = 0.0
  edge: bool = True


def _part(paint, points, width=0.0, edge=True) -> Part:
  return Part(paint, np.asarray(points, np.float64), width, edge)


def _detail(paint, points, width=0.0) -> Part:
  return _part(paint, points, width, edge=False)


def _oval(x, y, rx, ry=None, start=0.0, end=360.0, turn=0.0) -> np.ndarray:
  """Returns an ellipse, or its arc between two angles; degrees, clockwise from the right."""
  whole = end - start >= 360
  a = np.radians(np.linspace(start, end, 33)[: 32 if whole else 33])
  dx, dy, t = rx * np.cos(a), (ry or rx) * np.sin(a), np.radians(turn)
  return np.stack([x + dx * np.cos(t) - dy * np.sin(t), y + dx * np.sin(t) + dy * np.cos(t)], 1)


def _box(x0, y0, x1, y1) -> np.ndarray:
  return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def _smooth(*points, closed=True) -> np.ndarray:
  """Returns the Catmull-Rom curve through the points."""
  p = np.asarray(points, np.float64)
  p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
  t = np.linspace(0, 1, 7)[:-1, None]
  a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
  curve = b + t * (
    (c - a) / 2 + t * (a - 2.5 * b + 2 * c - d / 2 + t * (1.5 * (b - c) + (d - a) / 2))
  )
  curve = curve.reshape(-1, 2)
  return curve if closed else np.concatenate([curve, p[-2:-1]])


def _mirrored(points) -> np.ndarray:
  """Returns the right half of an outline, from top to bottom, with its mirror image."""
  p = np.asarray(points, np.float64)
  return np.concatenate([p, p[::-1] * (-1, 1)])


def _turned(parts: list[Part], degrees) -> list[Part]:
  """Returns the parts turned clockwise."""
  a = np.radians(degrees)
  turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
  return [dataclasses.replace(part, points=part.points @ turn) for part in parts]


def _eye(x, y, r=0.1) -> list[Part]:
  return [_detail(WHITE, _oval(x, y, r)), _detail(BLACK, _oval(x, y + r * 0.1, r * 0.55))]


def _star() -> np.ndarray:
  a = np.radians(-90 + 36 * np.arange(10))
  r = np.where(np.arange(10) % 2, 0.48, 1.0)
  return np.stack([r * np.cos(a), r * np.sin(a)], 1)


def _heart() -> np.ndarray:
  a = 2 * np.pi * np.arange(64) / 64
  y = 13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a)
  return np.stack([np.sin(a) ** 3, -y / 15], 1)


def _moon() -> np.ndarray:
  return np.concatenate([_oval(0, 0, 1, 1, 50, 310), _oval(0.42, 0, 0.8, 0.78, 285, 75)])


def _cloud(x, y, r, n=7, bump=0.3) -> np.ndarray:
  a = np.linspace(0, 2 * np.pi, 72, endpoint=False)
  radius = r * (1 + bump * np.abs(np.sin(a * n / 2)))
  return np.stack([x + radius * np.cos(a), y + radius * np.sin(a)], 1)


def _scalloped() -> np.ndarray:
  dome = _oval(0, 0.22, 1, 1.12, 180, 360)
  return np.concatenate(
    [dome, *(_oval(x, 0.22, 0.25, 0.2, 0, -180) for x in (0.75, 0.25, -0.25, -0.75))]
  )


def _wing(side) -> list[Part]:
  upper = _smooth((0.05, -0.1), (0.3, -0.75), (0.8, -0.95), (1, -0.6), (0.75, -0.05), (0.3, 0.05))
  lower = _smooth((0.05, 0.05), (0.5, 0.05), (0.85, 0.3), (0.7, 0.8), (0.35, 0.85), (0.12, 0.4))
  return [_part(MAIN, points * (side, 1)) for points in (lower, upper)]


_SUBJECTS = {
  'ball': [
    _part(MAIN, _oval(0, 0, 1)),
    _detail(WHITE, _oval(-0.42, -0.5, 0.17, 0.1, turn=-40)),
  ],
  'star': [_part(MAIN, _star())],
  'heart': [_part(MAIN, _heart())],
  'moon': [_part(MAIN, _moon())],
  'house': [
    _part(CLAY, _box(0.4, -0.85, 0.62, -0.2)),
    _part(MAIN, _box(-0.75, -0.2, 0.75, 1)),
    _part(DARK, [(0, -1), (1, -0.15), (-1, -0.15)]),
    _part(WOOD, _box(-0.2, 0.35, 0.2, 1)),
    _part(GLASS, _box(-0.6, 0.1, -0.32, 0.42)),
    _part(GLASS, _box(0.32, 0.1, 0.6, 0.42)),
  ],
  'tree': [
    _part(WOOD, [(-0.14, 0.1), (0.14, 0.1), (0.24, 1), (-0.24, 1)]),
    _part(MAIN, _cloud(0, -0.3, 0.6)),
  ],
  'fish': [
    _part(DARK, _smooth((-0.2, -0.45), (0.1, -0.85), (0.45, -0.6), (0.3, -0.3))),
    _part(MAIN, [(0.5, 0), (1, -0.55), (0.88, 0), (1, 0.55)]),
    _part(MAIN, _smooth((-1, 0), (-0.6, -0.5), (0, -0.62), (0.6, -0.12), (0.6, 0.12), (0, 0.62),
      (-0.6, 0.5))),
    _part(DARK, _smooth((-0.1, 0.1), (0.3, 0.2), (0.15, 0.42), (-0.08, 0.3))),
    *_eye(-0.6, -0.12, 0.14),
  ],
  'cup': [
    _part(DARK, _oval(0.6, 0.05, 0.36, 0.42), 0.17),
    _part(MAIN, [(-0.9, -0.7), (0.6, -0.7), (0.5, 0.75), (0.35, 0.9), (-0.65, 0.9), (-0.8, 0.75)]),
    _part(CREAM, _oval(-0.15, -0.7, 0.75, 0.2)),
    _detail(WOOD, _oval(-0.15, -0.67, 0.6, 0.13)),
  ],
  'teapot': [
    _part(DARK, _smooth((0.5, -0.3), (0.9, -0.4), (0.95, 0.05), (0.5, 0.4), closed=False), 0.15),
    _part(MAIN, [(-0.45, 0.4), (-0.78, 0.2), (-0.86, -0.3), (-1.05, -0.42), (-0.75, -0.5),
      (-0.62, -0.1), (-0.35, -0.05)]),
    _part(MAIN, _oval(0, 0.2, 0.66, 0.62)),
    _part(DARK, _oval(0, -0.36, 0.42, 0.16)),
    _part(DARK, _oval(0, -0.58, 0.13, 0.13)),
  ],
  'car': [
    _part(MAIN, _smooth((-0.68, 0.0), (-0.52, -0.5), (-0.2, -0.68), (0.3, -0.68), (0.58, -0.4),
      (0.7, 0.0))),
    _part(GLASS, [(-0.5, -0.08), (-0.38, -0.46), (-0.06, -0.52), (-0.06, -0.08)]),
    _part(GLASS, [(0.08, -0.08), (0.08, -0.52), (0.32, -0.5), (0.52, -0.08)]),
    _part(MAIN, _smooth((-0.98, 0.3), (-0.9, -0.02), (-0.5, -0.12), (0.5, -0.12), (0.92, 0.02),
      (1, 0.3), (0.9, 0.5), (-0.9, 0.5))),
    _detail(GOLD, _oval(-0.88, 0.14, 0.09)),
    *(part for x in (-0.52, 0.52) for part in (_part(BLACK, _oval(x, 0.46, 0.26)),
      _detail(STEEL, _oval(x, 0.46, 0.12)))),
  ],
  'boat': [
    _part(WOOD, [(0, -1), (0, 0.5)], 0.09),
    _part(MAIN, [(0.1, -0.92), (0.85, 0.32), (0.1, 0.32)]),
    _part(MAIN, [(-0.1, -0.65), (-0.1, 0.32), (-0.7, 0.32)]),
    _part(DARK, [(-1, 0.45), (1, 0.45), (0.65, 0.95), (-0.6, 0.95)]),
  ],
  'mushroom': [
    _part(CREAM, _smooth((-0.24, 0.05), (-0.26, 0.6), (-0.36, 0.95), (0.36, 0.95), (0.26, 0.6),
      (0.24, 0.05))),
    _part(MAIN, np.concatenate([_oval(0, 0.12, 1, 1.1, 180, 360),
      _oval(0, 0.12, 1, 0.16, 0, 180)])),
  ],
  'cat': [
    _part(MAIN, _smooth((0.4, 0.8), (0.85, 0.75), (0.9, 0.3), (0.75, 0.0), closed=False), 0.17),
    _part(MAIN, _smooth((0, -0.1), (0.42, 0.2), (0.52, 0.85), (0.3, 1), (-0.3, 1),
      (-0.52, 0.85), (-0.42, 0.2))),
    _part(MAIN, [(-0.56, -0.45), (-0.52, -1.05), (-0.08, -0.75)]),
    _part(MAIN, [(0.56, -0.45), (0.52, -1.05), (0.08, -0.75)]),
    _part(MAIN, _oval(0, -0.38, 0.58, 0.46)),
    *_eye(-0.24, -0.45, 0.13), *_eye(0.24, -0.45, 0.13),
    _detail((236, 130, 140), [(-0.09, -0.26), (0.09, -0.26), (0, -0.15)]),
    *(_detail(INK, [(s * 0.25, -0.2), (s * 0.72, y)], 0.035) for s in (-1, 1) for y in (-0.26,
      -0.1)),
  ],
  'bird': [
    _detail(ORANGE, [(-0.1, 0.6), (-0.14, 0.98), (-0.32, 0.98)], 0.07),
    _detail(ORANGE, [(0.14, 0.6), (0.12, 0.98), (-0.06, 0.98)], 0.07),
    _part(ORANGE, [(-0.7, -0.55), (-1.05, -0.38), (-0.7, -0.28)]),
    _part(MAIN, [(0.4, 0.1), (1.05, -0.3), (1.1, 0.05), (0.6, 0.45)]),
    _part(MAIN, _smooth((-0.8, -0.5), (-0.5, -0.86), (-0.12, -0.62), (0.2, -0.2), (0.68, 0.15),
      (0.4, 0.62), (-0.2, 0.74), (-0.62, 0.35))),
    _part(DARK, _smooth((-0.2, -0.05), (0.25, 0.0), (0.62, 0.22), (0.2, 0.42), (-0.15, 0.3))),
    *_eye(-0.48, -0.5, 0.12),
  ],
  'flower': [
    _part(GREEN, [(0, -0.2), (0.02, 1)], 0.12),
    _part(GREEN, _smooth((0.02, 0.85), (0.3, 0.45), (0.75, 0.4), (0.5, 0.78))),
    _part(GREEN, _smooth((0.02, 0.95), (-0.3, 0.55), (-0.75, 0.5), (-0.5, 0.88))),
    *(_part(MAIN, _oval(0.46 * np.cos(a),
      -0.35 + 0.46 * np.sin(a), 0.34, 0.25, turn=np.degrees(a))) for a
      in np.radians(60 * np.arange(6) + 30)),
    _part(GOLD, _oval(0, -0.35, 0.24)),
  ],
  'key': _turned([
    _part(MAIN, [(0, -0.2), (0, 1.25)], 0.24),
    _part(MAIN, [(0, 1.12), (0.46, 1.12)], 0.22),
    _part(MAIN, [(0, 0.7), (0.38, 0.7)], 0.22),
    _part(MAIN, _oval(0, -0.62, 0.46), 0.3),
  ], -45),
  'umbrella': [
    _part(WOOD, _smooth((0, -1), (0, 0.7), (0.08, 0.92), (0.28, 0.92),
      (0.34, 0.7), closed=False), 0.11),
    _part(MAIN, _scalloped()),
  ],
  'hat': [
    _part(MAIN, _smooth((-0.62, 0.45), (-0.6, -0.3), (-0.66, -0.82), (0, -0.95), (0.66, -0.82),
      (0.6, -0.3), (0.62, 0.45))),
    _part(BLACK, [(-0.62, 0.1), (0.62, 0.1), (0.62, 0.42), (-0.62, 0.42)]),
    _part(DARK, _smooth((-1, 0.35), (-0.6, 0.44), (0, 0.5), (0.6, 0.44), (1, 0.35), (0.8, 0.68),
      (0, 0.82), (-0.8, 0.68))),
  ],
  'apple': [
    _part(MAIN, _smooth((0, -0.45), (0.45, -0.6), (0.92, -0.25), (0.85, 0.4), (0.4, 0.98),
      (0, 0.88), (-0.4, 0.98), (-0.85, 0.4), (-0.92, -0.25), (-0.45, -0.6))),
    _part(WOOD, _smooth((0, -0.42), (0.02, -0.7), (0.14, -0.98), closed=False), 0.11),
    _part(GREEN, _smooth((0.08, -0.66), (0.3, -0.95), (0.72, -0.92), (0.45, -0.62))),
  ],
  'butterfly': [
    *_wing(1), *_wing(-1),
    _detail(INK, _smooth((0, -0.5), (0.12, -0.85), (0.32, -1), closed=False), 0.06),
    _detail(INK, _smooth((0, -0.5), (-0.12, -0.85), (-0.32, -1), closed=False), 0.06),
    _part(INK, _oval(0, 0.02, 0.1, 0.6)),
  ],
  'bell': [
    _part(DARK, _oval(0, -0.86, 0.15), 0.1),
    _part(GOLD, _oval(0, 0.82, 0.2)),
    _part(MAIN, _mirrored([(0, -0.78), (0.22, -0.74), (0.46, -0.5), (0.55, -0.1), (0.62, 0.3),
      (0.95, 0.66)])),
    _part(DARK, _smooth((-1, 0.72), (-0.9, 0.58), (0.9, 0.58), (1, 0.72), (0.9, 0.84),
      (-0.9, 0.84))),
  ],
  'guitar': _turned([
    _part(WOOD, _box(-0.1, -1.3, 0.1, 0.1)),
    _part(DARK, [(-0.2, -1.7), (0.2, -1.7), (0.15, -1.25), (-0.15, -1.25)]),
    _part(MAIN, _smooth((0, -0.15), (0.38, -0.08), (0.44, 0.2), (0.36, 0.4), (0.6, 0.75),
      (0.5, 1.1), (0, 1.25), (-0.5, 1.1), (-0.6, 0.75), (-0.36, 0.4), (-0.44, 0.2), (-0.38,
      -0.08))),
    _detail(INK, _oval(0, 0.4, 0.2)),
    _detail(WOOD, _box(-0.26, 0.86, 0.26, 0.98)),
    _detail(CREAM, [(0, -1.25), (0, 0.9)], 0.05),
  ], 40),
  'chair': [
    _part(WOOD, [(0.3, 0.3), (0.36, 0.88)], 0.12),
    _part(WOOD, [(-0.3, 0.3), (-0.36, 0.84)], 0.12),
    _part(WOOD, [(-0.58, 0.2), (-0.66, 1)], 0.14),
    _part(WOOD, [(0.68, 0.3), (0.74, 1)], 0.14),
    _part(MAIN, _smooth((-0.72, 0.2), (-0.78, -0.8), (-0.6, -1), (0.1, -1), (0.28, -0.8),
      (0.25, 0.2))),
    _part(MAIN, [(-0.72, 0.08), (0.3, 0.08), (0.82, 0.26), (0.82, 0.46), (-0.6, 0.46),
      (-0.72, 0.3)]),
  ],
  'lamp': [
    _detail(GOLD, _oval(0, 0.08, 0.24, 0.2)),
    _part(WOOD, [(0, 0.1), (0, 0.85)], 0.16),
    _part(WOOD, np.concatenate([_oval(0, 0.95, 0.55, 0.26, 180, 360)])),
    _part(MAIN, [(-0.42, -1), (0.42, -1), (0.9, 0.12), (-0.9, 0.12)]),
  ],
  'kite': [
    _part(DARK, _smooth((0, 0.2), (-0.2, 0.62), (-0.6, 0.6), (-0.95, 0.95), closed=False), 0.07),
    _part(DARK, [(-0.42, 0.42), (-0.42, 0.86), (-0.02, 0.5), (-0.02, 0.94)]),
    _part(DARK, [(-1.1, 0.7), (-0.7, 1.0), (-0.7, 0.6), (-1.1, 1.1)]),
    _part(MAIN, [(0.95, -1), (0.8, 0.05), (-0.15, 0.4), (-0.5, -0.75)]),
    _detail(INK, [(0.95, -1), (-0.15, 0.4)], 0.045),
    _detail(INK, [(0.8, 0.05), (-0.5, -0.75)], 0.045),
  ],
  'shirt': [
    _part(MAIN, [(-0.32, -0.9), (0.32, -0.9), (0.62, -0.78), (1, -0.2), (0.68, 0.04), (0.54,
      -0.16), (0.54, 0.95), (-0.54, 0.95), (-0.54, -0.16), (-0.68, 0.04), (-1, -0.2), (-0.62,
      -0.78)]),
    _part(DARK, _oval(0, -0.9, 0.3, 0.24, 0, 180)),
  ],
  'boot': [
    _part(MAIN, _smooth((-0.62, -0.85), (0.22, -0.85), (0.2, -0.1), (0.38, 0.2), (0.85, 0.3),
      (0.98, 0.72), (-0.64, 0.72), (-0.6, 0.1))),
    _part(INK, [(-0.74, 0.7), (1, 0.7), (1, 0.92), (-0.1, 0.92), (-0.16, 0.84), (-0.24, 0.98),
      (-0.74, 0.98)]),
    _part(DARK, _box(-0.74, -1, 0.32, -0.7)),
  ],
  'rocket': _turned([
    _part(ORANGE, _smooth((-0.3, 0.75), (-0.24, 1.15), (0, 1.5), (0.24, 1.15), (0.3, 0.75))),
    _detail(GOLD, _smooth((-0.16, 0.8), (0, 1.2), (0.16, 0.8), (0, 0.7))),
    _part(DARK, [(-0.4, 0.1), (-0.85, 0.65), (-0.8, 1.05), (-0.35, 0.75)]),
    _part(DARK, [(0.4, 0.1), (0.85, 0.65), (0.8, 1.05), (0.35, 0.75)]),
    _part(MAIN, _smooth((0, -1.45), (0.36, -0.85), (0.5, -0.1), (0.36, 0.8), (-0.36, 0.8),
      (-0.5, -0.1), (-0.36, -0.85))),
    _part(GLASS, _oval(0, -0.4, 0.22)),
  ], 38),
  'snail': [
    _detail(INK, [(-0.68, 0.2), (-0.86, -0.42)], 0.07),
    _detail(INK, [(-0.62, 0.2), (-0.52, -0.45)], 0.07),
    _part(CREAM, _smooth((-0.9, 0.1), (-0.62, -0.08), (-0.42, 0.2), (-0.3, 0.6), (0.6, 0.64),
      (1.02, 0.92), (-0.6, 0.92), (-0.82, 0.6))),
    _part(MAIN, _oval(0.2, -0.05, 0.72, 0.72)),
    _detail(INK, [(0.2 + 0.055 * a * np.cos(a), -0.05 + 0.055 * a * np.sin(a)) for a
      in np.linspace(1, 11.5, 48)], 0.07),
    *_eye(-0.86, -0.45, 0.11), *_eye(-0.52, -0.48, 0.11),
  ],
  'cactus': [
    _part(MAIN, _smooth((0.1, 0.25), (0.62, 0.25), (0.68, -0.3), closed=False), 0.32),
    _part(MAIN, _smooth((-0.1, 0.05), (-0.6, 0.05), (-0.66, -0.5), closed=False), 0.32),
    _part(MAIN, [(0, -0.72), (0, 0.6)], 0.5),
    _part(CLAY, [(-0.5, 0.5), (0.5, 0.5), (0.38, 1), (-0.38, 1)]),
    _part(CLAY, _box(-0.58, 0.42, 0.58, 0.62)),
  ],
  'crown': [
    _part(MAIN, [(-1, -0.5), (-0.48, 0.05), (0, -0.85), (0.48, 0.05), (1, -0.5), (0.8, 0.6),
      (-0.8, 0.6)]),
    _part(DARK, _box(-0.82, 0.5, 0.82, 0.85)),
    *(_part(GOLD, _oval(x, y, 0.14)) for x, y in ((-0.98, -0.58), (0, -0.92), (0.98, -0.58))),
  ],
  'drum': [
    _part(WOOD, [(-0.2, -0.5), (-0.85, -1)], 0.1), _part(WOOD, [(0.2, -0.5), (0.85, -1)], 0.1),
    _part(MAIN, np.concatenate([_box(-0.85, 0.6, 0.85, -0.3)[[3, 2]],
      _oval(0, 0.66, 0.85, 0.3, 0, 180)])),
    _part(CREAM, _oval(0, -0.3, 0.88, 0.3)),
    _detail(WOOD, [(-0.12, -0.4), (-0.5, -0.72)], 0.1), _detail(WOOD, [(0.12, -0.4), (0.5,
      -0.72)], 0.1),
    _detail(WOOD, _oval(-0.1, -0.37, 0.12, 0.1)), _detail(WOOD, _oval(0.1, -0.37, 0.12, 0.1)),
  ],
}  # fmt: skip
SUBJECTS = tuple(_SUBJECTS)


def parts(name: str) -> list[Part]:
  """Returns the parts of a subject, from the back to the front."""
  return _SUBJECTS[name]
