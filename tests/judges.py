"""Small feature networks with random weights, in the layouts of their publishers."""

import jax
import numpy as np

from exedit.models import parameters
from exedit.models.clip import CLIPImageEncoder
from exedit.models.dino import DINO
from exedit.models.lpips import LPIPS
from exedit.weights import translate
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.tables import clip_image, dino, lpips
from tests.networks import with_random_weights

TOWER = dict(width=64, layers=2, heads=1, mlp=96, patch=8, image_size=32)
DIM = 12  # of the CLIP's features
CLIP, VIT = 'clip_64x2p8s32', 'dino_64x2p8s32'  # the names of networks of these sizes


def write(folder, seed=0) -> dict[str, str]:
  """Write a CLIP, a DINO and an LPIPS; return their paths by the names of `config.features`."""
  folder.mkdir(parents=True)
  build = lambda cls, *args, **sizes: (
    lambda: cls(*args, **sizes, rngs=parameters.Keys(jax.random.key(0)))
  )
  networks = dict(
    clip=(build(CLIPImageEncoder, vision=TOWER, dim=DIM), clip_image.OPENAI, 0.2),
    dino=(build(DINO, **TOWER), dino.ORIGINAL, 0.2),
    lpips=(build(LPIPS, 'alex'), lpips.TABLES['alex'], 0.03),
  )
  paths = {}
  for name, (make, table, scale) in networks.items():
    model = with_random_weights(make, seed, scale)
    arrays = {key: np.asarray(value) for key, value in parameters.flatten(model)[1].items()}
    tensors = translate.to_theirs(table, arrays)
    paths[name] = str(folder / f'{name}.safetensors')
    save_tensors(
      folder / f'{name}.safetensors',
      {key: 50 * np.abs(x) if key.startswith('lin') else x for key, x in tensors.items()},
    )
  return paths
