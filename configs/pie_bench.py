"""PIE-Bench (arXiv 2310.01506): how well a folder of edits by text keeps and changes.

  python -m exedit.evaluate --config=configs/pie_bench.py --images=RESULTS --output=scores \\
      --config.data.root=PIE-Bench_v1 --config.features.dino_b8=facebook/dino-vitb8 \\
      --config.features.clip_l14=openai/clip-vit-large-patch14 --config.features.lpips_squeeze=LPIPS

The benchmark has 700 edits of 512x512 in ten types. Its metrics are computed as its published code
does, of the results and of the results with an exactly pasted background, and printed beside the
published table. RESULTS holds one picture per edit, where the source lies below annotation_images.
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
      cache=path(),  # folder of the features; None: one in the user's cache folder
    )
  )
