"""Custom-Edit's comparison (arXiv 2305.15779, figure 4): source against reference over strengths.

  python -m exedit.evaluate --config=configs/custom_edit_sweep.py --output=scores \
      --config.edits=edits.csv --config.features.clip_b32=openai/clip-vit-base-patch32 \
      --config.features.dino_s16=facebook/dino-vits16

edits.csv has a row per edit, made by any program: method, strength, image (the source), references
(a folder of pictures), output (the edit), and perhaps target (its prompt) and id. The output is
curves.csv, figure.svg and a page with the paper's points, read off its figure.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  path = lambda: config_dict.placeholder(str)
  number = lambda: config_dict.placeholder(float)
  return ml_collections.ConfigDict(
    dict(
      bench='custom_edit_sweep',  # which benchmark this config is for
      edits='edits.csv',
      # Where methods are compared, in similarity to the source x 100. None: the middle, and the
      # whole, of what all of them reach.
      at=number(),
      low=number(),
      high=number(),
      # The networks: files, folders or hub ids. A clip needs both towers and its tokenizer.
      features=dict(clip_b32=path(), clip=path(), dino_s16=path(), dino=path()),
      cache=path(),  # folder of the features; None: one in the user's cache folder
    )
  )
