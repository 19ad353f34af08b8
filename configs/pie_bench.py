"""PIE-Bench (arXiv 2310.01506): how well edits by text keep and change.

  python -m exedit.evaluate --config=configs/pie_bench.py --output=scores \\
      --weights=CompVis/stable-diffusion-v1-4 \\
      --config.data.root=PIE-Bench_v1 --config.features.dino_b8=facebook/dino-vitb8 \\
      --config.features.clip_l14=openai/clip-vit-large-patch14 --config.features.lpips_squeeze=LPIPS

The benchmark has 700 edits of 512x512 in ten types. Its metrics are computed as its published code
does, of the results and of the results with an exactly pasted background, and printed beside the
published table. --images=RESULTS instead of --weights scores the results of any program: one
picture per edit, where the source lies below annotation_images.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  path = lambda: config_dict.placeholder(str)
  return ml_collections.ConfigDict(
    dict(
      bench='pie_bench',  # which benchmark this config is for
      data=dict(root='PIE-Bench_v1', mapping='mapping_file.json'),
      # The networks: files, folders or hub ids. dino, lpips and clip may be any of their kind, and
      # the metrics tell which. A clip needs both towers and its tokenizer.
      features=dict(
        dino_b8=path(),
        dino=path(),
        lpips_squeeze=path(),
        lpips=path(),
        clip_l14=path(),
        clip=path(),
      ),
      # Settings of the edits that --weights makes, as `exedit.sample` has them; None: the default.
      edit=dict(
        steps=config_dict.placeholder(int),
        scale=config_dict.placeholder(float),
        strength=config_dict.placeholder(float),
        inversion=path(),
        cross=path(),
        blend=path(),
      ),
      cache=path(),  # folder of the features; None: one in the user's cache folder
    )
  )
