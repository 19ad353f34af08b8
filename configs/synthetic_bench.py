"""Identification on held-out synthetic edits, with the right exemplars and with shuffled ones.

  python -m exedit.evaluate --config=configs/synthetic_bench.py --weights=weights/tiny

The scenes and objects are held out from training, drawn in the version and at the size that the
weights were trained at. `kind` says how the truths differ:

  look     subject, pattern and colours
  shape    the subject alone
  pattern  the pattern alone: there are five truths
  text     pictures of held-out captions, by a system that needs a text alone

The last three need scenes of version 2. Chance is 1 / truths. 256 edits give a 95 % interval of
about +-0.06. On two CPU cores `pbe.py:tiny` takes about a minute. None means the weights' own
setting (the group `edit` of their config).
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      bench='synthetic',  # which benchmark this config is for
      edits=256,
      seed=0,
      kind='look',
      truths=config_dict.placeholder(int),  # 10, or 5 patterns
      batch_size=32,
      steps=config_dict.placeholder(int),
      scale=config_dict.placeholder(float),
      sampler=config_dict.placeholder(str),
      guidance_interval=config_dict.placeholder(str),  # such as '0.2,0.8'
    )
  )
