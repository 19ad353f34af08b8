"""The noise predictor: the UNet of Stable Diffusion 1.x; `in_channels` tells the systems apart."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from exedit.models import blocks
from exedit.models.attention import SpatialTransformer

Constants = tuple[Float[Array, 'bk 1 _'], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
  """What stays the same while one edit is sampled (design: exact shortcuts 1 and 3).

  stem: conv_in's share of the still channels and its bias, [b h w channels].
  context: one constant per cross-attention, in the order of the layers, [bk 1 c] each; or the
    tokens [bk n d] themselves where there is more than one.
  """

  stem: jax.Array
  context: jax.Array | tuple[jax.Array, ...]


def _remat(block: nnx.Module, policy: str, *args, **static):
  """Call a block, recomputing it in the backward pass as `policy` says.

  'none' keeps everything; 'block' keeps only the block's inputs; 'conv1' keeps the inputs and each
  ResBlock's first convolution (the dots policies of JAX do not see convolutions: facts 1.6).
  """
  if policy == 'none':
    return block(*args, **static)
  keep = dict(
    block=jax.checkpoint_policies.nothing_saveable,
    conv1=jax.checkpoint_policies.save_only_these_names('conv1'),
  )
  if policy not in keep:
    raise ValueError(f"remat is '{policy}'; use one of none, {', '.join(keep)}")
  # nnx.remat refuses a module of an outer trace (a sampler's scan); plain arrays it does not.
  graphdef, params = nnx.split(block)
  call = lambda params, *args: nnx.merge(graphdef, params)(*args, **static)
  return jax.checkpoint(call, policy=keep[policy])(params, *args)


class Level(nnx.Module):
  """The blocks of one resolution: ResBlocks, each followed by attention where the level has it."""

  def __init__(self, widths: Sequence[tuple[int, int]], attend: bool, resize, res, attention):
    self.resnets = nnx.List([res(i, o) for i, o in widths])
    self.attentions = nnx.List([attention(o) for _, o in widths] if attend else [])
    self.resize = resize


class UNet(nnx.Module):
  """Predicts the noise: `eps = unet(x, t, context)` (LDM openaimodel.py UNetModel, facts 1.1).

  x [b h w in_channels], t [b] integers, context [b n context_dim]. h and w must be multiples of
  `2 ** (len(mult) - 1)`. A context of one token takes an exact shortcut: each cross-attention is
  the constant `to_out(to_v(context))`. The context's batch may be k b, all examples under their
  first context, then all under their second, ...: what comes before the first cross-attention is
  then computed once, and eps is [k b h w out_channels].
  """

  def __init__(
    self,
    *,
    in_channels: int = 9,
    out_channels: int = 4,
    channels: int = 320,
    mult: Sequence[int] = (1, 2, 4, 4),
    layers: int = 2,
    attention_levels: Sequence[int] = (0, 1, 2),
    heads: int = 8,
    context_dim: int = 768,
    groups: int = 32,
    attention: Literal['xla', 'cudnn'] | None = None,
    remat: str = 'none',
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    def res(inputs, outputs):
      return blocks.ResBlock(inputs, outputs, temb=temb, groups=groups, dtype=dtype, rngs=rngs)

    def attend(width):
      return SpatialTransformer(
        width,
        heads=heads,
        context_dim=context_dim,
        groups=groups,
        implementation=attention,
        dtype=dtype,
        rngs=rngs,
      )

    temb = 4 * channels
    widths = [channels * m for m in mult]
    last = len(widths) - 1
    self.channels, self.remat, self.dtype = channels, remat, dtype
    self.multiple = 2**last
    self.conv_in = blocks.conv(in_channels, channels, dtype=dtype, rngs=rngs)
    self.time1 = nnx.Linear(channels, temb, dtype=dtype, rngs=rngs)
    self.time2 = nnx.Linear(temb, temb, dtype=dtype, rngs=rngs)

    down, skips, width = [], [channels], channels
    for i, w in enumerate(widths):
      resize = blocks.Down(w, dtype=dtype, rngs=rngs) if i < last else None
      pairs = [(width if j == 0 else w, w) for j in range(layers)]
      down.append(Level(pairs, i in attention_levels, resize, res, attend))
      skips += [w] * (layers + (i < last))
      width = w
    self.down = nnx.List(down)
    self.mid1, self.mid_attention, self.mid2 = res(width, width), attend(width), res(width, width)

    up = []
    for i, w in reversed(list(enumerate(widths))):
      pairs = []
      for _ in range(layers + 1):
        pairs.append((width + skips.pop(), w))
        width = w
      resize = blocks.Up(w, dtype=dtype, rngs=rngs) if i > 0 else None
      up.append(Level(pairs, i in attention_levels, resize, res, attend))
    self.up = nnx.List(up)
    self.norm_out = blocks.group_norm(channels, eps=1e-5, groups=groups, rngs=rngs)
    self.conv_out = blocks.conv(channels, out_channels, zero=True, dtype=dtype, rngs=rngs)

  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    t: Int[Array, ' b'],
    context: Float[Array, 'bk n d'] | Constants,
  ) -> Float[Array, 'bk h w out']:
    return self._body(self.conv_in(x), t, context)

  def constants(self, context: Float[Array, 'b 1 d']) -> Constants:
    """Every cross-attention's output for a context of one token, in the order of the layers."""
    return tuple(layer.attn2.constant(context) for layer in self._transformers())

  def prepare(self, still: Float[Array, 'b h w s'], context: Float[Array, 'bk n d']) -> Prepared:
    """Compute once per edit what no sampling step changes."""
    kernel = self.conv_in.kernel[...][:, :, -still.shape[-1] :]
    assert self.conv_in.bias is not None  # nnx.Conv could have been made without
    stem = _conv(still, kernel, self.dtype)
    stem += self.conv_in.bias[...].astype(self.dtype)[None, None, None]
    return Prepared(stem, self.constants(context) if context.shape[1] == 1 else context)

  def denoise(
    self,
    x_t: Float[Array, 'b h w z'],
    t: Int[Array, ' b'],
    prepared: Prepared,
    *,
    shortcut: bool = True,
  ) -> Float[Array, 'bk h w out']:
    """The same as calling on [x_t, still] and the context that were prepared.

    Without `shortcut` a context that is one token is attended to as any other is.
    """
    kernel = self.conv_in.kernel[...][:, :, : x_t.shape[-1]]
    h = _conv(x_t, kernel, self.dtype) + prepared.stem
    return self._body(h, t, prepared.context, shortcut)

  def general(
    self, x: Float[Array, 'b h w c'], t: Int[Array, ' b'], context: Float[Array, 'bk n d']
  ) -> Float[Array, 'bk h w out']:
    """Call without the one-token shortcut; what the shortcut must equal."""
    return self._body(self.conv_in(x), t, context, shortcut=False)

  def _transformers(self):
    for level in self.down:
      yield from level.attentions
    yield self.mid_attention
    for level in self.up:
      yield from level.attentions

  def _body(self, h, t, context, shortcut: bool = True) -> Float[Array, 'bk h w out']:
    if h.shape[1] % self.multiple or h.shape[2] % self.multiple:
      raise ValueError(
        f'the UNet takes heights and widths that are multiples of {self.multiple}, '
        f'not {h.shape[1]} x {h.shape[2]}: choose another image size'
      )
    temb = blocks.timestep_embedding(t, self.channels)
    temb = self.time2(jax.nn.silu(self.time1(temb)))
    if shortcut and not isinstance(context, tuple) and context.shape[1] == 1:
      context = self.constants(context)
    constant = isinstance(context, tuple)
    remaining = iter(context if constant else ())

    def res(block, h):
      return _remat(block, self.remat, h, blocks.tile(temb, h))

    def attend(block, h):
      own = next(remaining) if constant else context
      return _remat(block, self.remat, h, own, constant=constant)

    skips = [h]
    for level in self.down:
      for j, block in enumerate(level.resnets):
        h = res(block, h)
        h = attend(level.attentions[j], h) if level.attentions else h
        skips.append(h)
      if level.resize is not None:
        h = level.resize(h)
        skips.append(h)
    h = res(self.mid2, attend(self.mid_attention, res(self.mid1, h)))
    for level in self.up:
      for j, block in enumerate(level.resnets):
        h = res(block, jnp.concatenate([h, blocks.tile(skips.pop(), h)], -1))
        h = attend(level.attentions[j], h) if level.attentions else h
      h = h if level.resize is None else level.resize(h)
    return self.conv_out(jax.nn.silu(self.norm_out(h))).astype(jnp.float32)


def _conv(x, kernel, dtype):
  """conv_in on part of its input channels."""
  return jax.lax.conv_general_dilated(
    x.astype(dtype),
    kernel.astype(dtype),
    (1, 1),
    ((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
