"""Makes, packs and checks benchmarks in the layout of COCOEE (arXiv 2211.13227).

  python -m input_pipeline.coco_ee validate --bench=test_bench --report=report.json
  python -m input_pipeline.coco_ee pack --bench=test_bench --output=packed --shards=4
  python -m input_pipeline.coco_ee build --pictures=my_edits --output=my_bench
  python -m input_pipeline.coco_ee build_coco --annotations=instances_val2017.json \
      --images=val2017 --output=coco_bench --count=500

`validate` prints what is missing or odd; its exit status is 2 if it finds a fault, else 0. `pack`
writes the same files as TFRecord. `build` takes a folder with image/, mask/ and exemplar/, or a
list (.csv, .jsonl) with those columns. `build_coco` takes boxes of COCO.
"""

from collections.abc import Sequence

from exedit.runtime import doors, files

from ..errors import DataError
from . import bench as benches
from . import instances, validation
from . import own_pictures as own


def validate(bench: str, size: int, report: str) -> None:
  """Prints the report of a benchmark; raises DataError if it has faults."""
  if report:
    files.check_output(report, '--report')
  found = validation.validate(bench, size)
  if report:
    files.write_json(report, found)
  print(validation.table(found))
  if found['faults']:
    raise DataError(f'{bench}: {found["faults"]} faults in {found["edits"]} edits')


def pack(bench: str, output: str, shards: int) -> None:
  """Packs a benchmark as TFRecord."""
  manifest = benches.pack(bench, output, shards)
  print(f'{output}: {manifest["edits"]} edits in {len(manifest["files"])} shards')


def build(pictures: str, output: str, **settings) -> None:
  """Builds a benchmark from the user's own pictures."""
  manifest = own.from_pictures(pictures, output, **settings)
  print(f'{output}: {len(manifest["edits"])} edits')


def build_coco(annotations: str, images: str, output: str, **settings) -> None:
  """Builds a benchmark from COCO's boxes."""
  manifest = instances.from_coco(annotations, images, output, **settings)
  print(f'{output}: {len(manifest["edits"])} edits')
  for why, count in manifest['passed_over'].items():
    print(f'  passed over because {why}: {count}')


_SIZE = ('size', 512, 'side of the sources in pixels', int, 8)
_OUTPUT = ('output', doors.REQUIRED, 'new folder to write')
_BENCH = ('bench', doors.REQUIRED, 'a folder in the published layout, or packed')
COMMANDS = dict(
  validate=doors.Command(
    validate, 'report what is missing or odd',
    [_BENCH, _SIZE, ('report', '', 'JSON file to write as well')],
  ),
  pack=doors.Command(
    pack, 'write the same files as TFRecord', [_BENCH, _OUTPUT, ('shards', 1, 'files to write')]
  ),
  build=doors.Command(
    build, 'make a benchmark from own pictures',
    [
      ('pictures', doors.REQUIRED, 'folder with image/, mask/, exemplar/; or a .csv, .jsonl list'),
      _OUTPUT, _SIZE,
      ('rectangles', False, 'repaint the whole bounding box of each mask, as COCOEE does'),
    ],
  ),
  build_coco=doors.Command(
    build_coco, "make a benchmark from COCO's boxes",
    [
      ('annotations', doors.REQUIRED, "COCO's instances_*.json"),
      ('images', doors.REQUIRED, 'folder of their images'),
      _OUTPUT,
      ('count', 3500, 'number of edits', int, 1),
      ('seed', 0, 'seed of the choice', int, 0),
      _SIZE,
      ('exemplar_side', 64, 'shortest side of an exemplar in pixels', int, 1),
      ('exemplar_pad', 10, 'pixels around its box, as in training', int, 0),
      ('min_area', 0.02, 'least share of the source that is repainted'),
      ('max_area', 0.5, 'greatest share of the source that is repainted'),
    ],
  ),
)  # fmt: skip


def run(argv: Sequence[str] | None = None) -> None:
  """Runs the command that the first argument names."""
  doors.call_one(COMMANDS, __doc__, argv)


if __name__ == '__main__':
  run()
