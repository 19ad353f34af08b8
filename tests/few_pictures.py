"""Folders of a few small pictures, as people have them."""

import numpy as np
from PIL import Image

SIZES = ((24, 18), (18, 24), (20, 20), (40, 16), (17, 33))


def write(folder, count=5, seed=0):
  """Writes `count` pictures of different sizes; returns the folder's name."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  for i in range(count):
    width, height = SIZES[i % len(SIZES)]
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f'{i}.png')
  return str(folder)
