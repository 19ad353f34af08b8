"""Draws the pictures of the synthetic data, second version: subjects that a person can name.

A scene is a ground, a light and one to three posed objects. A look is an object's subject, pattern
and colours. They are separate so that the same scene can be drawn with another look in the same
box. Every look and ground has a name, so every scene has an exact caption. A hash splits the looks:
one in `scenes.HELD_OUT` never occurs in training.
"""

import colorsys
import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Sequence

import cv2
import numpy as np

from . import subjects
from .scenes import GRID, MARGIN, Pose, holds_out, sample_box

VERSION = 2
MAX_ANGLE = 12.0  # degrees an object may be turned
SHAPES = subjects.SUBJECTS
COLORS = dict(
  red=(218, 48, 46), orange=(245, 138, 36), yellow=(250, 216, 62), green=(66, 160, 70),
  turquoise=(56, 190, 186), blue=(46, 98, 212), purple=(138, 72, 178), pink=(246, 150, 190),
  brown=(138, 88, 52), white=(247, 247, 243), grey=(150, 152, 158), black=(46, 45, 52),
)  # fmt: skip
GROUNDS = dict(  # the phrase of each ground, and the colours that it may have
  grass=('on grass', ()),
  sand=('on sand', ()),
  snow=('on snow', ()),
  sea=('on the sea', ()),
  sky=('in the sky', ()),
  night=('at night', ()),
  planks=('on {} planks', ('brown', 'blue', 'grey', 'green')),
  bricks=('on {} bricks', ('red', 'grey', 'yellow', 'brown')),
  tiles=('on {} tiles', ('white', 'blue', 'pink', 'turquoise')),
  carpet=('on a {} carpet', ('red', 'purple', 'green', 'pink')),
)
NEUTRAL = (206, 198, 186)  # grounds are mixed with it, so that objects stand out
LEAST_CONTRAST = 0.15  # of the lightness of two colours of a look


@dataclasses.dataclass(frozen=True)
class Look:
  """The appearance of an object; `shape` names the subject, `tone` varies the named colours."""

  shape: str
  pattern: str
  color: str
  color2: str  # the same as `color` if the pattern is plain
  tone: tuple[float, float, float] = (0.0, 0.0, 0.0)  # added to hue, saturation and value


@dataclasses.dataclass(frozen=True)
class Scene:
  """Everything but the looks: the ground, the light, and a pose for each object."""

  ground: str
  color: str  # of the ground; '' if its name says it
  texture_seed: int
  light_angle: float  # degrees; the direction that the light comes from
  light_level: float
  light_contrast: float
  tint: tuple[float, float, float]
  poses: tuple[Pose, ...]


# Sampling.


def sample_look(rng: np.random.Generator, held_out: bool, without: Collection[str] = ()) -> Look:
  """Returns a random look that is held out from training, or one that is not.

  without: subjects that do not occur.
  """
  shapes = [name for name in SHAPES if name not in without]
  while True:
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    pair = _pairs()[rng.integers(len(_pairs()))]
    hue, saturation, value = (rng.uniform(-1, 1, 3) * (0.012, 0.06, 0.05)).tolist()
    color2 = pair[0] if pattern == 'plain' else pair[1]
    shape = shapes[rng.integers(len(shapes))]
    look = Look(shape, pattern, pair[0], color2, (hue, saturation, value))
    if is_held_out(look) == held_out:
      return look


def is_held_out(look: Look) -> bool:
  """Whether a hash of subject, pattern and names of colours holds the look out."""
  return holds_out(look.shape, look.pattern, look.color, look.color2)


def sample_scene(rng: np.random.Generator, most=3) -> Scene:
  """Returns a random scene with one to `most` objects whose boxes do not overlap."""
  ground = list(GROUNDS)[rng.integers(len(GROUNDS))]
  colors = GROUNDS[ground][1]
  count = min(most, 1 + int(rng.choice(3, p=(0.5, 0.32, 0.18))))
  boxes = [sample_box(rng, 0.48, 0.72 if count == 1 else 0.58, 0.07)]
  for _ in range(24):
    if len(boxes) < count:
      box = sample_box(rng, 0.25, 0.36, 0.07)
      boxes += [] if any(_overlap(box, other) for other in boxes) else [box]
  return Scene(
    ground=ground,
    color=colors[rng.integers(len(colors))] if colors else '',
    texture_seed=int(rng.integers(2**31)),
    light_angle=rng.uniform(0, 360),
    light_level=rng.uniform(0.92, 1.04),
    light_contrast=rng.uniform(0.04, 0.18),
    tint=tuple(rng.uniform(0.94, 1.0, 3)),
    poses=tuple(Pose(box, rng.uniform(-MAX_ANGLE, MAX_ANGLE)) for box in boxes),
  )


@functools.cache
def _pairs() -> list[tuple[str, str]]:
  """Returns the pairs of colours that a pattern shows clearly."""
  light = {name: float(np.dot(rgb, (0.299, 0.587, 0.114))) / 255 for name, rgb in COLORS.items()}
  pairs = itertools.permutations(COLORS, 2)
  return [(a, b) for a, b in pairs if abs(light[a] - light[b]) >= LEAST_CONTRAST]


def _overlap(a: tuple, b: tuple) -> bool:
  return min(a[2], b[2]) >= max(a[0], b[0]) and min(a[3], b[3]) >= max(a[1], b[1])


# Words.


def phrase(look: Look) -> str:
  """Returns the name of a look: 'a striped red and white teapot'."""
  words = f'{look.color} {look.shape}'
  if look.pattern != 'plain':
    words = f'{look.pattern} {look.color} and {look.color2} {look.shape}'
  return f'{"an" if words[0] in "aeiou" else "a"} {words}'


def caption(scene: Scene, looks: Sequence[Look]) -> str:
  """Returns the text of a scene: 'a green tree and a red ball on blue planks'."""
  return ' and '.join(map(phrase, looks)) + ' ' + GROUNDS[scene.ground][0].format(scene.color)


def words() -> tuple[str, ...]:
  """Returns all words of the captions, in alphabetical order."""
  texts = (place.format(' '.join(colors)) for place, colors in GROUNDS.values())
  return tuple(
    sorted({'a', 'an', 'and', *SHAPES, *COLORS, *PATTERNS[1:], *' '.join(texts).split()})
  )


# Drawing.


def draw(scene: Scene, looks: Sequence[Look], size=GRID) -> np.ndarray:
  """Draws the scene with one look per pose: uint8 [size size 3], reduced from a larger picture."""
  side = size * (3 if size <= 128 else 2)
  image = _DRAWN[scene.ground](np.random.default_rng(scene.texture_seed), side, scene.color)
  for pose, look in reversed(list(zip(scene.poses, looks, strict=True))):
    _draw_object(image, scene, pose, look)
  image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
  return cv2.multiply(image, _light(scene, size), dtype=cv2.CV_8U)


def _light(scene: Scene, side: int) -> np.ndarray:
  """Returns the tinted light at every pixel [side side 3], which decreases with the distance."""
  x, a = np.linspace(-0.5, 0.5, side, dtype=np.float32), math.radians(scene.light_angle)
  fall = (x[None] * math.cos(a) + x[:, None] * math.sin(a)) * np.float32(scene.light_contrast)
  field = (fall + np.float32(1 - scene.light_contrast / 2)) * np.float32(scene.light_level)
  return cv2.merge([field * np.float32(tint) for tint in scene.tint])


def _draw_object(image: np.ndarray, scene: Scene, pose: Pose, look: Look) -> None:
  side = image.shape[0]
  y0, x0, y1, x1 = (c * side // GRID for c in pose.box)
  index, palette = silhouette(look, pose.angle, y1 - y0, x1 - x0, max(1, round(side / 90)))
  alpha = np.minimum(index, 1) * np.uint8(255)
  _cast_shadow(image, alpha, y0, x0, scene.light_angle)
  a = math.radians(scene.light_angle)
  x, y = (np.linspace(-1, 1, n, dtype=np.float32) for n in (x1 - x0, y1 - y0))
  shade = 0.95 + 0.1 * (x[None] * math.cos(a) + y[:, None] * math.sin(a))
  paint = cv2.multiply(palette[index], cv2.merge([shade] * 3), dtype=cv2.CV_8U)
  image[y0:y1, x0:x1] = cv2.copyTo(paint, alpha, image[y0:y1, x0:x1].copy())


def silhouette(
  look: Look, angle: float, height: int, width: int, edge: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the look in a box as indices uint8 [height width], 0 outside, and their colours [n 3].

  edge: thickness of the contours in pixels.
  """
  parts, a = subjects.parts(look.shape), math.radians(angle)
  turn = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
  outlines = [part.points @ turn for part in parts]
  low = np.min([p.min(0) - part.width / 2 for part, p in zip(parts, outlines)], 0)
  high = np.max([p.max(0) + part.width / 2 for part, p in zip(parts, outlines)], 0)
  size, inset = np.array([width, height]), edge / 2
  scale = (size - 1 - 2 * inset) / (high - low)
  thick = float(np.sqrt(scale.prod()))
  colors = _palette(look)
  index = np.zeros((height, width), np.uint8)
  for part, outline in zip(parts, outlines):
    points = [np.round((outline - low) * scale + inset).astype(np.int32)]
    paint = list(colors).index(part.paint)
    closed = not part.width or len(outline) == 32
    line = max(1, round(part.width * thick))
    if part.width:
      cv2.polylines(index, points, closed, 3, line + edge if part.edge else line)
      cv2.polylines(index, points, closed, paint, max(1, line - edge if part.edge else line))
    else:
      cv2.fillPoly(index, points, paint)
      if part.edge:
        cv2.polylines(index, points, True, 3, edge)
  if look.pattern != 'plain':
    index[(index == 1) & _pattern(look.pattern, turn, size)] = 2
  return index, np.clip(list(colors.values()), 0, 255).astype(np.uint8)


def cutout(look: Look, angle: float, side: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the look alone, in 0..1: its colours times its alpha [side side 3], and the alpha."""
  index, palette = silhouette(look, angle, 3 * side, 3 * side, 2)
  paint = palette[index] * np.minimum(index, 1)[..., None]
  small = [
    cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA)
    for part in (paint.astype(np.float32) / 255, np.minimum(index, 1).astype(np.float32))
  ]
  return small[0], small[1]


def _palette(look: Look) -> dict:
  """Returns the colours of an object by paint; the first four are none, the two, and the edge."""
  first, second = (_named(name, look.tone) for name in (look.color, look.color2))
  dark = first.mean() < 90
  edge = first * 0.4 if not dark else first * 0.5 + 62
  palette = {None: first, subjects.MAIN: first, 'second': second, 'edge': edge}
  palette[subjects.DARK] = first * 0.72 if not dark else first + 26
  for part in subjects.parts(look.shape):
    palette.setdefault(
      part.paint, np.array(part.paint, np.float32) if isinstance(part.paint, tuple) else first
    )
  return palette


@functools.lru_cache(4096)
def _named(name: str, tone: tuple[float, float, float]) -> np.ndarray:
  """Returns the colour of a name, varied by the tone: RGB in 0..255."""
  hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in COLORS[name]))
  saturation = min(1, max(0, saturation * (1 + tone[1])))
  rgb = colorsys.hsv_to_rgb((hue + tone[0]) % 1, saturation, min(1, max(0, value + tone[2])))
  return np.array(rgb, np.float32) * 255


def _pattern(name: str, turn: np.ndarray, size: np.ndarray) -> np.ndarray:
  """Returns where a pattern has the second colour, bool [height width], turned with its object."""
  x, y = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
  x, y = x[None], y[:, None]
  c, s = np.float32(turn[0, 0]), np.float32(turn[0, 1])
  return _PATTERNS[name](x * c + y * s, y * c - x * s)


def _saw(x: np.ndarray, period: float) -> np.ndarray:
  """Returns the distance to the nearest multiple of the period, 0..0.5, in periods."""
  x = x / np.float32(period)
  return np.abs(x - np.round(x))


# Where the second colour is, at (u, v) in -1..1 across the object.
_PATTERNS = {
  'plain': lambda u, v: np.zeros(np.broadcast_shapes(u.shape, v.shape), bool),
  'striped': lambda u, v: _saw(u, 0.5) > 0.27,
  'dotted': lambda u, v: _saw(u - 0.25, 0.5) ** 2 + _saw(v - 0.25, 0.5) ** 2 < 0.095,
  'checked': lambda u, v: (_saw(u + 0.175, 0.7) > 0.25) != (_saw(v + 0.175, 0.7) > 0.25),
  'ringed': lambda u, v: _saw(np.sqrt(u * u + v * v), 0.5) > 0.25,
  'zigzag': lambda u, v: _saw(v + 0.5 * _saw(u, 0.6), 0.56) > 0.25,
}
PATTERNS = tuple(_PATTERNS)


def _cast_shadow(image: np.ndarray, alpha: np.ndarray, y0: int, x0: int, angle: float) -> None:
  """Darkens the ground on the side away from the light, up to MARGIN from the box."""
  side = image.shape[0]
  pad, a, reach = int(side * MARGIN) - 1, math.radians(angle), 0.032 * side
  shadow = cv2.copyMakeBorder(alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
  move = np.array([[1, 0, -reach * math.cos(a)], [0, 1, -reach * math.sin(a)]], np.float32)
  shadow = cv2.warpAffine(shadow, move, shadow.shape[::-1])
  shadow = cv2.blur(shadow, (pad // 2, pad // 2))
  top, left = y0 - pad, x0 - pad
  height, width = shadow.shape
  shadow = shadow[max(0, -top) : side - top, max(0, -left) : side - left]
  region = image[max(0, top) : top + height, max(0, left) : left + width]
  kept = 1 - shadow.astype(np.float32) * np.float32(0.4 / 255)
  region[:] = cv2.multiply(region, cv2.merge([kept] * 3), dtype=cv2.CV_8U)


# Grounds: functions of (rng, side, name of the colour) to uint8 [side side 3].


def _plain(rng, side: int, color, cells=6, amount=8.0) -> np.ndarray:
  """Returns a ground of one colour with soft light and dark places."""
  noise = rng.normal(0, amount, (cells, cells, 1))
  varied = np.array(color, np.float32) * rng.uniform(0.95, 1.04)
  small = np.clip(noise + varied, 0, 255).astype(np.uint8)
  return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def _soft(name: str) -> np.ndarray:
  return 0.6 * np.array(COLORS[name], np.float32) + 0.4 * np.array(NEUTRAL, np.float32)


def _tint(color, factor: float) -> tuple[float, ...]:
  return tuple(float(min(255, c * factor)) for c in color)


def _line(image, points, color, width: float) -> None:
  """Draws a line through points in shares of the side."""
  side = image.shape[0]
  points = np.round(np.asarray(points) * side).astype(np.int32)
  cv2.polylines(image, [points], False, color, max(1, round(width * side)))


def _rectangle(image, x0, y0, x1, y1, color) -> None:
  """Fills a rectangle; its corners are in shares of the side."""
  x0, y0, x1, y1 = (round(c * image.shape[0]) for c in (x0, y0, x1, y1))
  cv2.rectangle(image, (x0, y0), (x1, y1), color, -1)


def _grass(rng, side: int, _) -> np.ndarray:
  color = (136, 190, 92)
  image = _plain(rng, side, color)
  for x, y in rng.uniform(0, 1, (34, 2)):
    tone = _tint(color, rng.choice((0.78, 0.86, 1.14)))
    h = rng.uniform(0.03, 0.05)
    _line(image, [(x - 0.018, y - h * 0.8), (x, y), (x + 0.004, y - h)], tone, 0.011)
    _line(image, [(x, y), (x + 0.022, y - h * 0.75)], tone, 0.011)
  return image


def _sand(rng, side: int, _) -> np.ndarray:
  color = (236, 212, 158)
  image = _plain(rng, side, color, amount=4)
  for y in np.arange(0.08, 1, 0.17) + rng.uniform(-0.02, 0.02, 6):
    x = np.linspace(0, 1, 25)
    wave = 0.012 * np.sin(x * rng.uniform(8, 14) + rng.uniform(0, 6))
    _line(image, np.stack([x, y + wave], 1), _tint(color, 0.91), 0.014)
  for x, y in rng.uniform(0, 1, (26, 2)):
    _line(image, [(x, y), (x + 0.006, y)], _tint(color, 0.78), 0.012)
  return image


def _snow(rng, side: int, _) -> np.ndarray:
  image = _plain(rng, side, (236, 241, 250), amount=3)
  for y in rng.uniform(0.1, 1.0, 3):
    x = rng.uniform(0.1, 0.9)
    a = np.linspace(math.pi, 2 * math.pi, 20)
    r = rng.uniform(0.25, 0.45)
    _line(image, np.stack([x + r * np.cos(a), y + 0.22 * r * np.sin(a)], 1), (206, 218, 240), 0.03)
  for x, y in rng.uniform(0, 1, (16, 2)):
    _line(image, [(x, y), (x, y)], (196, 212, 240), 0.02)
  return image


def _sea(rng, side: int, _) -> np.ndarray:
  image = _plain(rng, side, (88, 158, 208), amount=6)
  for row, y in enumerate(np.arange(0.06, 1, 0.125)):
    x = np.linspace(0, 1, 49)
    wave = 0.022 * np.abs(np.sin(x * math.pi * 5 + row * math.pi / 2 + rng.uniform(-0.3, 0.3)))
    _line(image, np.stack([x, y + wave], 1), (150, 204, 236) if row % 2 else (62, 128, 184), 0.016)
  return image


def _sky(rng, side: int, _) -> np.ndarray:
  image = _plain(rng, side, (142, 200, 242), amount=3)
  for x, y in zip(rng.uniform(0, 1, 5), (np.arange(5) + rng.uniform(0.2, 0.8, 5)) / 5):
    r = rng.uniform(0.06, 0.09)
    for dx, dy, k in ((-1.1, 0.15, 0.75), (0, -0.2, 1.05), (1.1, 0.1, 0.8), (0, 0.35, 0.7)):
      center = round((x + dx * r) * side), round((y + dy * r) * side)
      cv2.ellipse(
        image,
        center,
        (round(r * k * 1.15 * side), round(r * k * side)),
        0,
        0,
        360,
        (250, 252, 254),
        -1,
      )
  return image


def _night(rng, side: int, _) -> np.ndarray:
  image = _plain(rng, side, (54, 62, 122), amount=4)
  for x, y in rng.uniform(0.02, 0.98, (22, 2)):
    r, color = rng.uniform(0.008, 0.02), ((255, 246, 200), (232, 236, 255))[rng.integers(2)]
    _line(image, [(x - r, y), (x + r, y)], color, 0.008)
    _line(image, [(x, y - r), (x, y + r)], color, 0.008)
  return image


def _planks(rng, side: int, name: str) -> np.ndarray:
  color = _soft(name)
  image = _plain(rng, side, color, amount=3)
  height, shift = 0.2, rng.uniform(0, 0.2)
  for row in range(-1, 6):
    y0 = row * height + shift
    _rectangle(image, 0, y0, 1, y0 + height, _tint(color, rng.uniform(0.92, 1.05)))
    for _ in range(3):
      x, y = rng.uniform(-0.2, 0.9), y0 + rng.uniform(0.25, 0.75) * height
      _line(image, [(x, y), (x + rng.uniform(0.1, 0.35), y)], _tint(color, 0.88), 0.008)
    _line(image, [(0, y0), (1, y0)], _tint(color, 0.6), 0.014)
    x = rng.uniform(0.1, 0.9)
    _line(image, [(x, y0), (x, y0 + height)], _tint(color, 0.6), 0.012)
  return image


def _bricks(rng, side: int, name: str) -> np.ndarray:
  color, mortar = _soft(name), (224, 216, 204)
  image = np.empty((side, side, 3), np.uint8)
  image[:] = mortar
  height, width, joint = 0.125, 0.25, 0.016
  shift = rng.uniform(0, 0.25, 2)
  for row, column in itertools.product(range(-2, 9), range(-2, 5)):
    y, x = row * height + shift[0], (column + 0.5 * (row % 2)) * width + shift[1]
    tone = _tint(color, rng.uniform(0.9, 1.06))
    _rectangle(image, x, y, x + width - joint, y + height - joint, tone)
  return image


def _tiles(rng, side: int, name: str) -> np.ndarray:
  color = 0.5 * _soft(name) + 122
  image = np.empty((side, side, 3), np.uint8)
  image[:] = _tint(color, 0.72)
  width, shift = 0.25, rng.uniform(0, 0.25, 2)
  for row, column in itertools.product(range(-1, 4), range(-1, 4)):
    y, x = row * width + shift[0], column * width + shift[1]
    tone = _tint(color, 0.88 if (row + column) % 2 else 1.05)
    _rectangle(image, x, y, x + width - 0.018, y + width - 0.018, tone)
  return image


def _carpet(rng, side: int, name: str) -> np.ndarray:
  color = _soft(name)
  image = _plain(rng, side, color, amount=2)
  width, shift = 0.2, rng.uniform(0, 0.2, 2)
  for row, column in itertools.product(range(-1, 6), range(-1, 6)):
    y, x = row * width + shift[0], (column + 0.5 * (row % 2)) * width + shift[1]
    points = np.array([(x, y - 0.045), (x + 0.045, y), (x, y + 0.045), (x - 0.045, y)])
    cv2.fillPoly(
      image, [np.round(points * side).astype(np.int32)], _tint(color, 0.8 if row % 2 else 1.18)
    )
  return image


_DRAWN = dict(
  grass=_grass, sand=_sand, snow=_snow, sea=_sea, sky=_sky, night=_night, planks=_planks,
  bricks=_bricks, tiles=_tiles, carpet=_carpet,
)  # fmt: skip
