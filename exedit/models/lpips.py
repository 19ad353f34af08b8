"""LPIPS: the distance of two images in the features of an image classifier."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from exedit.models import blocks

# Mean and deviation of images in [-1, 1], rounded as in version 0.1 (lpips.py ScalingLayer).
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 1, 1, 3)
SCALE = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 1, 1, 3)


class Fire(NamedTuple):
  """SqueezeNet's module: a 1x1 convolution, then a 1x1 and a 3x3 one beside each other."""

  squeeze: int  # outputs of the first
  expand: int  # outputs of each of the others


class Stage(NamedTuple):
  """A max pool of size `pool` and stride 2 (0: none), then convolutions with ReLU."""

  pool: int
  convs: Sequence[tuple[int, int, int, int] | Fire]  # outputs, kernel, stride, padding


Net = Literal['alex', 'vgg', 'squeeze']

# LPIPS compares the output of every stage (arXiv 1801.03924, section 3; pretrained_networks.py).
STAGES = {
  'alex': [
    Stage(0, [(64, 11, 4, 2)]),
    Stage(3, [(192, 5, 1, 2)]),
    Stage(3, [(384, 3, 1, 1)]),
    Stage(0, [(256, 3, 1, 1)]),
    Stage(0, [(256, 3, 1, 1)]),
  ],
  'vgg': [
    Stage(0, [(64, 3, 1, 1)] * 2),
    Stage(2, [(128, 3, 1, 1)] * 2),
    Stage(2, [(256, 3, 1, 1)] * 3),
    Stage(2, [(512, 3, 1, 1)] * 3),
    Stage(2, [(512, 3, 1, 1)] * 3),
  ],
  'squeeze': [  # SqueezeNet 1.1
    Stage(0, [(64, 3, 2, 0)]),
    Stage(3, [Fire(16, 64)] * 2),
    Stage(3, [Fire(32, 128)] * 2),
    Stage(3, [Fire(48, 192)]),
    Stage(0, [Fire(48, 192)]),
    Stage(0, [Fire(64, 256)]),
    Stage(0, [Fire(64, 256)]),
  ],
}
# Pixels per side; smaller pictures leave a pool without pixels.
SMALLEST = {'alex': 31, 'vgg': 16, 'squeeze': 17}
PARTIAL = ('squeeze',)  # their pools count the pixels that do not fill a last window


class LPIPS(nnx.Module):
  """Learned perceptual distance, version 0.1 (arXiv 1801.03924; pip package lpips).

  `lpips(a, b) -> [b]` for images [b h w 3] in [-1, 1], 0 for equal images, without upper bound.
  `lpips.maps(a, b) -> [b h w]` is the distance per pixel, and `lpips.within(a, b, region)` its mean
  over a region.
  """

  def __init__(self, net: Net = 'alex', *, rngs: nnx.Rngs):
    self.net: Net = net
    inputs, convs, weights = 3, [], []
    conv = lambda *sizes, **more: convs.append(blocks.conv(*sizes, **more, rngs=rngs))
    for stage in STAGES[net]:
      for made in stage.convs:
        if isinstance(made, Fire):
          conv(inputs, made.squeeze, 1)
          conv(made.squeeze, made.expand, 1)
          conv(made.squeeze, made.expand, 3, padding=1)
          inputs = 2 * made.expand
        else:
          outputs, size, stride, padding = made
          conv(inputs, outputs, size, strides=stride, padding=padding)
          inputs = outputs
      weights.append(nnx.Param(jnp.ones(inputs)))
    self.convs = nnx.List(convs)
    self.weights = nnx.List(weights)

  def __call__(self, a: Float[Array, 'b h w 3'], b: Float[Array, 'b h w 3']) -> Float[Array, ' b']:
    return jnp.stack([x.mean((1, 2)) for x in self._differences(a, b)]).sum(0)

  def maps(self, a: Float[Array, 'b h w 3'], b: Float[Array, 'b h w 3']) -> Float[Array, 'b h w']:
    """The distance at every pixel, enlarged bilinearly per stage (lpips.py, spatial=True)."""
    enlarge = lambda x: jax.image.resize(x, a.shape[:3], 'linear', antialias=False)
    return jnp.stack([enlarge(x) for x in self._differences(a, b)]).sum(0)

  def within(
    self, a: Float[Array, 'b h w 3'], b: Float[Array, 'b h w 3'], region: Bool[Array, 'b h w']
  ) -> Float[Array, ' b']:
    """The mean of `maps` over a region that is not empty."""
    return (self.maps(a, b) * region).sum((1, 2)) / region.sum((1, 2))

  def _differences(self, a, b) -> list[Array]:
    """The weighted squared difference of directions [b h w] of each stage, at its resolution."""
    height, width = a.shape[1:3]
    if min(height, width) < SMALLEST[self.net]:
      raise ValueError(
        f'LPIPS ({self.net}) got images of {height}x{width}: it needs at least'
        f' {SMALLEST[self.net]} pixels per side'
      )
    both = (jnp.split(_direction(x), 2) for x in self._stages(jnp.concatenate([a, b])))
    squares = [(x - y) ** 2 for x, y in both]
    return [x @ w[...] for x, w in zip(squares, self.weights)]

  def _stages(self, image: Float[Array, 'b h w 3']) -> list[Array]:
    x, outputs, convs = (image - SHIFT) / SCALE, [], iter(self.convs)
    step = lambda x: jax.nn.relu(next(convs)(x))
    for stage in STAGES[self.net]:
      if stage.pool:
        x = self._pooled(x, stage.pool)
      for made in stage.convs:
        x = step(x)
        if isinstance(made, Fire):
          x = jnp.concatenate([step(x), step(x)], -1)
      outputs.append(x)
    return outputs

  def _pooled(self, x: Float[Array, 'b h w c'], size: int) -> Float[Array, 'b p q c']:
    rest = ((side - size) % 2 if self.net in PARTIAL else 0 for side in x.shape[1:3])
    padding: Any = [(0, more) for more in rest]  # flax declares it as a str
    return nnx.max_pool(x, (size, size), strides=(2, 2), padding=padding)


def _direction(x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
  """Unit vectors over the channels, with the eps of lpips normalize_tensor."""
  return x / (jnp.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10)
