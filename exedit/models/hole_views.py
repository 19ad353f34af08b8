"""What CLIP sees of a hole: its box, and turned and tilted copies of that.

The copies are the extending augmentations of Blended Diffusion (arXiv 2111.14818), drawn as in the
published code (optimization/augmentations.py), but with one interpolation of the pixels, not two.
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Int, Key

SHARE = 0.7  # of the copies that are turned and moved, and of those that are tilted
ANGLE = 15.0  # degrees by which a copy is turned at most
SHIFT = 0.1  # of the side by which it is moved at most, in each direction
TILT = 0.7  # of half the side by which a corner moves inwards at most, in each direction


def box(hole: Bool[Array, 'b h w']) -> tuple[Int[Array, 'b 2'], Int[Array, 'b 2']]:
  """The first row and column of each hole, and the first ones behind it."""
  lines = [hole.any(axis) for axis in (2, 1)]  # rows, columns
  first = [jnp.argmax(line, 1) for line in lines]
  last = [line.shape[1] - jnp.argmax(line[:, ::-1], 1) for line in lines]
  return jnp.stack(first, 1), jnp.stack(last, 1)


def cut(
  image: Float[Array, 'h w 3'], first: Int[Array, ' 2'], last: Int[Array, ' 2'], side: int
) -> Float[Array, 's s 3']:
  """The box of an image as a square, by a bilinear resize with antialiasing.

  The numbers of the box may be traced, as one program serves all holes.
  """

  def weights(first, last, count):
    scale = (last - first) / side
    centres = first + (jnp.arange(side) + 0.5) * scale - 0.5
    places = jnp.arange(count)[None]
    far = jnp.abs(places - centres[:, None]) / jnp.maximum(scale, 1)
    found = jnp.where((places >= first) & (places < last), jnp.maximum(1 - far, 0), 0)
    return found / found.sum(1, keepdims=True)

  rows, columns = (weights(first[i], last[i], image.shape[i]) for i in (0, 1))
  return jnp.einsum('sh,hwc,tw->stc', rows, image, columns)


def copies(
  cuts: Float[Array, 'b s s 3'], keys: Key[Array, ' b'], count: int
) -> Float[Array, 'b v s s 3']:
  """Each picture itself, and `count - 1` turned and tilted copies; functions of its own key."""
  if count == 1:
    return cuts[:, None]
  inverses, turns, shifts = draw_copies(keys, count - 1)
  tilt = jax.vmap(jax.vmap(tilted, (None, 0, 0, 0)))
  return jnp.concatenate([cuts[:, None], tilt(cuts, inverses, turns, shifts)], 1)


def draw_copies(
  keys: Key[Array, ' b'], count: int
) -> tuple[Float[Array, 'b v 3 3'], Float[Array, 'b v 2 2'], Float[Array, 'b v 2']]:
  """What `tilted` takes, `count` times for each key."""
  corners = jnp.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])  # x, y

  def draw(key):
    k_turned, k_angle, k_shift, k_tilted, k_corners = jax.random.split(key, 5)
    turned, tilted = (jax.random.bernoulli(k, SHARE) for k in (k_turned, k_tilted))
    angle = jnp.deg2rad(ANGLE) * turned * jax.random.uniform(k_angle, minval=-1)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    shift = 2 * SHIFT * turned * jax.random.uniform(k_shift, (2,), minval=-1)
    inwards = TILT * tilted * jax.random.uniform(k_corners, (4, 2))
    back = homography(corners * (1 - inwards), corners)
    return back, jnp.array([[cosine, sine], [-sine, cosine]]), shift

  return jax.vmap(lambda key: jax.vmap(draw)(jax.random.split(key, count)))(keys)


def homography(start: Float[Array, '4 2'], end: Float[Array, '4 2']) -> Float[Array, '3 3']:
  """The projective map that takes four points to four others."""
  flat = jnp.concatenate([start, jnp.ones((4, 1))], 1)
  none = jnp.zeros((4, 3))
  equations = [
    jnp.concatenate([*([flat, none] if i == 0 else [none, flat]), -end[:, i : i + 1] * start], 1)
    for i in (0, 1)
  ]
  found = jnp.linalg.solve(jnp.concatenate(equations), end.T.reshape(8))
  return jnp.append(found, 1.0).reshape(3, 3)


def tilted(
  image: Float[Array, 's s 3'],
  back: Float[Array, '3 3'],
  turn: Float[Array, '2 2'],
  shift: Float[Array, ' 2'],
) -> Float[Array, 's s 3']:
  """A picture that was turned, moved, then tilted; grey where it does not reach.

  back: the homography from the result to what was tilted, in x and y from -1 to 1. turn: the
  rotation back. shift: by how much it was moved. A moved picture goes on with its border.
  """
  side = image.shape[0]
  line = (2 * jnp.arange(side) + 1.0) / side - 1
  x, y = jnp.meshgrid(line, line)
  place = jnp.stack([x, y, jnp.ones_like(x)], -1) @ back.T
  place = place[..., :2] / place[..., 2:]
  inside = (jnp.abs(place) <= 1).all(-1)  # not for places at infinity
  place = jnp.where(inside[..., None], place, 0)
  x, y = jnp.moveaxis((((place - shift[None, None]) @ turn.T + 1) * side - 1) / 2, -1, 0)
  sample = lambda channel: map_coordinates(channel, [y, x], 1, 'nearest')
  return jax.vmap(sample, -1, -1)(image) * inside[..., None]
