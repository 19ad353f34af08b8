"""Runs `coco_ee.references` as `python -m input_pipeline.references`."""

from collections.abc import Sequence

from exedit.runtime import doors

from .coco_ee import references


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(references.main, references.FLAGS, references.__doc__, argv)


if __name__ == '__main__':
  run()
