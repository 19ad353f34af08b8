"""Under `launch/test.sh --parity` an absent reference is an error; elsewhere a skipped test."""

import importlib
import os

if os.environ.get('EXEDIT_PARITY'):
  for name in ('torch', 'diffusers', 'transformers', 'skimage', 'sklearn'):
    importlib.import_module(name)
