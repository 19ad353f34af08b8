"""The door: python -m input_pipeline.coco_ee."""

import sys

from .bench import main

main(sys.argv)
