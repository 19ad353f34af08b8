"""The preprocessing of each feature network: uint8 pixels in, a square in [-1, 1] out.

The networks apply the means and deviations of their training themselves. This code runs on the
host, as the code that produced the published numbers did.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from exedit import images
from exedit.metrics.pixels import box

Pixels = UInt8[np.ndarray, 'h w 3']


def centre(pixels: Pixels, size: int, shorter: int | None = None) -> Float[np.ndarray, 's s 3']:
  """Resize the shorter side to `shorter` (by default `size`), then cut the square in the middle.

  Resizing is bicubic on 8-bit pixels. This is CLIP's transform (clip.py _transform) with one size
  and DINO's (eval_knn.py) with 256 and 224. The rounding is torchvision's: Resize truncates,
  CenterCrop rounds half to even.
  """
  shorter = shorter or size
  height, width = pixels.shape[:2]
  least = min(height, width)
  height, width = (shorter * side // least for side in (height, width))
  image = np.asarray(images.resize(images.from_uint8(pixels), height, width))
  top, left = round((height - size) / 2), round((width - size) / 2)
  return image[top : top + size, left : left + size]


def squash(pixels: Pixels, size: int) -> Float[np.ndarray, 's s 3']:
  """Resize the whole image to a square, which changes its aspect ratio: the CLIP score's exemplar.

  See docs/facts.md, COCOEE and metrics.
  """
  return images.resize(images.from_uint8(pixels), size, size)


def stretch(pixels: Pixels, size: int) -> Float[np.ndarray, 's s 3']:
  """Resize the whole image by bilinear interpolation without antialiasing, in float32.

  This equals torch's `interpolate(align_corners=False)`, which prepares Inception's input
  (pytorch_fid/inception.py) and the region of the CLIP score.
  """
  rows, columns = (_neighbours(side, size) for side in pixels.shape[:2])
  image = images.from_uint8(pixels)
  for axis, (low, high, share) in enumerate((rows, columns)):
    share = share.reshape(-1, *[1] * (2 - axis))
    image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
  return image


def undivided(pixels: Pixels, size: int) -> Float[np.ndarray, 's s 3']:
  """Prepare a square picture for the structure distance as PIE-Bench's published code does.

  That code (PnPInversion, evaluation/matrics_calculator.py) gives ImageNet's normalisation pixels
  from 0 to 255 where it expects them from 0 to 1, after a bilinear resize without antialiasing
  (torchvision 0.13). Published distances are of such inputs, so the result lies in [-1, 509].

  Raises:
    ValueError: for a picture that is not square.
  """
  if pixels.shape[0] != pixels.shape[1]:
    raise ValueError(
      f'the picture is {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height): the structure'
      ' distance is defined for squares'
    )
  return (stretch(pixels, size) + 1) * 255 - 1


def _neighbours(side: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """For each new pixel return its two old neighbours and the weight of the second, as torch."""
  at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(side / size)
  at = np.maximum(at - np.float32(0.5), 0)
  low = np.minimum(at.astype(np.int64), side - 1)
  return low, np.minimum(low + 1, side - 1), at - low.astype(np.float32)


def score_region(
  pixels: Pixels, mask: Bool[np.ndarray, 'mh mw'], size: int
) -> Float[np.ndarray, 's s 3']:
  """Prepare the repainted region for the CLIP score: the published crop, then `stretch`.

  Raises:
    ValueError: if the mask (True = repaint) has another size, and as `metrics.pixels.box`.
  """
  if pixels.shape[:2] != mask.shape:
    (h, w), (mh, mw) = pixels.shape[:2], mask.shape
    raise ValueError(f'the mask is {mw} x {mh} pixels (width x height), its image {w} x {h}')
  return stretch(pixels[box(mask, published=True)], size)


def square(pixels: Pixels, side: int | None) -> UInt8[np.ndarray, 'p q 3']:
  """Resize the shorter side to `side` and cut the square in the middle; None: change nothing.

  Bilinear, as PbE's scripts/create_square_gt_for_fid.py makes the real images of the FID.
  """
  if side is None or pixels.shape[:2] == (side, side):
    return pixels
  h, w = pixels.shape[:2]
  size = (w * side // min(h, w), h * side // min(h, w))
  image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
  left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
  return np.asarray(image.crop((left, top, left + side, top + side)))
