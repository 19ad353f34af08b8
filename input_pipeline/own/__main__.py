"""Builds a data set from a folder of your own pictures, to train on and to score with.

  python -m input_pipeline.own --pictures=PHOTOS --boxes=labels.json --output=data/mine
  python -m input_pipeline.own --pictures=PHOTOS --masks=MASKS --output=data/mine
  python -m input_pipeline.own --pictures=PHOTOS --whole --output=data/mine
  python -m input_pipeline.own --pictures=PHOTOS --propose --output=boxes.csv

One flag says where the subjects are:

  boxes    COCO (.json, boxes or segmentations), Pascal VOC (.xml or a folder), YOLO (a folder of
           .txt, with classes.txt or data.yaml), or a table (.csv, .jsonl) with the columns image,
           x0, y0, x1, y1 and perhaps label, in pixels or shares (--units)
  masks    a folder of masks, one or several per picture (a.png or a.mask.png, a_1.png, a/1.png of
           a.jpg); `--masks=alpha` takes the pictures' own transparency
  whole    each picture shows one subject, which fills its middle
  propose  writes a table of boxes, found by their colours, and a sheet; correct the table and give
           it as --boxes

The output has the splits `train` and `validation` (held out by picture; near-duplicates stay on one
side), manifest.json, dropped.csv and sheet.png. A text in a.txt beside a.jpg is its caption. The
same command goes on after an interruption. docs/own_pictures.md has the rest.
"""

from collections.abc import Sequence
from typing import Any

from exedit.runtime import doors

from ..errors import DataError
from . import build, labels, names, propose
from .examine import Rules

FLAGS = (
  doors.Flag('pictures', doors.REQUIRED, 'folder of the pictures; folders in it are read too'),
  doors.Flag('output', doors.REQUIRED, 'new folder for the shards; of --propose a new .csv file'),
  doors.Flag('boxes', '', 'label file, or folder of label files'),
  doors.Flag('masks', '', "folder of masks, or `alpha`: the pictures' transparent parts"),
  doors.Flag('whole', False, 'each picture shows one subject'),
  doors.Flag('propose', False, 'write a table of boxes to correct'),
  doors.Flag('units', '', 'what a table of boxes counts', ('', *labels.UNITS), shown='pixels'),
  doors.Flag('held_out', 0.1, 'share of the pictures that do not train; at least 4 of 16', float),
  doors.Flag('seed', 0, 'of the choice of the held-out pictures', int, 0),
  doors.Flag('largest', Rules.largest, 'longer side in pixels; larger ones shrink', int, 64),
  doors.Flag('min_area', Rules.min_area, 'least share of the picture that a box covers', float),
  doors.Flag('max_area', Rules.max_area, 'greatest share', float),
  doors.Flag('threads', 0, 'pictures read at once', int, 0, shown='one per processor'),
)


def main(
  pictures: str,
  output: str,
  boxes: str,
  masks: str,
  whole: bool,
  propose: bool,
  units: str,
  threads: int,
  **settings: Any,
) -> None:
  """Builds the data set, or writes proposals."""
  ways = dict(boxes=boxes, masks=masks, whole=whole, propose=propose)
  given = [f'--{flag}' for flag, value in ways.items() if value]
  if len(given) != 1:
    raise DataError(
      f'{" and ".join(given) or "nothing"} is given: say where the subjects are by one of '
      '--boxes=FILE, --masks=DIR, --whole and --propose'
    )
  if propose:
    proposals(pictures, output, threads)
    return
  how = dict(boxes=boxes, masks=masks, whole=whole, units=units, threads=threads)
  build.build(pictures, output, **how, **settings)


def proposals(pictures: str, output: str, threads: int) -> None:
  """Writes a table of boxes for a person to correct."""
  propose.write(pictures, names.pictures(pictures), output, threads)


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
