"""Small feature networks with random weights, in the layouts of their publishers."""

import jax
import numpy as np

from exedit.models import parameters
from exedit.models.clip import CLIPImageEncoder
from exedit.models.clip_text import CLIPTextEncoder
from exedit.models.dino import DINO
from exedit.models.lpips import LPIPS
from exedit.weights import translate
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.tables import clip_image, clip_text, dino, lpips
from tests import vocabulary
from tests.networks import with_random_weights

TEXT = dict(length=9, width=64, layers=1, heads=1, mlp=96)
TOWER = dict(width=64, layers=2, heads=1, mlp=96, patch=8, image_size=32)
DIM = 12  # of the CLIP's features
CLIP, VIT = 'clip_64x2p8s32', 'dino_64x2p8s32'  # the names of networks of these sizes


def write(folder, seed=0, net='alex', words=()) -> dict[str, str]:
  """Write a CLIP, a DINO and an LPIPS; return their paths by the names of `config.features`.

  words: the vocabulary of the CLIP's text tower, which is left out without them.
  """
  folder.mkdir(parents=True)
  build = lambda cls, *args, **sizes: (
    lambda: cls(*args, **sizes, rngs=parameters.Keys(jax.random.key(0)))
  )
  networks = dict(
    clip=(build(CLIPImageEncoder, vision=TOWER, dim=DIM), clip_image.OPENAI, 0.2),
    dino=(build(DINO, **TOWER), dino.ORIGINAL, 0.2),
    lpips=(build(LPIPS, net), lpips.TABLES[net], 0.03),
  )
  text = {}
  if words:
    sizes = dict(TEXT, vocabulary=vocabulary.write(folder, words))
    build_text = build(CLIPTextEncoder, dim=DIM, text=sizes)
    text = _theirs(with_random_weights(build_text, seed + 1), clip_text.OPENAI)
  paths = {}
  for name, (make, table, scale) in networks.items():
    tensors = _theirs(with_random_weights(make, seed, scale), table)
    tensors |= text if name == 'clip' else {}
    paths[name] = str(folder / f'{name}.safetensors')
    save_tensors(
      folder / f'{name}.safetensors',
      {key: 50 * np.abs(x) if key.startswith('lin') else x for key, x in tensors.items()},
    )
  return paths


def _theirs(model, table) -> dict[str, np.ndarray]:
  arrays = {key: np.asarray(value) for key, value in parameters.flatten(model)[1].items()}
  return translate.to_theirs(table, arrays)
