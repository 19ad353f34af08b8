"""What a training starts from: Paint by Example of any layout, or Stable Diffusion and CLIP."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exedit.runtime.errors import UserError
from exedit.weights import find as source
from exedit.weights.find import Weights
from exedit.weights.formats.tensor import Tensor

CONV_IN = 'unet.conv_in.kernel'


def find(
  init_from: str | None,
  init_clip: str | None,
  shapes: Mapping[str, Any],
  check: Callable[[Mapping[str, Any], Sequence[str], str], None],
) -> dict[str, Tensor]:
  """Tensors by our paths, unread; parameters that no source holds are absent.

  init_from: Paint by Example weights, or Stable Diffusion 1.x for text, whose conv_in gets channels
  of zeros for the masked image and the mask (PbE scripts/modify_checkpoints.py). init_clip: the
  image tower that Stable Diffusion lacks. shapes: of the model that will be trained. check(settings
  of the source, parts, its name) raises where they are not the model's.
  Raises:
    UserError: for a source that cannot be used, or is of another architecture.
  """
  tensors: dict[str, Tensor] = {}
  if init_from:
    weights = source.find(init_from)
    by_words = weights.kind == 'stable_diffusion'
    if by_words and not init_clip:
      raise UserError(
        f'{init_from} is Stable Diffusion, which has no image tower: give one as '
        '--config.init_clip=openai/clip-vit-large-patch14, or as a folder or file'
      )
    if init_clip and not by_words:
      raise UserError(f'{init_from} has its own image tower: leave out --config.init_clip')
    parts = ('unet', 'autoencoder') if by_words else ('unet', 'autoencoder', 'clip', 'conditioner')
    check(weights.config['model'], (*parts, 'schedule', 'context_dim'), init_from)
    like = {name: a for name, a in shapes.items() if name.split('.')[0] in parts}
    tensors = _widened(weights, like) if by_words else weights.fit(like)
  if init_clip:
    tower = source.find_clip(init_clip)
    check(tower.config['model'], ('clip',), init_clip)
    tensors |= tower.fit({name: a for name, a in shapes.items() if name.startswith('clip.')})
  return tensors


def _widened(weights: Weights, like: Mapping[str, Any]) -> dict[str, Tensor]:
  """A text-to-image model's tensors, conv_in with channels of zeros behind its own."""
  h, w, wide, width = like[CONV_IN].shape
  own = weights.tensors[CONV_IN].shape[2]  # as wide already where modify_checkpoints.py was run
  tensors = weights.fit({**like, CONV_IN: jax.ShapeDtypeStruct((h, w, own, width), jnp.float32)})
  kernel = tensors[CONV_IN]
  read = lambda: np.pad(kernel.read(), ((0, 0), (0, 0), (0, wide - own), (0, 0)))
  return {**tensors, CONV_IN: Tensor((h, w, wide, width), kernel.dtype, read)}


def require_same(
  theirs: Mapping[str, Any], ours: Mapping[str, Any], parts: Sequence[str], where: str
) -> None:
  """UserError where complete settings mean different networks, even of the same shapes."""
  for part in parts:
    a, b = (s[part] if isinstance(s[part], dict) else {'': s[part]} for s in (theirs, ours))
    for name in {**a, **b}:
      if a.get(name) != b.get(name):
        path = f'{part}.{name}'.rstrip('.')
        raise UserError(
          f'{where} is of another architecture: {path} is {a.get(name)} there and {b.get(name)} in '
          'config.model; make them equal'
        )
