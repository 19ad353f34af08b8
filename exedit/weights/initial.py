"""The weights that a training starts from: Paint by Example's, or Stable Diffusion's and CLIP's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.formats.tensor import Tensor
from exedit.weights.found import Weights

CONV_IN = 'unet.conv_in.kernel'


def tensors(
  init_from: str | None,
  init_clip: str | None,
  shapes: Mapping[str, Any],
  check: Callable[[Mapping[str, Any], Sequence[str], str], None],
  clip_heads: int | None = None,
) -> dict[str, Tensor]:
  """Returns unread tensors by exedit's paths, without the parameters that no source has.

  init_from: Paint by Example weights; or Stable Diffusion 1.x for text, whose conv_in gets channels
    of zeros for the masked image and the mask (PbE scripts/modify_checkpoints.py).
  init_clip: the image tower, which Stable Diffusion lacks.
  shapes: the shapes of the model that will be trained, by path.
  check: check(settings of the source, parts, name of the source) raises if they differ from the
    model's.
  clip_heads: those of the model's tower, for a file from which they cannot be told.
  Raises:
    UserError: if a source cannot be used, or has another architecture.
  """
  found: dict[str, Tensor] = {}
  if init_from:
    weights = find.weights(init_from, to_start=True)
    if weights.kind == 'stable_diffusion_inpainting':
      # A change of weights can invert the mask only inside the picture: at the border the
      # convolution pads with zeros, which mean the opposite in the two models.
      raise UserError(
        f'{init_from} is an inpainting model of Stable Diffusion: as many channels as Paint by '
        'Example has, but the mask before the masked image, and 1 where this one has 0, which no '
        'change of weights makes exact at the border; start from the text-to-image model instead'
      )
    by_text = weights.kind == 'stable_diffusion'
    if by_text and not init_clip:
      raise UserError(
        f'{init_from} is Stable Diffusion, which has no image tower: give one as '
        '--config.init_clip=openai/clip-vit-large-patch14, or as a folder or file'
      )
    if init_clip and not by_text:
      raise UserError(f'{init_from} has its own image tower: leave out --config.init_clip')
    parts = ('unet', 'autoencoder') if by_text else ('unet', 'autoencoder', 'clip', 'conditioner')
    check(weights.config['model'], (*parts, 'schedule', 'context_dim'), init_from)
    like = {name: a for name, a in shapes.items() if name.split('.')[0] in parts}
    found = _widened(weights, like) if by_text else weights.fit(like)
  if init_clip:
    tower = find.clip_tower(init_clip, clip_heads)
    check(tower.config['model'], ('clip',), init_clip)
    found |= tower.fit({name: a for name, a in shapes.items() if name.startswith('clip.')})
  return found


def _widened(weights: Weights, like: Mapping[str, Any]) -> dict[str, Tensor]:
  """The tensors of a text-to-image model, with channels of zeros appended to conv_in's inputs."""
  h, w, wide, width = like[CONV_IN].shape
  own = weights.tensors[CONV_IN].shape[2]  # already `wide` if modify_checkpoints.py was run
  found = weights.fit({**like, CONV_IN: jax.ShapeDtypeStruct((h, w, own, width), jnp.float32)})
  kernel = found[CONV_IN]
  read = lambda: np.pad(kernel.read(), ((0, 0), (0, 0), (0, wide - own), (0, 0)))
  return {**found, CONV_IN: Tensor((h, w, wide, width), kernel.dtype, read)}


def require_same(
  theirs: Mapping[str, Any], ours: Mapping[str, Any], parts: Sequence[str], where: str
) -> None:
  """Raises UserError if complete settings mean different networks, even of the same shapes."""
  for part in parts:
    a, b = (s[part] if isinstance(s[part], dict) else {'': s[part]} for s in (theirs, ours))
    for name in {**a, **b}:
      if a.get(name) != b.get(name):
        path = f'{part}.{name}'.rstrip('.')
        raise UserError(
          f'{where} is of another architecture: {path} is {a.get(name)} there and {b.get(name)} in '
          'config.model; make them equal'
        )
