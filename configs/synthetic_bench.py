"""Identification on held-out synthetic edits, against the right exemplar and a shuffled one.

  python -m exedit.evaluate --config=configs/synthetic_bench.py --weights=weights/tiny

Scenes and objects that training never drew, at the size the weights were trained at. Chance is
1 / truths. 256 edits give a 95 % interval of about +-0.06; on two CPU cores `pbe.py:tiny` takes
about a minute. Settings that are None here are the weights' own (the group `edit` of their config).
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      bench='synthetic',  # which benchmark this config is for
      edits=256,
      seed=0,
      truths=10,
      batch_size=32,
      steps=config_dict.placeholder(int),
      scale=config_dict.placeholder(float),
      sampler=config_dict.placeholder(str),
    )
  )
