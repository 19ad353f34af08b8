"""Training masks from boxes (arXiv 2211.13227, section 3.1; PbE ldm/data/open-images.py).

A box is `(x0, y0, x1, y1)` in whole pixels; x1 and y1 are exclusive. A mask is uint8 [h w], 255 =
repaint.
"""

import cv2
import numpy as np

# The released code evaluates each curve at t = 0.05, 0.10 ... 0.90, without its two ends.
_T = 0.05 * np.arange(1, 19)


def extend_box(
  box: tuple[int, int, int, int], shape: tuple[int, int], rng: np.random.Generator, extend=0.4
) -> tuple[int, int, int, int]:
  """Moves each side outward by a random number of pixels, at most `extend` of the free space."""
  height, width = shape
  x0, y0, x1, y1 = box
  free = (x0, y0, width - x1, height - y1)
  left, up, right, down = (int(rng.integers(int(extend * f) + 1)) for f in free)
  return x0 - left, y0 - up, x1 + right, y1 + down


def rectangle(shape: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
  """Returns the box as a mask."""
  mask = np.zeros(shape, np.uint8)
  x0, y0, x1, y1 = box
  mask[y0:y1, x0:x1] = 255
  return mask


def outline(
  box: tuple[int, int, int, int],
  extended: tuple[int, int, int, int],
  rng: np.random.Generator,
  jitter=5,
  dedupe=False,
) -> np.ndarray:
  """Returns the outline of an arbitrary shape: int32 [n 2], (x, y).

  It has four quadratic Bezier curves, one per side, from corner to corner of the box. The control
  point of a curve is the middle of its side, moved outward to the extended box. Every point then
  moves by up to `jitter` pixels of the image. `dedupe` does what the released code does: it drops a
  point whose x or y occurred before on its curve. That compares floats exactly, so rounding decides
  which points it drops.
  """
  x0, y0, x1, y1 = box
  ex0, ey0, ex1, ey1 = extended
  cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
  nodes = np.array(
    [
      [(x0, y0), (cx, ey0), (x1, y0)],
      [(x1, y0), (ex1, cy), (x1, y1)],
      [(x1, y1), (cx, ey1), (x0, y1)],
      [(x0, y1), (ex0, cy), (x0, y0)],
    ],
    np.float64,
  )
  curves = _bezier(nodes)  # [4 18 2]
  points = np.concatenate([_drop_repeats(c) for c in curves]) if dedupe else curves.reshape(-1, 2)
  points = np.floor(points + 1e-6).astype(np.int32)  # as PIL does before it draws
  return points + rng.integers(-jitter, jitter + 1, points.shape, np.int32)


def polygon(shape: tuple[int, int], points: np.ndarray) -> np.ndarray:
  """Returns the inside of an outline [n 2] as a mask; parts outside the image are cut off."""
  mask = np.zeros(shape, np.uint8)
  cv2.fillPoly(mask, [points], 255)
  return mask


def grown(subject: np.ndarray, pixels: int) -> np.ndarray:
  """Returns a subject's mask with a border of `pixels`, so that no rim of it stays visible."""
  if not pixels:
    return subject
  disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1,) * 2)
  return cv2.dilate(subject, disk)


def grab_cut(pixels: np.ndarray, kinds: np.ndarray, rounds: int) -> np.ndarray:
  """Returns the subject of a picture uint8 [h w 3], bool [h w], the same at each call.

  GrabCut (Rother et al. 2004) separates two mixtures of colours. kinds: what it begins with, uint8
    [h w] of cv2.GC_BGD, GC_FGD, GC_PR_BGD and GC_PR_FGD.

  Raises:
    cv2.error: if all places are subject, or none is.
  """
  cv2.setRNGSeed(0)
  how = (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), rounds, cv2.GC_INIT_WITH_MASK
  found = np.asarray(cv2.grabCut(pixels, kinds.copy(), *how)[0])  # the kinds count, not the box
  return (found == cv2.GC_FGD) | (found == cv2.GC_PR_FGD)


def sample(
  shape: tuple[int, int],
  box: tuple[int, int, int, int],
  extended: tuple[int, int, int, int],
  rng: np.random.Generator,
  *,
  arbitrary=0.5,
  jitter=5,
  dedupe=False,
) -> np.ndarray:
  """Returns an arbitrary shape with probability `arbitrary`, else the extended box; never empty."""
  if rng.random() < arbitrary:
    mask = polygon(shape, outline(box, extended, rng, jitter, dedupe))
    if mask.any():  # the jitter can remove a box of a few pixels
      return mask
  return rectangle(shape, extended)


def _bezier(nodes: np.ndarray) -> np.ndarray:
  """Evaluates curves [n 3 2] at the eighteen t: [n 18 2], rounded as the `bezier` library does."""
  s, t = 1.0 - _T[:, None], _T[:, None]
  p0, p1, p2 = (nodes[:, None, i] for i in range(3))
  return (p0 * s + 2.0 * t * p1) * s + t * t * p2


def _drop_repeats(curve: np.ndarray) -> np.ndarray:
  seen_x, seen_y, kept = set(), set(), []
  for x, y in curve.tolist():
    if x not in seen_x and y not in seen_y:
      seen_x.add(x)
      seen_y.add(y)
      kept.append((x, y))
  return np.array(kept)
