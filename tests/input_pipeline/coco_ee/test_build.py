"""The square cut of a source, against all squares that there are, and its mask."""

import numpy as np
import PIL.Image

from exedit.input_pipeline.coco_ee import build as coco_ee_build


def test_the_square_is_the_nearest_to_the_centre_that_holds_the_box():
  rng = np.random.default_rng(0)
  found = 0
  for _ in range(500):
    w, h = rng.integers(20, 90, 2).tolist()
    x0, y0 = rng.integers(0, w - 2), rng.integers(0, h - 2)
    box = tuple(map(int, (x0, y0, rng.integers(x0 + 1, w), rng.integers(y0 + 1, h))))
    size = min(w, h)  # no resize: a square of whole pixels, all of which can be tried
    corners = range(max(w, h) - size + 1)
    low, high = (box[0], box[2]) if w >= h else (box[1], box[3])
    holding = [c for c in corners if c <= low and high <= c + size]
    place = coco_ee_build.square((w, h), box, size)
    assert (place is None) == (not holding)
    if place:
      found += 1
      centre = int(round((max(w, h) - size) / 2.0))
      corner = place[2] + place[3]
      assert corner in holding
      assert abs(corner - centre) == min(abs(c - centre) for c in holding)
  assert 100 < found < 490


def test_the_mask_is_where_the_box_lies_in_the_cut_source():
  rng = np.random.default_rng(1)
  for _ in range(50):
    w, h = rng.integers(60, 200, 2).tolist()
    x0, y0 = int(rng.integers(0, w // 2)), int(rng.integers(0, h // 2))
    box = (x0, y0, x0 + int(rng.integers(20, 30)), y0 + int(rng.integers(20, 30)))
    place = coco_ee_build.square((w, h), box, 64)
    assert place is not None
    white = np.zeros((h, w), np.uint8)
    white[box[1] : box[3], box[0] : box[2]] = 255
    seen = coco_ee_build.cut(PIL.Image.fromarray(white), place, 64)
    mask = coco_ee_build.rectangle(box, (w, h), place, 64)
    assert ((seen >= 128) & (mask == 0)).sum() == 0  # all of the object is repainted
    rows, columns = np.nonzero(mask)
    inner = mask.copy()
    inner[[rows.min(), rows.max()]] = inner[:, [columns.min(), columns.max()]] = 0
    assert seen[inner == 255].min() >= 128  # and no more than the pixel that the box touches
