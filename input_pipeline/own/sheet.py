"""Draws contact sheets of pictures with their boxes, for a person to look at."""

from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

CELL, GAP, TITLE, COLUMNS = 192, 8, 18, 6
INK, PAPER, BOX = (30, 30, 30), (255, 255, 255), (255, 40, 120)
MASK = np.array(BOX, np.float32)

Boxes = Sequence[Sequence[float]]


def cell(pixels: np.ndarray, boxes: Boxes, masks: Sequence[np.ndarray] = ()) -> PIL.Image.Image:
  """Returns a small picture with its boxes (x0, y0, x1, y1 in shares) and tinted masks."""
  scale = CELL / max(pixels.shape[:2])
  size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
  small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32)
  for mask in masks:
    share = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)[..., None] / np.float32(510)
    small = small * (1 - share) + MASK * share
  image = PIL.Image.fromarray(np.round(small).astype(np.uint8))
  pen = PIL.ImageDraw.Draw(image)
  for x0, y0, x1, y1 in boxes:
    width, height = (side - 1 for side in size)
    pen.rectangle((x0 * width, y0 * height, x1 * width, y1 * height), outline=BOX, width=2)
  return image


def draw(cells: Sequence[tuple[str, PIL.Image.Image]]) -> PIL.Image.Image:
  """Returns a sheet of titled cells."""
  rows = max(1, -(-len(cells) // COLUMNS))
  step = CELL + GAP
  sheet = PIL.Image.new('RGB', (COLUMNS * step + GAP, rows * (step + TITLE) + GAP), PAPER)
  pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(12)
  for i, (title, image) in enumerate(cells):
    x, y = GAP + i % COLUMNS * step, GAP + i // COLUMNS * (step + TITLE)
    while pen.textlength(title, font) > CELL:
      title = '...' + title[4 if title.startswith('...') else 1 :]
    pen.text((x, y), title, INK, font)
    sheet.paste(image, (x, y + TITLE))
  return sheet
