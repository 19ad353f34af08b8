"""Score weights or pictures on a benchmark, or compare two such results.

  python -m exedit.evaluate --config=configs/synthetic_bench.py --weights=weights/tiny
  python -m exedit.evaluate --config=configs/coco_ee.py --weights=... --output=DIR
  python -m exedit.evaluate --config=configs/coco_ee.py --images=PICTURES --output=DIR
  python -m exedit.evaluate --config=configs/pie_bench.py --weights=... --output=DIR
  python -m exedit.evaluate --config=configs/custom_edit_sweep.py --output=DIR
  python -m exedit.evaluate --compare a/results.json b/results.json --output=PAGE

The first needs no photo: it makes every held-out synthetic edit twice, with its own exemplar and
with the exemplar of another edit, and compares the repainted region with ten drawn truths. The next
two score a benchmark in COCOEE's layout, with weights or with the pictures of any system; the same
goes for PIE-Bench. Custom-Edit's comparison of methods scores edits that are there. The last one
tests the difference of two results of one benchmark, edit by edit.
"""

from collections.abc import Sequence
from typing import Any

from exedit.editing.settings import CONCEPT
from exedit.runtime import doors
from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError
from exedit.runtime.settings import benchmark

FLAGS = (
  Flag('config', None, 'the benchmark, such as configs/synthetic_bench.py', 'config'),
  Flag('weights', None, 'folder of a training run, or exported weights', str),
  *CONCEPT,
  Flag('images', None, 'score the pictures of this folder, one per edit, instead of weights', str),
  Flag('compare', None, 'two results.json of one benchmark: --compare A B', list),
  Flag('output', None, 'folder of the results', str, shown="the weights' folder + /evaluation"),
)


def main(
  config: Any,
  weights: str | None,
  images: str | None,
  compare: list[str] | None,
  output: str | None,
  words: list[str],
  **given: Any,
) -> None:
  """Run the benchmark of `config`, or compare two results; `words` are more names of results.

  given: the values of the flags CONCEPT.
  """
  given = {name: value for name, value in given.items() if value is not None}
  if compare is not None:
    if config or weights or images or given:
      raise UserError('--compare takes no other flag than --output')
    compare_results([*compare, *words], output)
    return
  if words:
    raise UserError(f'{words[0]!r} is not a flag: flags are written --name=value')
  if config is None:
    raise UserError('--config is missing: use --config=configs/synthetic_bench.py')
  settings = benchmark(config)
  from exedit.evaluation import coco_ee, pie_bench, sweep, synthetic_bench

  benches = {
    'coco_ee': coco_ee.main,
    'custom_edit_sweep': sweep.main,
    'pie_bench': pie_bench.main,
    'synthetic': synthetic_bench.main,
  }
  bench = bench_of(settings)
  if bench not in benches:
    raise UserError(
      f"the config's bench is {bench!r}: set bench='coco_ee' for a benchmark in COCOEE's layout,"
      " 'pie_bench' for one in PIE-Bench's, 'custom_edit_sweep' for a list of edits or 'synthetic'"
      ' for drawn edits'
    )
  if given and bench == 'custom_edit_sweep':
    raise UserError(
      f'--{next(iter(given))} has no use: bench {bench!r} scores edits that are there'
    )
  benches[bench](output, weights, images, settings | given)


def bench_of(config: dict[str, Any]) -> str:
  """Take the benchmark's name out of a config.

  Older config files do not say it: of these, only those of COCOEE's layout have `data`.
  """
  return config.pop('bench', 'coco_ee' if 'data' in config else 'synthetic')


def compare_results(paths: Sequence[str], output: str | None) -> None:
  """Print the paired differences of two results, and write them as a page if `output` is given."""
  from exedit.evaluation import coco_ee, compare

  if len(paths) != 2:
    raise UserError(f'--compare takes two results.json, and {len(paths)} are given')
  found = compare.compare(*paths)
  print(compare.table(found))
  if output:
    print(compare.write(coco_ee.writable_folder(output), found))


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv, words='words')


if __name__ == '__main__':
  run()
