"""Settings for tests/toy.py under benchmarks/soak.py: with data workers, and many checkpoints."""

import ml_collections

from tests import toy_config


def get_config(root: str) -> ml_collections.ConfigDict:
  """`root`: the folder of the synthetic shards."""
  config = toy_config.get_config(root)
  config.update(dict(steps=60, save_every=3, edit_every=30))
  config.data.workers = 1
  config.synthetic.scenes = 128
  return config
