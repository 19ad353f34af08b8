"""Which of several looks a picture of a text shows, wherever in the picture and however large.

The place of an object is free in a picture of a text, so no truth can be compared pixel by pixel.
Every look is drawn at several sizes and angles and laid on every place of the picture. A look's
gain at a place is the squared error to the ground's colour minus the squared error to the drawing,
over the drawing's pixels: how much better "this look is here" explains the picture than "this is
ground". The look with the greatest gain at its best place is the one that the picture shows. Size
and angle are found at half the resolution, the gain at the whole one.
"""

import itertools
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from exedit.input_pipeline import scenes, world

SIDES = range(28, 49, 4)  # of a look, in a picture of side scenes.GRID
ANGLES = (-6.0, 6.0)


def score(results: UInt8[np.ndarray, 'n h w 3'], bench: Sequence[Mapping]) -> dict[str, np.ndarray]:
  """Score pictures of the captions of `synthetic.texts`.

  Returns:
    For each picture whether its caption's look has the greatest gain and explains it better than
    ground alone, and the gains [n k].
  """
  found = np.stack([gains(picture, edit['looks']) for picture, edit in zip(results, bench)])
  answer = np.array([edit['answer'] for edit in bench])
  own = found[np.arange(len(found)), answer]
  others = np.where(np.arange(found.shape[1]) == answer[:, None], -np.inf, found)
  return dict(identified=own > np.maximum(others.max(1), 0), gains=found)


def gains(
  picture: UInt8[np.ndarray, 'h w 3'], looks: Sequence[world.Look]
) -> Float[np.ndarray, ' k']:
  """Compute the gain of every look at its best place, in units of the full range."""
  ground = _ground(picture)
  rest = picture.astype(np.float32) / 255 - ground
  coarse = cv2.resize(rest, (rest.shape[1] // 2, rest.shape[0] // 2), interpolation=cv2.INTER_AREA)
  found = []
  for look in looks:
    ways = itertools.product(SIDES, ANGLES)
    best = max(ways, key=lambda way, look=look: _gain(coarse, ground, look, *way))
    found.append(_gain(rest, ground, look, *best))
  return np.array(found)


def _gain(rest, ground, look, grid_side, angle) -> float:
  """Return the gain at the best place of a look of one size and angle.

  rest: the picture less the ground's colour. With the drawing less it, d, the gain is the sum of
  2 rest d - d^2, so one correlation gives it at every place.
  """
  color, alpha = world.cutout(look, angle, round(grid_side * rest.shape[0] / scenes.GRID))
  drawing = color - alpha[..., None] * ground
  match = cv2.matchTemplate(rest, drawing, cv2.TM_CCORR)
  return 2 * float(match.max()) - float((drawing**2).sum())


def _ground(picture: UInt8[np.ndarray, 'h w 3']) -> Float[np.ndarray, ' 3']:
  """Return the ground's colour: the median of the picture's border, 0 to 1."""
  width = max(1, picture.shape[0] // 16)
  inside = np.zeros(picture.shape[:2], bool)
  inside[width:-width, width:-width] = True
  return np.median(picture[~inside], 0).astype(np.float32) / 255
