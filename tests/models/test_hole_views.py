"""Views of a hole: its box against Pillow's and NumPy's, copies against maps done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit.models import hole_views

TURN, STAY, STILL = jnp.eye(2), jnp.eye(3), jnp.zeros(2)


def picture(height, width, seed=0):
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (height, width, 3)), jnp.float32)


def test_the_box_holds_the_hole():
  hole = np.zeros((3, 7, 9), bool)
  hole[0, 2:5, 3:4] = hole[0, 4, 6] = True
  hole[1, :, 8] = hole[2, 0, 0] = True
  first, last = hole_views.box(jnp.asarray(hole))
  np.testing.assert_array_equal(first, [[2, 3], [0, 8], [0, 0]])
  np.testing.assert_array_equal(last, [[5, 7], [7, 9], [1, 1]])


@pytest.mark.parametrize('first, last', [((1, 2), (5, 6)), ((0, 3), (12, 9)), ((3, 0), (4, 16))])
def test_a_cut_is_the_resized_box(first, last):
  """A box of the square's size is cut exactly; others as JAX resizes the box alone."""
  image = picture(12, 16)
  box = image[first[0] : last[0], first[1] : last[1]]
  found = jax.jit(hole_views.cut, static_argnums=3)(image, jnp.array(first), jnp.array(last), 4)
  expected = jax.image.resize(box, (4, 4, 3), 'linear', antialias=True)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_homography_takes_the_points_there():
  start, end = (jnp.asarray(np.random.default_rng(seed).normal(size=(4, 2))) for seed in (1, 2))
  found = np.c_[start, np.ones(4)] @ hole_views.homography(start, end).T
  np.testing.assert_allclose(found[:, :2] / found[:, 2:], end, rtol=1e-3)


def test_tilted_copies_by_hand():
  image = picture(8, 8)
  tilted = jax.jit(hole_views.tilted)
  np.testing.assert_allclose(tilted(image, STAY, TURN, STILL), image, atol=1e-6)
  quarter = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
  np.testing.assert_allclose(tilted(image, STAY, quarter, STILL), jnp.rot90(image, -1), atol=1e-6)
  moved = tilted(image, STAY, TURN, jnp.array([0.5, 0.0]))  # by a quarter of the side
  np.testing.assert_allclose(moved[:, 2:], image[:, :-2], atol=1e-6)
  np.testing.assert_allclose(moved[:, :2], image[:, :1].repeat(2, 1), atol=1e-6)
  half = tilted(jnp.ones((8, 8, 3)), jnp.diag(jnp.array([2.0, 2.0, 1.0])), TURN, STILL)
  inside = np.zeros((8, 8, 3))
  inside[2:6, 2:6] = 1  # grey around it
  np.testing.assert_allclose(half, inside, atol=1e-6)
  nowhere = jnp.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]])  # all places lie at infinity
  made, gradient = jax.value_and_grad(lambda x: tilted(x, nowhere, TURN, STILL).sum())(image)
  assert made == 0 and not gradient.any()


def test_copies_are_functions_of_their_keys():
  cuts = jnp.stack([picture(8, 8), picture(8, 8, 1)])
  keys = jax.random.split(jax.random.key(0), 2)
  call = jax.jit(hole_views.copies, static_argnums=2)
  found = call(cuts, keys, 3)
  assert found.shape == (2, 3, 8, 8, 3)
  np.testing.assert_array_equal(found[:, 0], cuts)
  np.testing.assert_array_equal(hole_views.copies(cuts, keys, 1), cuts[:, None])
  np.testing.assert_allclose(call(cuts[::-1], keys[::-1], 3)[::-1], found, atol=1e-5)
  assert np.abs(found[:, 1] - found[:, 2]).max() > 0.1


def test_the_draws_have_the_published_shares_and_bounds():
  backs, turns, shifts = jax.jit(hole_views.draw_copies, static_argnums=1)(
    jax.random.split(jax.random.key(0), 500), 2
  )
  turned = np.asarray(turns[..., 0, 1] != 0)
  tilted = np.abs(backs - STAY[None, None]).max((-1, -2)) > 1e-4
  for share in (turned.mean(), tilted.mean(), (turned & tilted).mean() ** 0.5):
    assert abs(share - 0.7) < 0.05
  angles = np.degrees(np.arcsin(turns[..., 0, 1]))[turned]
  assert 13 < angles.max() <= 15 and -15 <= angles.min() < -13 and abs(angles.mean()) < 1
  assert 0.18 < np.abs(shifts).max() <= 0.2 and not shifts[~turned].any()
