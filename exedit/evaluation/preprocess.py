"""How each feature network is shown an image: uint8 pixels in, a square in [-1, 1] out.

The means and deviations that the networks were trained with are applied inside them. Everything
here runs on the host, as in the code that made the published numbers.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from exedit import images
from exedit.metrics.pixels import box

Pixels = UInt8[np.ndarray, 'h w 3']


def centre(pixels: Pixels, size: int, shorter: int | None = None) -> Float[np.ndarray, 's s 3']:
  """The shorter side made `shorter` (by default `size`) long, then the square in the middle.

  Bicubic on 8-bit pixels: CLIP's own transform with one size (clip.py _transform), DINO's with 256
  and 224 (eval_knn.py). Rounding is torchvision's, Resize cutting off and CenterCrop to even.
  """
  shorter = shorter or size
  height, width = pixels.shape[:2]
  least = min(height, width)
  height, width = (shorter * side // least for side in (height, width))
  image = np.asarray(images.resize(images.from_uint8(pixels), height, width))
  top, left = round((height - size) / 2), round((width - size) / 2)
  return image[top : top + size, left : left + size]


def squash(pixels: Pixels, size: int) -> Float[np.ndarray, 's s 3']:
  """The whole image, its shape not kept: the reference of the CLIP score (facts 6.4)."""
  return images.resize(images.from_uint8(pixels), size, size)


def stretch(pixels: Pixels, size: int) -> Float[np.ndarray, 's s 3']:
  """The whole image by bilinear interpolation without antialiasing, in float32.

  What torch's `interpolate(align_corners=False)` gives: Inception's view (pytorch_fid/inception.py)
  and that of the region in the CLIP score (facts 6.4).
  """
  rows, columns = (_neighbours(side, size) for side in pixels.shape[:2])
  image = images.from_uint8(pixels)
  for axis, (low, high, share) in enumerate((rows, columns)):
    share = share.reshape(-1, *[1] * (2 - axis))
    image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
  return image


def _neighbours(side: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """For every new pixel the two old ones beside it and the share of the second, as torch counts."""
  at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(side / size)
  at = np.maximum(at - np.float32(0.5), 0)
  low = np.minimum(at.astype(np.int64), side - 1)
  return low, np.minimum(low + 1, side - 1), at - low.astype(np.float32)


def score_region(
  pixels: Pixels, mask: Bool[np.ndarray, 'mh mw'], size: int
) -> Float[np.ndarray, 's s 3']:
  """The repainted region as the CLIP score looks at it: the published crop, then `stretch`.

  Raises:
    ValueError: for a mask (True = repaint) of another size, and as metrics.pixels.box.
  """
  if pixels.shape[:2] != mask.shape:
    (h, w), (mh, mw) = pixels.shape[:2], mask.shape
    raise ValueError(f'the mask is {mw} x {mh} pixels (width x height), its image {w} x {h}')
  return stretch(pixels[box(mask, published=True)], size)
