"""A small benchmark in the published layout, written by hand, for the tests of its readers."""

import pathlib

import cv2
import numpy as np
import PIL.Image

from exedit.input_pipeline.coco_ee import __main__ as commands

IDS = (900100065455, 283, 2231413, 17)  # not sorted, one beyond 32 bits
SIZE = 24
BOXES = ((4, 6, 14, 18), (0, 0, 12, 10), (5, 9, 24, 20), (8, 8, 16, 16))  # (x0, y0, x1, y1)


def picture(seed: int, size: tuple[int, int], mode='RGB') -> PIL.Image.Image:
  """Returns smooth random colours, (width, height)."""
  small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
  image = PIL.Image.fromarray(cv2.resize(small, size, interpolation=cv2.INTER_CUBIC))
  return image.convert(mode)


def mask(box: tuple[int, int, int, int], size=SIZE) -> PIL.Image.Image:
  pixels = np.zeros((size, size), np.uint8)
  x0, y0, x1, y1 = box
  pixels[y0:y1, x0:x1] = 255
  return PIL.Image.fromarray(pixels)


def _ellipse() -> PIL.Image.Image:
  y, x = np.mgrid[:SIZE, :SIZE]
  inside = ((x - 12) / 8) ** 2 + ((y - 11) / 5) ** 2 < 1
  return PIL.Image.fromarray(np.where(inside, np.uint8(255), np.uint8(0)))


MASKS = dict(
  box=mask((4, 6, 14, 18)),
  corner=mask((0, 0, 12, 10)),
  band=mask((0, 8, 24, 20)),
  pixel=mask((5, 5, 6, 6)),
  ellipse=_ellipse(),
  whole=mask((0, 0, SIZE, SIZE)),
)


def write(root: pathlib.Path, ids=IDS, size=SIZE, boxes=BOXES) -> pathlib.Path:
  """Writes GT_n, Mask_bbox_n, Ref_n and id_list.npy; some exemplars have a palette or alpha."""
  n = len(ids)
  for name in (f'GT_{n}', f'Mask_bbox_{n}', f'Ref_{n}'):
    (root / name).mkdir(parents=True)
  modes = ('RGB', 'P', 'RGBA', 'L')
  for k, edit_id in enumerate(ids):
    stem = f'{edit_id:012d}'
    picture(k, (size, size)).save(root / f'GT_{n}' / f'{stem}_GT.png')
    mask(boxes[k % len(boxes)], size).save(root / f'Mask_bbox_{n}' / f'{stem}_mask.png')
    exemplar = picture(100 + k, (40 + k, 30), modes[k % 4])
    if exemplar.mode == 'RGBA':
      exemplar.putalpha(picture(200 + k, exemplar.size, 'L'))
    exemplar.save(root / f'Ref_{n}' / f'{stem}_ref.png')
  np.save(root / 'id_list.npy', np.array(ids, np.int64))
  return root


def save_ids(root: pathlib.Path, ids, **kwargs) -> None:
  np.save(root / 'id_list.npy', np.array(ids), **kwargs)


def door(capsys):
  """Runs a command in this process: argv -> (exit status, stdout, the line on stderr)."""

  def run(*argv):
    status = 0
    capsys.readouterr()
    try:
      commands.run(['coco_ee', *map(str, argv)])
    except SystemExit as stop:
      status = stop.code
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith('error: ')]
    assert len(lines) == (status != 0) and 'Traceback' not in said.err
    return status, said.out, ''.join(lines)

  return run


def own_pictures(root, shapes=((40, 20), (20, 36), (30, 30))):
  """Writes image/, mask/, exemplar/ of photos (w, h); masks are right of and below the middle."""
  for name in ('image', 'mask', 'exemplar'):
    (root / name).mkdir(parents=True)
  for k, (w, h) in enumerate(shapes, 1):
    picture(k, (w, h)).save(root / 'image' / f'{k}.jpg', quality=95)
    pixels = np.zeros((h, w), np.uint8)
    pixels[h // 2 : h - 2, w // 2 : w - 2] = 255
    PIL.Image.fromarray(pixels).save(root / 'mask' / f'{k}.png')
    picture(10 + k, (25, 14)).save(root / 'exemplar' / f'{k}.png')
  return root
