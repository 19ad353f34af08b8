"""Pictures of noise and masks with one white box, as arrays and as the files of an edit."""

import os

import numpy as np
from PIL import Image


def noise(rng, height, width):
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def box(height, width, top, left, bottom, right):
  mask = np.zeros((height, width), bool)
  mask[top:bottom, left:right] = True
  return mask


def write(folder, height, width, *where) -> dict[str, str]:
  """Writes photo.png, mask.png (see `box`) and ex.png; returns their paths by input."""
  rng = np.random.default_rng(0)
  Image.fromarray(noise(rng, height, width)).save(folder / 'photo.png')
  Image.fromarray(box(height, width, *where)).convert('L').save(folder / 'mask.png')
  Image.fromarray(noise(rng, 9, 20)).save(folder / 'ex.png')
  names = dict(image='photo.png', mask='mask.png', exemplar='ex.png')
  return {name: str(folder / path) for name, path in names.items()}


def strew(root) -> None:
  """Leaves in every folder what macOS, Windows and editors leave there, also for each file."""
  for folder, _, names in [*os.walk(root)]:
    ours = ['.DS_Store', 'Thumbs.db', 'desktop.ini', '._x.png', '~$list.csv']
    for name in ours + [f'._{name}' for name in names]:
      with open(os.path.join(folder, name), 'wb') as file:
        file.write(b'litter')
    for name in ('__MACOSX', '.ipynb_checkpoints', '@eaDir'):
      os.mkdir(os.path.join(folder, name))
