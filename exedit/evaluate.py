"""Score weights or pictures on a benchmark, or compare two such results.

  python -m exedit.evaluate --config=configs/synthetic_bench.py --weights=weights/tiny
  python -m exedit.evaluate --config=configs/coco_ee.py --weights=... --output=DIR
  python -m exedit.evaluate --config=configs/coco_ee.py --images=PICTURES --output=DIR
  python -m exedit.evaluate --compare a/results.json b/results.json --output=PAGE

The first needs no photo: it makes every held-out synthetic edit twice, with its own exemplar and
with the exemplar of another edit, and compares the repainted region with ten drawn truths. The next
two score a benchmark in COCOEE's layout, with weights or with the pictures of any system. The last
one tests the difference of two results of that kind, edit by edit.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from exedit.evaluation import coco_ee, compare, synthetic_bench
from exedit.runtime import doors
from exedit.runtime.errors import UserError

BENCHES = {'coco_ee': coco_ee.main, 'synthetic': synthetic_bench.main}


def define_flags() -> None:
  """Define the flags: the config has the benchmark's settings, the others name files."""
  values = flags.FLAGS
  how = 'the benchmark: configs/synthetic_bench.py or configs/coco_ee.py'
  doors.define_config(how)
  flags.DEFINE_string('weights', None, 'folder of a training run, or exported weights', values)
  how = 'score the pictures {id:012d}.png of this folder instead of weights'
  flags.DEFINE_string('images', None, how, values)
  how = 'two results.json of one benchmark: --compare A B'
  flags.DEFINE_multi_string('compare', None, how, values)
  how = "folder of the results (default: the weights' folder + /evaluation)"
  flags.DEFINE_string('output', None, how, values)


def main(argv: list[str]) -> None:
  """Run the benchmark of `--config`, or compare the two files of `--compare`."""
  values, words = flags.FLAGS, argv[1:]
  if values.compare is not None:
    if values.config or values.weights or values.images:
      raise UserError('--compare takes no other flag than --output')
    compare_results([*values.compare, *words], values.output)
    return
  if words:
    raise UserError(f'{words[0]!r} is not a flag: flags are written --name=value')
  if values.config is None:
    raise UserError('--config is missing: use --config=configs/synthetic_bench.py')
  config = values.config.to_dict()
  bench = bench_of(config)
  if bench not in BENCHES:
    raise UserError(
      f"the config's bench is {bench!r}: set bench='coco_ee' for a benchmark in COCOEE's layout or"
      " bench='synthetic' for drawn edits"
    )
  BENCHES[bench](values.output, values.weights, values.images, config)


def bench_of(config: dict[str, Any]) -> str:
  """Take the benchmark's name out of a config.

  Older config files do not say it: of these, only those of COCOEE's layout have `data`.
  """
  return config.pop('bench', 'coco_ee' if 'data' in config else 'synthetic')


def compare_results(paths: Sequence[str], output: str | None) -> None:
  """Print the paired differences of two results, and write them as a page if `output` is given."""
  if len(paths) != 2:
    raise UserError(f'--compare takes two results.json, and {len(paths)} are given')
  found = compare.compare(*paths)
  print(compare.table(found))
  if output:
    print(compare.write(coco_ee.writable_folder(output), found))


if __name__ == '__main__':
  define_flags()
  doors.run(main, words=True)
