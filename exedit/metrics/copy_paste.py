"""Copy-paste score: detects whether the repainted region is a paste of the exemplar itself.

A verbatim paste has the best possible CLIP score, so a high CLIP score alone proves nothing. This
score is the highest correlation of the two pictures' fine detail over many ways to paste. A paste
repeats the exemplar's detail in place. The same subject in another pose or light has the same
colours and form, but hardly any pixel-aligned edges.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

SIDE = 64  # pixels of the region's longer side during the comparison
SIGMA = 2.0  # of those pixels; coarser structure counts as form and light, not as detail
FLOOR = 4.0  # of 255; contrasts well below this count as flat
FLAT = 1e-4  # mean squared detail that counts as flat: a contrast of 1/25 of a level
SCALES = 1.08 ** np.arange(-5, 6)  # sizes tried per way of fitting: 0.68 to 1.47
NEAR = range(-2, 3)  # pixels tried around the best of these sizes, in both directions
OVERLAP = 0.75  # share of the smaller picture that must overlap; this also bounds the shifts
SMALLEST = 8  # pixels per side


def copy_paste_score(
  region: UInt8[np.ndarray, 'h w 3'],
  exemplar: UInt8[np.ndarray, 'p q 3'],
  mask: Bool[np.ndarray, 'r s'] | None = None,
) -> float:
  """Score from 0 to 1: 1 for the exemplar pasted into the region, about 0.2 for another picture.

  Detail is brightness minus its local mean, divided by its local contrast, so that brightness,
  contrast and smooth light cancel. The score is the normalised correlation over the overlap
  (Padfield 2012, IEEE TIP 21:2706), maximised over these pastes: the exemplar squashed to the
  region, fitted into it and filling it, each at 0.68 to 1.47 of that size, mirrored or not, at
  every shift with enough overlap. The maximum of many correlations is above 0 by chance and grows
  as regions shrink: compare it with the score against other exemplars.

  Args:
    region: the box of the repainted region, cut from the result.
    exemplar: the exemplar image, of any size.
    mask: the repainted pixels of the box; None means all of them.
  Raises:
    ValueError: for sides below 8 pixels, a mask of another size, an empty mask, a flat exemplar.
  """
  _check(region, exemplar, mask)
  painted = np.ones(region.shape[:2], bool) if mask is None else mask
  here, painted = _shrunk(region, painted)
  grey = cv2.cvtColor(exemplar, cv2.COLOR_RGB2GRAY).astype(np.float32)
  if (_detail(_resize(grey, *here.shape)) ** 2).mean() < FLAT:
    raise ValueError('the exemplar is flat: a paste of it could not be recognised')
  pastes = (grey, np.ascontiguousarray(grey[:, ::-1]))

  def score(way):
    mirrored, height, width = way
    there = _detail(_resize(pastes[mirrored], height, width))
    return _correlation(here, painted, there)

  ways = [(mirrored, *size) for mirrored in (0, 1) for size in _sizes(here.shape, grey.shape)]
  mirrored, h, w = max(ways, key=score)
  near = [(h + dy, w + dx) for dy in NEAR for dx in NEAR]
  best = max(score((mirrored, *size)) for size in near if min(size) >= SMALLEST)
  return min(max(best, 0.0), 1.0)


def _check(region, exemplar, mask):
  for name, image in (('region', region), ('exemplar', exemplar)):
    h, w = image.shape[:2]
    if min(h, w) < SMALLEST:
      raise ValueError(f'the {name} is {w} x {h} pixels: detail needs at least {SMALLEST} a side')
  if mask is None:
    return
  if mask.shape != region.shape[:2]:
    (h, w), (p, q) = region.shape[:2], mask.shape
    raise ValueError(f'the region is {w} x {h} pixels (width x height) but its mask {q} x {p}')
  if not mask.any():
    raise ValueError('the mask is empty: there is no region to score')


def _shrunk(region, painted):
  """Return the region's detail [h w] at the size of the comparison, and its mask as weights."""
  h, w = painted.shape
  scale = min(1.0, max(SIDE / max(h, w), SMALLEST / min(h, w)))
  size = round(h * scale), round(w * scale)
  grey = cv2.cvtColor(region, cv2.COLOR_RGB2GRAY).astype(np.float32)
  weight = _resize(painted.astype(np.float32), *size)
  return _detail(_resize(grey, *size)), weight.astype(np.float64)


def _resize(grey: Float[np.ndarray, 'h w'], height: int, width: int) -> Float[np.ndarray, 'p q']:
  """Resize with area means along a side that shrinks and cubic along a side that grows."""
  h, w = grey.shape
  if height < h or width < w:
    grey = cv2.resize(grey, (min(w, width), min(h, height)), interpolation=cv2.INTER_AREA)
  if height > h or width > w:
    grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_CUBIC)
  return grey


def _detail(grey: Float[np.ndarray, 'h w']) -> Float[np.ndarray, 'h w']:
  high = grey - _blur(grey)
  return (high / (np.sqrt(_blur(high * high)) + FLOOR)).astype(np.float64)


def _blur(grey):
  return cv2.GaussianBlur(grey, (0, 0), SIGMA, borderType=cv2.BORDER_REFLECT)


def _sizes(region, exemplar):
  """Return the distinct (height, width) at which to try a paste of the exemplar."""
  fits = [side / other for side, other in zip(region, exemplar)]
  bases = [fits, [min(fits)] * 2, [max(fits)] * 2]
  sizes = {
    (round(exemplar[0] * y * s), round(exemplar[1] * x * s)) for y, x in bases for s in SCALES
  }
  most = 2.5 * max(region)
  return sorted(size for size in sizes if min(size) >= SMALLEST and max(size) <= most)


def _correlation(here, painted, paste):
  """Highest normalised correlation of two details [h w] and [p q] over all shifts, by FFT."""
  shape = [cv2.getOptimalDFTSize(a + b - 1) for a, b in zip(here.shape, paste.shape)]
  ours = np.stack([here * painted, here**2 * painted, painted])
  theirs = np.stack([paste, paste**2, np.ones_like(paste)])
  f, g = np.fft.rfft2(ours, shape), np.conj(np.fft.rfft2(theirs, shape))
  # For each shift: sum of products, energy of each in the overlap, pixels of the overlap.
  product, energy, other, count = np.fft.irfft2(f[[0, 1, 2, 2]] * g[[0, 2, 1, 2]], shape)
  enough = count > max(0.5, OVERLAP * min(painted.sum(), paste.size) - 0.5)
  usable = enough & (energy > FLAT * count) & (other > FLAT * count)
  if not usable.any():
    return 0.0  # flat at every overlap
  return float((product[usable] / np.sqrt(energy[usable] * other[usable])).max())
