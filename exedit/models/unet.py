"""The UNet of Stable Diffusion 1.x, which predicts the noise of a latent."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from exedit.models import blocks
from exedit.models.attention import SpatialTransformer
from exedit.models.attention_edits import Edit
from exedit.models.kernels import Implementation

WORD_LEVEL = 2

Constants = tuple[Float[Array, 'bk 1 _'], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
  """The results that all sampling steps of an edit share (docs/design.md, "Exact shortcuts").

  stem: conv_in of the channels that do not change, with its bias, [b h w channels]; the bias alone,
    [1 1 1 channels], if all of them change.
  context: for a one-token context one constant [bk 1 c] per cross-attention, in the order of the
    layers; for a longer context its tokens [bk n d].
  """

  stem: jax.Array
  context: jax.Array | tuple[jax.Array, ...]


def _remat(block: nnx.Module, policy: str, *args, **static):
  """Call a block; `policy` says what its backward pass computes again.

  'none' saves every activation. 'block' saves only the block's inputs. 'conv1' saves the inputs and
  the first convolution of each ResBlock, because JAX's own dots policies ignore convolutions.
  """
  if policy == 'none':
    return block(*args, **static)
  keep = dict(
    block=jax.checkpoint_policies.nothing_saveable,
    conv1=jax.checkpoint_policies.save_only_these_names('conv1'),
  )
  if policy not in keep:
    raise ValueError(f"remat is '{policy}'; use one of none, {', '.join(keep)}")
  # nnx.remat rejects modules of an outer trace (a sampler's scan), so this splits off the arrays.
  graphdef, params = nnx.split(block)
  call = lambda params, *args: nnx.merge(graphdef, params)(*args, **static)
  return jax.checkpoint(call, policy=keep[policy])(params, *args)


class Level(nnx.Module):
  """The blocks of one resolution: ResBlocks, each followed by attention if `attend`."""

  def __init__(self, widths: Sequence[tuple[int, int]], attend: bool, resize, res, attention):
    self.resnets = nnx.List([res(i, o) for i, o in widths])
    self.attentions = nnx.List([attention(o) for _, o in widths] if attend else [])
    self.resize = resize


class UNet(nnx.Module):
  """The noise predictor `eps = unet(x, t, context)` (LDM openaimodel.py UNetModel).

  x [b h w in_channels], t [b] integers, context [b n context_dim]. h and w must be multiples of
  `2 ** (len(mult) - 1)`. Two exact shortcuts apply (docs/design.md, "Exact shortcuts"). For a
  context of one token each cross-attention is the constant `to_out(to_v(context))`, unless
  `shortcut=False`. The context's batch may be k b, first all examples' first contexts, then all
  second ones, and so on; then the layers before the first cross-attention run once, and eps is
  [k b h w out_channels].

  An `edit` (`attention_edits.Edit`) changes the attention of some rows. With `watch`, a level with
  attention, the maps of the context's tokens, averaged over the layers of that level, come with
  eps: [s h w n], of every row, or of the edit's targets only.

  channels: width of the first level. mult: width of each level, as a multiple of it. layers: number
    of ResBlocks of each level.
  attention_levels: the levels with attention, counted from 0. heads: number of heads of each.
  groups: number of groups of each group norm.
  remat: what is computed again in the backward pass, 'none', 'block' or 'conv1'.
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
    attention: Implementation = None,
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

    blocks.require_sizes(
      'unet',
      channels=channels,
      mult=mult,
      layers=layers,
      heads=heads,
      groups=groups,
      context_dim=context_dim,
    )
    if channels % 2:
      raise ValueError(f'unet.channels is {channels}: half of them are sines, so it must be even')
    temb = 4 * channels
    widths = [channels * m for m in mult]
    attending = {w for i, w in enumerate(widths) if i in attention_levels} | {widths[-1]}
    if any(w % heads for w in attending):
      raise ValueError(
        f'unet.heads is {heads}: it must divide every width with attention, {sorted(attending)}'
      )
    last = len(widths) - 1
    self.channels, self.remat, self.dtype = channels, remat, dtype
    self.multiple = 2**last
    self.conv_in = blocks.conv(in_channels, channels, dtype=dtype, rngs=rngs)
    self.time1 = blocks.linear(channels, temb, dtype=dtype, rngs=rngs)
    self.time2 = blocks.linear(temb, temb, dtype=dtype, rngs=rngs)

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
    *,
    shortcut: bool = True,
    edit: Edit | None = None,
    watch: int | None = None,
  ) -> Float[Array, 'bk h w out'] | tuple[Float[Array, 'bk h w out'], Float[Array, 's hw ww n']]:
    return self._body(self.conv_in(x), t, context, shortcut, edit, watch)

  def constants(self, context: Float[Array, 'b 1 d']) -> Constants:
    """The outputs of all cross-attentions for a one-token context, in the order of the layers."""
    return tuple(layer.attn2.constant(context) for layer in self._transformers())

  def prepare(
    self, still: Float[Array, 'b h w s'] | None, context: Float[Array, 'bk n d']
  ) -> Prepared:
    """Compute what all sampling steps of an edit share.

    still: the last channels of x, which do not change. None: there are none.
    """
    assert self.conv_in.bias is not None  # blocks.conv always makes one
    stem = self.conv_in.bias[...].astype(self.dtype)[None, None, None]
    if still is not None:
      kernel = self.conv_in.kernel[...][:, :, -still.shape[-1] :]
      stem = _conv(still, kernel, self.dtype) + stem
    return Prepared(stem, self.constants(context) if context.shape[1] == 1 else context)

  def denoise(
    self,
    x_t: Float[Array, 'b h w z'],
    t: Int[Array, ' b'],
    prepared: Prepared,
    *,
    shortcut: bool = True,
  ) -> Float[Array, 'bk h w out']:
    """The same as a call with [x_t, still] and the context that were given to `prepare`."""
    kernel = self.conv_in.kernel[...][:, :, : x_t.shape[-1]]
    h = _conv(x_t, kernel, self.dtype) + prepared.stem
    return self._body(h, t, prepared.context, shortcut)

  def word_level(self) -> int:
    """The level whose maps tell best where a word is: the third, or the last one before it.

    Prompt-to-Prompt's are those of a quarter of the latents' height and width.

    Raises:
      ValueError: for a network without attention in its first three levels.
    """
    with_maps = [i for i, level in enumerate(self.down) if level.attentions and i <= WORD_LEVEL]
    if not with_maps:
      raise ValueError('this UNet has no attention in its first levels, so words have no maps')
    return with_maps[-1]

  def _transformers(self):
    for level in self.down:
      yield from level.attentions
    yield self.mid_attention
    for level in self.up:
      yield from level.attentions

  def _body(self, h, t, context, shortcut: bool, edit=None, watch=None) -> Any:
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

    seen = []

    def attend(block, h, level=None):
      own = next(remaining) if constant else context
      watched = watch is not None and level == watch
      h = _remat(block, self.remat, h, own, edit, constant=constant, watch=watched)
      if watched:
        h, maps = h
        seen.append(maps)
      return h

    skips = [h]
    for i, level in enumerate(self.down):
      for j, block in enumerate(level.resnets):
        h = res(block, h)
        h = attend(level.attentions[j], h, i) if level.attentions else h
        skips.append(h)
      if level.resize is not None:
        h = level.resize(h)
        skips.append(h)
    h = res(self.mid2, attend(self.mid_attention, res(self.mid1, h)))
    for i, level in zip(reversed(range(len(self.up))), self.up):
      for j, block in enumerate(level.resnets):
        h = res(block, jnp.concatenate([h, blocks.tile(skips.pop(), h)], -1))
        h = attend(level.attentions[j], h, i) if level.attentions else h
      h = h if level.resize is None else level.resize(h)
    eps = self.conv_out(jax.nn.silu(self.norm_out(h))).astype(jnp.float32)
    return eps if watch is None else (eps, sum(seen) / len(seen))


def _conv(x, kernel, dtype):
  """conv_in for some of its input channels."""
  return jax.lax.conv_general_dilated(
    x.astype(dtype),
    kernel.astype(dtype),
    (1, 1),
    ((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
