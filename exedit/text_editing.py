"""Edits a real photo from one text to another: inversion, then Prompt-to-Prompt.

`invert` finds the noisy latents that lead to a photo under its text, and where each word is in it.
`change` samples under the target text, and takes from the source what the tables of
`diffusion.prompt_edits` say (arXiv 2305.15779 for concepts, 2208.01626, 2310.01506). The model is
that of `stable_diffusion`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from exedit import latent_diffusion
from exedit.diffusion import inversion as inversions
from exedit.diffusion import sampling
from exedit.editing.prompt_settings import INVERSIONS, sampled
from exedit.editing.prompts import KEPT, PREFIX
from exedit.models.attention_edits import Edit
from exedit.runtime.errors import UserError

READS = ('direct', 'edit_friendly')  # the source's latents are those of the path
THRESHOLD = 0.3  # of the largest value of a word's map; above it the photo may change
WAIT = 0.2  # the share of the steps before the background is put back
LANES = 8  # the most photos times steps that edit-friendly inversion evaluates at once
SOURCE_SCALE = 3.5  # of guidance while edit-friendly noises are found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inversion:
  """What is known of a photo under its text.

  path: its latents, from the noisiest to its own. seen: the maps of the text's tokens, averaged
  over heads, layers and steps. nulls: the null contexts of each step (null-text). noises: those of
  each ancestral step (edit-friendly).
  """

  path: Float[Array, 'b path h w z']
  seen: Float[Array, 'b mh mw m']
  nulls: Float[Array, 'b steps m c'] | None = None
  noises: Float[Array, 'b steps h w z'] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tables:
  """The edit of each photo: a batch of `prompt_edits.Table`, and the words whose place may change.

  Its steps are those that are sampled, see `prompt_settings.sampled`.

  words: the source's tokens, 1 where they count; all 0: the whole photo may change. new_words: the
  target's tokens, which count if the target's maps are asked too.
  """

  mix: Float[Array, 'b m m']
  own: Float[Array, 'b m']
  gate: Float[Array, 'b steps m']
  hold: Bool[Array, 'b steps']
  words: Float[Array, 'b m']
  new_words: Float[Array, 'b m']


def edit(
  model: Any,
  arrays: dict[str, Array],
  keys: Key[Array, ' b'],
  *,
  inversion: str,
  blend: str,
  steps: int,
  scale: float,
) -> tuple[Float[Array, 'b h w 3'], dict[str, Array]]:
  """`System.edit` of photos with a target; the arrays of `editing.prompts` say how."""
  tables = Tables(**{f.name: arrays[PREFIX + f.name] for f in dataclasses.fields(Tables)})
  tokens, negative = arrays['prompt'], arrays.get('negative_prompt')
  kept = {n.removeprefix(KEPT): array for n, array in arrays.items() if n.startswith(KEPT)}
  known = (
    Inversion(**kept)
    if kept
    else invert(
      model, arrays['image'], tokens, negative,
      method=inversion, steps=steps, scale=scale, keys=keys,
    )
  )  # fmt: skip
  mask = latent_diffusion.resize_mask(arrays['mask'], known.path.shape[2:4], 'nearest')
  given = known, tokens, arrays['target'], tables, negative, mask
  made, region = change(model, *given, method=inversion, scale=scale, both=blend == 'both')
  parts = {f'{KEPT}{f.name}': getattr(known, f.name) for f in dataclasses.fields(Inversion)}
  parts = {} if kept else {name: array for name, array in parts.items() if array is not None}
  return made, dict(region=region, words=known.seen, **parts)


# Inversion


def invert(
  model: Any,
  source: Float[Array, 'b h w 3'],
  tokens: Int[Array, 'b n'],
  negative: Int[Array, 'b n'] | None = None,
  *,
  method: str = 'direct',
  steps: int = 50,
  spacing: str = 'leading',
  scale: float = 7.5,
  offset: int = 1,
  stop_early: bool = True,
  keys: Key[Array, ' b'] | None = None,
) -> Inversion:
  """The inversion of photos under their texts.

  Args:
    source: in [-1, 1], of sides that are multiples of `model.multiple()`.
    method: 'direct' and 'ddim' are DDIM in reverse without guidance; they differ in `change`.
      'negative_prompt' (arXiv 2305.16807) too. 'null_text' then optimises null contexts for the
      scale, in float32. 'edit_friendly' draws the latents of all steps apart from each other.
    offset: the last timestep, see `inversion.timesteps`.
    negative: the text that null-text optimisation starts from. None: the empty text.
    stop_early: see `inversion.null_text`. keys: of the noises of 'edit_friendly', one per photo.
  Raises:
    ValueError: for an unknown method, and 'edit_friendly' without keys.
    UserError: for 'null_text' with networks that do not compute in float32.
  """
  if method not in INVERSIONS:
    raise ValueError(f"method is '{method}'; use one of {', '.join(INVERSIONS)}")
  if method == 'edit_friendly' and keys is None:
    raise ValueError('edit_friendly draws noises: give keys')
  if method == 'null_text' and model.unet.dtype != jnp.float32:
    raise UserError(
      f'inversion null_text needs float32, and these networks compute in {model.unet.dtype}: use '
      '--precision=float32, or another inversion'
    )
  negative = model.empty(len(tokens)) if negative is None else negative
  method = method if method in ('null_text', 'edit_friendly') else 'ddim'  # one program
  how = dict(method=method, steps=steps, spacing=spacing, offset=offset)
  if method == 'null_text':
    how |= dict(scale=float(scale), stop_early=stop_early)
  return latent_diffusion.run(_invert, model, source, tokens, negative, keys, **how)


def _invert(
  graphdef, params, source, tokens, negative, keys,
  *, method, steps, spacing, offset, scale=1.0, stop_early=True,
):  # fmt: skip
  """The compiled part of `invert`."""
  model = nnx.merge(graphdef, params)
  z = model.autoencoder.encode(source)
  found = inversions.timesteps(model.schedule, steps, spacing, offset)
  context, null = model.text(tokens), model.text(negative)
  predict, seen_by = _predictor(model), _watching(model)
  if method == 'edit_friendly':
    noise = jax.vmap(lambda key: jax.random.normal(key, (len(found), *z.shape[1:])))(keys)
    denoise = seen_by(context, null, SOURCE_SCALE)
    most = max(1, LANES // len(z))
    at_once = max(n for n in range(1, most + 1) if len(found) % n == 0)  # no second program
    given = z, _steps_first(noise), found, model.schedule, at_once
    path, noises, seen = inversions.edit_friendly(denoise, *given)
    return Inversion(_rows_first(path), seen, noises=_rows_first(noises))
  path, seen = inversions.ddim(seen_by(context), z, found, model.schedule)
  if method != 'null_text':
    return Inversion(_rows_first(path), seen)
  eps = lambda x, t: predict(x, t, context)
  settings = found, model.schedule, scale, stop_early
  nulls = inversions.null_text(predict, path, eps, null, *settings)
  return Inversion(_rows_first(path), seen, nulls=_rows_first(nulls))


def _predictor(model):
  return lambda x, t, context: model.schedule.eps(model.unet(x, t, context), x, t)


def _watching(model):
  """A function of contexts that makes a denoiser which also gives the maps of the text's tokens."""
  level = model.unet.word_level()

  def of(context, null=None, scale=1.0):
    def denoise(x, t):
      if null is None:
        output, maps = model.unet(x, t, context, watch=level)
        return model.schedule.eps(output, x, t), maps
      both = jnp.concatenate([null, context])
      output, maps = model.unet(_twice(x), _twice(t), both, watch=level)
      without, eps = jnp.split(model.schedule.eps(output, _twice(x), _twice(t)), 2)
      return without + scale * (eps - without), maps[len(x) :]

    return denoise

  return of


def _twice(a):
  return jnp.concatenate([a, a])


def _steps_first(a):
  return jnp.moveaxis(a, 1, 0)


_rows_first = _steps_first


# Changing


def change(
  model: Any,
  known: Inversion,
  tokens: Int[Array, 'b n'],
  target: Int[Array, 'b n'],
  tables: Tables,
  negative: Int[Array, 'b n'] | None = None,
  mask: Shaped[Array, 'b lh lw 1'] | None = None,
  *,
  method: str = 'direct',
  scale: float = 7.5,
  spacing: str = 'leading',
  offset: int = 1,
  both: bool = False,
) -> tuple[Float[Array, 'b h w 3'], Float[Array, 'b lh lw 1']]:
  """The photos under their target texts, and where they may have changed (1), for each latent.

  Args:
    known: of `invert`, with the same method, spacing and offset. tokens: the text of the inversion.
    tables: what each target takes from its source.
    negative: what guidance leads away from; 'negative_prompt' and 'null_text' have their own.
    mask: where a photo may change, for each latent. A mask of ones alone, or None: where the words
      of the tables are; of these the source's maps count, or with `both` the target's too.
    scale: guidance; the source of 'direct' and 'edit_friendly' needs none, because its latents are
      those of the path.
  """
  negative = model.empty(len(tokens)) if negative is None else negative
  if mask is None:
    mask = jnp.ones((*known.path.shape[:1], *known.path.shape[2:4], 1))
  how = dict(method=method, scale=float(scale), spacing=spacing, offset=offset, both=both)
  given = known, tokens, target, tables, negative, mask
  return latent_diffusion.run(_change, model, *given, **how)


def _change(
  graphdef, params, known, tokens, target, tables, negative, mask,
  *, method, scale, spacing, offset, both,
):  # fmt: skip
  """The compiled part of `change`."""
  model = nnx.merge(graphdef, params)
  b, _, h, w, _ = known.path.shape
  source, null = model.text(tokens), model.text(negative)
  null = source if method == 'negative_prompt' else null
  texts = jnp.concatenate([source, model.text(target)])
  xs, first = _per_step(model, known, tables, method, spacing, offset)
  wait = int(WAIT * tables.hold.shape[1])
  region = _region(known.seen, tables.words, mask)
  reads, two_nulls = method in READS, method in ('ddim', 'null_text')
  level = model.unet.word_level() if both else None
  has_new = tables.new_words.any(-1)[:, None, None, None]
  grown = lambda maps: jnp.maximum(region, has_new * _region(maps, tables.new_words, mask))

  def step(carry, inputs):
    z_source, z_target, maps = carry
    z_source = inputs['now'] if reads else z_source
    change = Edit(*inputs['edit'], most=h * w // 4)
    nulls = inputs['null'] if 'null' in inputs else null
    x = jnp.concatenate([z_source, z_target])
    if scale != 1:
      lanes, without = (x, _twice(nulls)) if two_nulls else (z_target, nulls)
      x, context = jnp.concatenate([lanes, x]), jnp.concatenate([without, texts])
    else:
      context = texts
    t = jnp.full(len(x), inputs['t'])
    output = model.unet(x, t, context, edit=change, watch=level)
    output, more = output if both else (output, 0)
    eps = jnp.split(model.schedule.eps(output, x, t), len(x) // b)
    eps_source, eps_target = eps[-2:]
    if scale != 1:
      eps_target = eps[-3] + scale * (eps_target - eps[-3])
      eps_source = eps[0] + scale * (eps_source - eps[0]) if two_nulls else eps_source
    keep, add, spread = inputs['coefficients']
    noise = spread * inputs['noise'] if 'noise' in inputs else 0
    z_target = keep * z_target + add * eps_target + noise
    z_source = inputs['next'] if reads else keep * z_source + add * eps_source
    maps = maps + more
    free = grown(maps) if both else region
    free = jnp.where(inputs['i'] < wait, 1, free)
    return (z_source, jnp.where(free > 0, z_target, z_source), maps), None

  maps = jnp.zeros_like(known.seen) if both else 0
  start = known.path[:, first]
  (_, z, maps), _ = jax.lax.scan(step, (start, start, maps), xs)
  return model.autoencoder.decode(z), grown(maps) if both else region


def _per_step(model, known, tables, method, spacing, offset):
  """What changes from step to step, with the steps first; and the index of the first step."""
  steps = known.path.shape[1] - 1
  found = inversions.timesteps(model.schedule, steps, spacing, offset)
  first = steps - sampled(steps, method)
  eta = float(method == 'edit_friendly')
  coefficients = sampling.ddim_coefficients(found, model.schedule, eta=eta)
  path, gate = _steps_first(known.path), _steps_first(tables.gate)
  xs = dict(
    t=jnp.asarray(found, jnp.int32),
    coefficients=[jnp.asarray(c, known.path.dtype) for c in coefficients],
    now=path[:-1],
    next=path[1:],
  )
  for name, values in (('null', known.nulls), ('noise', known.noises)):
    if values is not None:
      xs[name] = _steps_first(values)
  xs = jax.tree.map(lambda leaf: leaf[first:], xs)
  change = tables.mix[None] * gate[:, :, None], tables.own[None] * gate + 1 - gate
  xs |= dict(i=jnp.arange(len(gate)), edit=(*change, _steps_first(tables.hold)))
  return xs, first


def _region(
  seen: Float[Array, 'b mh mw m'], words: Float[Array, 'b m'], mask: Float[Array, 'b h w 1']
) -> Float[Array, 'b h w 1']:
  """Where photos may change: their own mask, else where the words are, else everywhere.

  As upstream's LocalBlend: the largest value of 3x3 neighbours, enlarged to the latents, above
  THRESHOLD of the largest one of all.
  """
  score = jnp.einsum('bhwm,bm->bhw', seen, words)[..., None]
  score = jax.lax.reduce_window(score, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), 'SAME')
  score = latent_diffusion.resize_mask(score, mask.shape[1:3], 'nearest')
  there = score > THRESHOLD * score.max((1, 2, 3), keepdims=True)
  everywhere = ~words.any(-1)[:, None, None, None]
  whole = mask.all((1, 2, 3), keepdims=True)
  return jnp.where(whole, there | everywhere, mask >= 0.5).astype(jnp.float32)
