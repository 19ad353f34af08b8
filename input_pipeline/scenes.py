"""Draws the pictures of the synthetic data with numpy: scenes, and looks of objects in them.

A scene is a background, a light and one or two posed objects. A look is the shape, colours and
pattern of an object. They are separate so that the same scene can be drawn with another look in the
same box. A hash splits the looks: one in HELD_OUT never occurs in training.
"""

import colorsys
import dataclasses
import functools
import hashlib
import math
from typing import Any

import cv2
import numpy as np

VERSION = 1  # of the pictures; increase it when a scene and look give other pixels
GRID = 64  # side of a scene in which boxes are whole pixels, so they fit tightly at any multiple
MARGIN = 0.06  # how far a shadow can leave the object's box, as a share of the scene's side
MAX_ANGLE = 20.0  # degrees an object may be turned
HELD_OUT = 8
BACKGROUNDS = ('gradient', 'stripes', 'checks', 'clouds', 'grain')
REPEATING = ('stripes', 'rows', 'dots', 'checks', 'rings')


@dataclasses.dataclass(frozen=True)
class Look:
  """The appearance of an object; colours are (hue, saturation, value) in 0..1."""

  shape: str
  color: tuple[float, float, float]
  color2: tuple[float, float, float]
  pattern: str
  repeats: int  # periods of the pattern across half the object


@dataclasses.dataclass(frozen=True)
class Pose:
  """The place of an object: box (y0, x0, y1, x1) in a scene of side GRID, angle in degrees."""

  box: tuple[int, int, int, int]
  angle: float


@dataclasses.dataclass(frozen=True)
class Scene:
  """Everything but the looks: the background, the light, and a pose for each object."""

  background: str
  colors: tuple[tuple[float, float, float], tuple[float, float, float]]
  frequency: float
  texture_angle: float
  texture_seed: int
  light_angle: float  # degrees; the direction that the light comes from
  light_level: float
  light_contrast: float
  tint: tuple[float, float, float]
  poses: tuple[Pose, ...]


# Sampling.


def sample_look(rng: np.random.Generator, held_out: bool) -> Look:
  """Returns a random look that is held out from training, or one that is not."""
  while True:
    pattern = 'plain' if rng.random() < 0.2 else PATTERNS[rng.integers(len(PATTERNS))]
    color = _sample_color(rng)
    color2 = color if pattern == 'plain' else _sample_contrast(color, rng)
    repeats = int(rng.integers(2, 5)) if pattern in REPEATING else 1
    look = Look(SHAPES[rng.integers(len(SHAPES))], color, color2, pattern, repeats)
    if is_held_out(look) == held_out:
      return look


def is_held_out(look: Look) -> bool:
  """Whether a hash of shape, pattern and coarse colours holds the look out; similar looks agree."""
  return holds_out(look.shape, look.pattern, look.repeats, _bin(look.color), _bin(look.color2))


def holds_out(*look: Any) -> bool:
  """Whether the hash of these values holds a look out: one in HELD_OUT."""
  return hashlib.blake2b(repr(look).encode(), digest_size=4).digest()[0] % HELD_OUT == 0


def sample_scene(rng: np.random.Generator) -> Scene:
  """Returns a random scene with one or two objects whose boxes do not overlap."""
  base = _muted_color(rng)
  other = _muted_color(rng)
  poses = [Pose(sample_box(rng, 0.45, 0.75, 0.22), rng.uniform(-MAX_ANGLE, MAX_ANGLE))]
  if rng.random() < 0.35:
    for _ in range(8):
      box = sample_box(rng, 0.2, 0.36, 0.22)
      if not _overlap(box, poses[0].box):
        poses.append(Pose(box, rng.uniform(-MAX_ANGLE, MAX_ANGLE)))
        break
  return Scene(
    background=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
    colors=(base, other),
    frequency=rng.uniform(2, 7),
    texture_angle=rng.uniform(0, 180),
    texture_seed=int(rng.integers(2**31)),
    light_angle=rng.uniform(0, 360),
    light_level=rng.uniform(0.72, 1.0),
    light_contrast=rng.uniform(0.05, 0.3),
    tint=tuple(rng.uniform(0.88, 1.0, 3)),
    poses=tuple(poses),
  )


def _sample_color(rng: np.random.Generator) -> tuple[float, float, float]:
  if rng.random() < 0.15:  # near-neutral: white, grey, black, pastel
    return float(rng.random()), float(rng.uniform(0, 0.25)), float(rng.uniform(0.05, 1))
  return float(rng.random()), float(rng.uniform(0.6, 1)), float(rng.uniform(0.35, 1))


def _sample_contrast(color: tuple, rng: np.random.Generator) -> tuple[float, float, float]:
  for _ in range(16):  # different enough to see, similar enough to keep one main colour
    color2 = _sample_color(rng)
    if 0.4 < np.abs(_rgb(color2) - _rgb(color)).sum() < 1.1:
      break
  return color2


def _muted_color(rng: np.random.Generator) -> tuple[float, float, float]:
  return float(rng.random()), float(rng.uniform(0, 0.35)), float(rng.uniform(0.3, 0.9))


def sample_box(
  rng: np.random.Generator, low: float, high: float, stretch: float
) -> tuple[int, int, int, int]:
  """Returns a random box with sides of `low` to `high` of the scene's.

  stretch: the largest logarithm by which the height grows and the width shrinks.
  """
  side, factor = rng.uniform(low, high), math.exp(rng.uniform(-stretch, stretch))
  height, width = (
    round(float(np.clip(s, low, high)) * GRID) for s in (side * factor, side / factor)
  )
  y0, x0 = int(rng.integers(1, GRID - height)), int(rng.integers(1, GRID - width))
  return y0, x0, y0 + height, x0 + width


def _overlap(a: tuple, b: tuple) -> bool:
  return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def _bin(color: tuple[float, float, float]) -> tuple[int, int, int]:
  hue, saturation, value = color
  return int(hue * 12) % 12, int(saturation >= 0.4), int(value * 2.999)


@functools.lru_cache(4096)
def _rgb(color: tuple[float, float, float]) -> np.ndarray:
  return np.array(colorsys.hsv_to_rgb(*color), np.float32)


# Drawing.


def draw(scene: Scene, looks: tuple[Look, ...], size=GRID) -> np.ndarray:
  """Draws the scene with one look per pose: uint8 [size size 3], reduced from a larger picture."""
  side = size * (3 if size <= 128 else 2)
  image = _background(scene, side)
  for pose, look in reversed(list(zip(scene.poses, looks, strict=True))):
    _draw_object(image, scene, pose, look)
  image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
  image *= _light(scene, size)
  return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


@functools.lru_cache(4)
def _coordinates(side: int) -> tuple[np.ndarray, np.ndarray]:
  ticks = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
  return ticks[None, :], ticks[:, None]


def _along(side: int, degrees: float) -> np.ndarray:
  """Returns the coordinate along a direction, 0 in the middle, [side side]."""
  x, y = _coordinates(side)
  a = math.radians(degrees)
  return x * np.float32(math.cos(a)) + y * np.float32(math.sin(a))


def _background(scene: Scene, side: int) -> np.ndarray:
  a, b = (_rgb(color) for color in scene.colors)
  rng = np.random.default_rng(scene.texture_seed)
  if scene.background == 'gradient':
    tone = _along(side, scene.texture_angle) * 0.7 + 0.5
  elif scene.background == 'stripes':
    tone = _wave(_along(side, scene.texture_angle) * scene.frequency * 2)
  elif scene.background == 'checks':
    u, v = (_along(side, scene.texture_angle + turn) * scene.frequency for turn in (0, 90))
    tone = _wave(u) + _wave(v) - 2 * _wave(u) * _wave(v)
  else:
    cells = int(scene.frequency) + 2 if scene.background == 'clouds' else 24
    tone = rng.random((cells, cells), np.float32)
    tone = cv2.resize(tone, (side, side), interpolation=cv2.INTER_CUBIC)
  grain = rng.normal(0, 0.02, (32, 32)).astype(np.float32)
  grain = cv2.resize(grain, (side, side), interpolation=cv2.INTER_LINEAR)
  low, high = a + 0.2 * (b - a), a + 0.8 * (b - a)
  return cv2.merge(
    [tone * float(h - l) + (grain + float(l)) for l, h in zip(low, high, strict=True)]
  )


def _wave(x: np.ndarray) -> np.ndarray:
  """Returns a square wave of period 1 with soft edges, in 0..1."""
  return np.clip(0.5 + 2 * np.sin(x * np.float32(2 * math.pi)), 0, 1)


def _light(scene: Scene, side: int) -> np.ndarray:
  """Returns the tinted light at every pixel [side side 3], which decreases with the distance."""
  fall = _along(side, scene.light_angle) * np.float32(scene.light_contrast)
  field = (fall + np.float32(1 - scene.light_contrast / 2)) * np.float32(scene.light_level)
  return cv2.merge([field * np.float32(tint) for tint in scene.tint])


def _draw_object(image: np.ndarray, scene: Scene, pose: Pose, look: Look) -> None:
  side = image.shape[0]
  y0, x0, y1, x1 = (c * side // GRID for c in pose.box)
  height, width = y1 - y0, x1 - x0
  alpha = _silhouette(look.shape, pose.angle, height, width)
  _cast_shadow(image, alpha, y0, x0, scene.light_angle)
  x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
  y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
  a = math.radians(pose.angle)
  u, v = x * math.cos(a) + y * math.sin(a), y * math.cos(a) - x * math.sin(a)
  tone = _PATTERNS[look.pattern](u, v, look.repeats * math.pi)
  color, color2 = _rgb(look.color), _rgb(look.color2)
  paint = tone[..., None] * (color2 - color) + color
  light = math.radians(scene.light_angle)
  paint *= (0.92 + 0.16 * (x * math.cos(light) + y * math.sin(light)))[..., None]
  region = image[y0:y1, x0:x1]
  region += alpha[..., None] * (paint - region)


def _cast_shadow(
  image: np.ndarray, alpha: np.ndarray, y0: int, x0: int, light_angle: float
) -> None:
  """Darkens the ground on the side away from the light, up to MARGIN from the box."""
  side = image.shape[0]
  pad = int(side * MARGIN) - 1
  shadow = cv2.copyMakeBorder(alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
  a, reach = math.radians(light_angle), 0.03 * side
  move = np.array([[1, 0, -reach * math.cos(a)], [0, 1, -reach * math.sin(a)]], np.float32)
  shadow = cv2.warpAffine(shadow, move, shadow.shape[::-1])
  shadow = cv2.blur(shadow, (pad // 2, pad // 2))
  top, left = y0 - pad, x0 - pad
  height, width = shadow.shape
  shadow = shadow[max(0, -top) : side - top, max(0, -left) : side - left]
  region = image[max(0, top) : top + height, max(0, left) : left + width]
  region *= (1 - 0.45 * shadow)[..., None]


def _silhouette(shape: str, angle: float, height: int, width: int) -> np.ndarray:
  """Returns the rotated shape, stretched to its box: float32 [height width], 1 inside."""
  contours, a = _OUTLINES[shape], math.radians(angle)
  turn = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
  contours = [c @ turn for c in contours]
  low, high = contours[0].min(0), contours[0].max(0)  # the first contour is the outer one
  scale = np.array([width - 1, height - 1]) / (high - low)
  alpha = np.zeros((height, width), np.uint8)
  points = [np.round((c - low) * scale).astype(np.int32) for c in contours]
  cv2.fillPoly(alpha, points, 1)
  return alpha.astype(np.float32)


def _on(where: np.ndarray) -> np.ndarray:
  return where.astype(np.float32)


# The share of the second colour, 0..1, at (u, v) in -1..1 across the object; w is repeats * pi.
_PATTERNS = {
  'plain': lambda u, v, w: np.zeros_like(u),
  'stripes': lambda u, v, w: _on(np.cos(u * w) > 0.4),
  'rows': lambda u, v, w: _on(np.cos(v * w) > 0.4),
  'dots': lambda u, v, w: _on(np.cos(u * w) * np.cos(v * w) > 0.35),
  'checks': lambda u, v, w: _on(np.sin(u * w) * np.sin(v * w) > 0),
  'rings': lambda u, v, w: _on(np.cos(np.sqrt(u * u + v * v) * w) > 0.3),
  'halves': lambda u, v, w: _on(u > 0.15),
  'quarters': lambda u, v, w: _on(u * v > 0),
  'core': lambda u, v, w: _on(u * u + v * v < 0.25),
  'fade': lambda u, v, w: np.clip(0.5 + 0.6 * v, 0, 1),
}
PATTERNS = tuple(_PATTERNS)


def _regular(n: int, start=-90.0, radius=1.0) -> np.ndarray:
  a = np.radians(start + 360 / n * np.arange(n))
  return radius * np.stack([np.cos(a), np.sin(a)], 1)


def _radial(radius, n=96) -> np.ndarray:
  a = 2 * np.pi * np.arange(n) / n
  return radius(a)[:, None] * np.stack([np.cos(a), np.sin(a)], 1)


def _heart() -> np.ndarray:
  a = 2 * np.pi * np.arange(64) / 64
  y = 13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a)
  return np.stack([16 * np.sin(a) ** 3, -y], 1)


def _interleaved(n: int, inner: float) -> np.ndarray:
  return np.stack([_regular(n), _regular(n, -90 + 180 / n, inner)], 1).reshape(-1, 2)


_OUTLINES = {
  'disc': [_regular(64)],
  'square': [_regular(4, -45)],
  'triangle': [_regular(3)],
  'pentagon': [_regular(5)],
  'diamond': [np.array([(0, -1.3), (0.85, 0), (0, 1.3), (-0.85, 0)])],
  'star': [_interleaved(5, 0.55)],
  'burst': [_interleaved(9, 0.78)],
  'ring': [_regular(64), _regular(48, radius=0.38)],
  'frame': [_regular(4, -45), _regular(4, -45, 0.42)],
  'cross': [np.array([(-1, -2), (1, -2), (1, -1), (2, -1), (2, 1), (1, 1),
                      (1, 2), (-1, 2), (-1, 1), (-2, 1), (-2, -1), (-1, -1)])],
  'heart': [_heart()],
  'flower': [_radial(lambda a: 1 + 0.28 * np.cos(5 * a))],
  'arrow': [np.array([(0, -1), (1, 0.1), (0.6, 0.1), (0.6, 1), (-0.6, 1), (-0.6, 0.1), (-1, 0.1)])],
  'dome': [np.concatenate([_regular(96)[:25], _regular(96)[72:]])[np.r_[25:49, 0:25]]],
  'house': [np.array([(0, -1), (0.9, -0.2), (0.9, 1), (-0.9, 1), (-0.9, -0.2)])],
  'drop': [np.array([(0, -1.6), *_regular(49, -30)[:41]])],
  'shield': [np.array([(-1, -1), (1, -1), (1, 0.2), (0.6, 0.8), (0, 1.2), (-0.6, 0.8), (-1, 0.2)])],
}  # fmt: skip
SHAPES = tuple(_OUTLINES)
