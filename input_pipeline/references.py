"""Runs `coco_ee.references` as `python -m input_pipeline.references`."""

from exedit.runtime import doors

from .coco_ee import references

if __name__ == '__main__':
  doors.call(references.main, references.FLAGS, references.__doc__)
