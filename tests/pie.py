"""A small benchmark in PIE-Bench's layout, written by hand, for the tests of its reader."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from exedit.input_pipeline import pie_bench
from tests import bench

SIZE = 40
BOXES = ((8, 6, 30, 20), (0, 0, 40, 40), (20, 10, 36, 36))  # (x0, y0, x1, y1); one covers all
PATHS = (
  '0_random_140/000000000000.png',
  '1_change_object_80/1_artificial/1_animal/111000000001.png',
  '8_change_background_80/2_natural/3_indoor/823000000002.png',
)
PROMPTS = (
  ('photo of [red] ball', 'photo of [blue] ball'),
  ('photo of star', 'photo of [red] star'),
  ('blue [ball]', 'blue [star]'),
)


def runs(box, size=SIZE) -> list[int]:
  """The run-length code of a box: a run per row."""
  x0, y0, x1, y1 = box
  return [n for y in range(y0, y1) for n in (y * size + x0, x1 - x0)]


def entries(size=SIZE) -> dict[str, dict[str, Any]]:
  """The contents of the mapping file."""
  return {
    pathlib.PurePosixPath(path).stem: dict(
      image_path=path,
      original_prompt=prompt,
      editing_prompt=target,
      editing_instruction='Change it',
      editing_type_id=path[0],
      blended_word='ball ball' if i != 1 else '',
      mask=runs(box, size),
    )
    for i, (path, (prompt, target), box) in enumerate(zip(PATHS, PROMPTS, BOXES))
  }


def write(root: pathlib.Path, size=SIZE, found: Mapping[str, Any] | None = None) -> pathlib.Path:
  """Writes the mapping file and the sources; returns the root."""
  found = entries(size) if found is None else found
  root.mkdir(parents=True, exist_ok=True)
  (root / pie_bench.MAPPING).write_text(json.dumps(found))
  save(root / pie_bench.PICTURES, 0, size)
  return root


def save(folder: pathlib.Path, seed: int, size=SIZE) -> pathlib.Path:
  """Writes a picture at the place of each edit: its source, or a result; returns the folder."""
  for i, path in enumerate(PATHS):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    bench.picture(10 * seed + i, (size, size)).save(folder / path)
  return folder


def changed(root: pathlib.Path, folder: pathlib.Path, amount=20) -> pathlib.Path:
  """Writes results near their sources: every pixel moves, those in the region most."""
  own, rng = pie_bench.Bench(root), np.random.default_rng(3)
  for i in range(len(own)):
    edit = own[i]
    noise = rng.integers(-amount, amount + 1, edit['source'].shape)
    inside = (edit['mask'] > 0)[..., None] * bench_shift(edit['source'])
    pixels = np.clip(edit['source'] + noise + inside, 0, 255).astype(np.uint8)
    (folder / own.name(i)).parent.mkdir(parents=True, exist_ok=True)
    bench.PIL.Image.fromarray(pixels).save(folder / own.name(i))
  return folder


def bench_shift(source):
  """A change of colours that a network sees."""
  return source[..., ::-1].astype(int) - source
