"""Settings for tests/toy.py, with the keys of configs/pbe.py."""

import ml_collections
from ml_collections import config_dict


def get_config(root: str) -> ml_collections.ConfigDict:
  """`root`: the folder of the synthetic shards."""
  return ml_collections.ConfigDict(
    dict(
      system='toy',
      seed=7,
      steps=20,
      batch_size=8,
      accumulate=1,
      log_every=1,
      save_every=4,
      edit_every=0,
      max_bad_steps=3,
      trainable='unet',
      init_from=config_dict.placeholder(str),
      data=dict(root=root, split='train', size=16, exemplar_size=16, threads=1),
      synthetic=dict(scenes=32, val_scenes=8, seed=0, shards=1),
      model=dict(width=64, explode=(0, 0)),
      optimizer=dict(lr=1e-2, warmup=2),
      ema=dict(decay=0.99),
      mesh=dict(
        sharding='data',
        data=config_dict.placeholder(int),
        fsdp=config_dict.placeholder(int),
      ),
      checkpoint=dict(keep=3),
      edit=dict(count=2, scale=1.0),
    )
  )
