"""Lists the pictures of a class that a model makes itself, for `config.model.prior=pictures`.

  python -m input_pipeline.prior --class='patterned teapot' --output=PRIOR
  python -m exedit.sample --weights=SD --edits=PRIOR/edits.csv --sampler=ddim --scale=6

The first writes PRIOR/edits.csv, a list with a row for each picture, and PRIOR/captions.csv, what
the training reads beside the pictures. The second makes the pictures, on all devices; after an
interruption it makes those that are missing.
"""

import os
from collections.abc import Sequence

from exedit.runtime import doors, files, lists

from . import few_pictures
from .errors import DataError

LIST = 'edits.csv'
FLAGS = (
  doors.Flag('class', doors.REQUIRED, "the concept's class, or several: 'teapot,dog'"),
  doors.Flag('output', doors.REQUIRED, 'the new folder of the pictures'),
  doors.Flag('count', 200, 'pictures of each class', least=1),
  doors.Flag('template', 'photo of a {}', 'the prompt, with {} for the class'),
  doors.Flag('seed', 0, 'of the first picture; the others count up', least=0),
)


def write(output: str, nouns: Sequence[str], count: int, template: str, seed: int) -> None:
  """Writes the list and the captions into the new folder `output`.

  Raises:
    DataError: for a class or template that makes no prompt, and if `output` exists.
  """
  if not all(nouns) or '{}' not in template:
    raise DataError(
      f'the class is {", ".join(nouns)!r:.60} and the template {template!r:.60}: name a noun, and '
      'write {} where it stands'
    )
  prompts = [template.replace('{}', noun) for noun in nouns] * count
  named = [(f'{i}.png', prompt) for i, prompt in enumerate(prompts)]
  with files.new_folder(output) as folder:
    edits = ((name, seed + i, prompt) for i, (name, prompt) in enumerate(named))
    for file, heads, rows in (
      (LIST, ('output', 'seed', 'prompt'), edits),
      (few_pictures.TABLE, ('image', 'caption'), named),
    ):
      (folder / file).write_text(lists.as_csv(heads, rows), encoding='utf-8')


def main(output: str, count: int, template: str, seed: int, **given: str) -> None:
  """Writes the folder, and says how it is filled and used."""
  nouns = [noun.strip() for noun in given['class'].split(',')]
  files.check_new(output, '--output')
  write(output, nouns, count, template, seed)
  print(
    f'{count * len(nouns)} pictures are to be made. Make them, and go on after an interruption, '
    'with the weights that learn the concept:\n'
    f'  python -m exedit.sample --weights=SD --edits={os.path.join(output, LIST)} --sampler=ddim '
    '--scale=6\nThen train with:\n'
    f'  --config.model.prior=pictures --config.data.prior_root={output}'
  )


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
