"""The system: what the loss is made of, what an edit may change, where weights come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit import paint_by_example as pbe
from exedit.models import parameters
from exedit.runtime.errors import UserError
from exedit.weights.layouts import own
from tests.networks import with_random_weights

SETTINGS = dict(
  autoencoder=dict(kind='space_to_depth', patch=4),
  unet=dict(channels=16, mult=(1, 2), layers=1, attention_levels=(1,), heads=2, groups=8),
  clip=dict(width=16, layers=1, heads=2, mlp=32, patch=8, image_size=16),
  conditioner=dict(layers=1),
  context_dim=12,
)


def make(**changes):
  settings = {**SETTINGS, **changes}
  return with_random_weights(lambda: pbe.build(**settings, rngs=parameters.Keys(jax.random.key(0))))


@pytest.fixture(scope='module')
def model():
  return make()


def batch(n: int = 4, size: int = 16) -> dict:
  rng = np.random.default_rng(0)
  mask = np.zeros((n, size, size), np.uint8)
  mask[:, 4:12, 4:12] = 255
  pixels = lambda *shape: rng.integers(0, 256, shape, np.uint8)
  made = dict(image=pixels(n, size, size, 3), mask=mask, exemplar=pixels(n, 16, 16, 3))
  return {k: jnp.asarray(v) for k, v in made.items()} | dict(id=jnp.arange(n) + 100)


def compiled_loss(model):
  graph, params = parameters.flatten(model)
  run = jax.jit(lambda p, b, k: pbe.loss(parameters.merge(graph, p), b, k))
  return lambda b, seed=0: run(params, b, jax.random.key(seed))


def test_loss_of_an_example_depends_on_its_id_and_not_on_its_place(model):
  loss, b = compiled_loss(model), batch()
  value, aux = loss(b)
  order = jnp.array([2, 0, 3, 1])
  _, moved = loss({k: v[order] for k, v in b.items()})
  np.testing.assert_allclose(moved['per_example'], aux['per_example'][order], rtol=1e-5)
  np.testing.assert_array_equal(moved['t'], aux['t'][order])
  np.testing.assert_allclose(value, aux['per_example'].mean(), rtol=1e-6)
  _, other = loss(b | dict(id=b['id'] + 4))
  assert np.any(other['t'] != aux['t'])


def test_loss_is_the_error_of_the_schedules_target():
  """A network that answers zero is wrong by the mean square of what it should have said."""
  silent = make()
  silent.unet.conv_out.kernel[...] *= 0
  silent.unet.conv_out.bias[...] *= 0
  value, _ = compiled_loss(silent)(batch(32))
  np.testing.assert_allclose(value, 1.0, atol=0.05)  # eps: unit noise


@pytest.mark.parametrize(('p', 'matters'), [(0.0, True), (1.0, False)])
def test_dropped_conditions_make_the_exemplar_irrelevant(p, matters):
  loss, b = compiled_loss(make(p_drop=p)), batch()
  changed = b | dict(exemplar=255 - b['exemplar'])
  assert bool(jnp.any(loss(b)[0] != loss(changed)[0])) == matters


def test_dropping_by_batch_tosses_one_coin_for_all():
  loss, b = compiled_loss(make(p_drop=0.5, drop='batch')), batch(8)
  changed = b | dict(exemplar=255 - b['exemplar'])
  differs = [
    np.asarray(loss(b, seed)[1]['per_example'] != loss(changed, seed)[1]['per_example'])
    for seed in range(12)
  ]
  counts = {int(d.sum()) for d in differs}  # another exemplar may round to the same loss
  assert 0 in counts and min(counts - {0}) >= 6


def test_the_hole_hides_the_image_from_the_still_channels(model):
  b = batch()
  image, mask = pbe.as_signed(b['image']), b['mask'][..., None] / 255
  shape = pbe.latent_shape(model, image.shape)
  _, still = pbe.latents(model, image, mask)
  hidden = image.at[:, 4:12, 4:12].set(0.3)
  _, same = pbe.latents(model, hidden, mask)
  np.testing.assert_array_equal(still, same)
  assert still.shape == (4, *shape[:2], shape[2] + 1)
  # The released weights saw 1 where the picture stays.
  np.testing.assert_array_equal(still[0, :, :, -1], [[1, 1, 1, 1]] + 2 * [[1, 0, 0, 1]] + [[1] * 4])


def test_both_latents_are_encoded_as_if_alone(model):
  b = batch()
  image, mask = pbe.as_signed(b['image']), b['mask'][..., None] / 255
  z, still = pbe.latents(model, image, mask)
  np.testing.assert_allclose(z, model.autoencoder.encode(image, None), atol=1e-6)
  masked = model.autoencoder.encode(image * (1 - mask), None)
  np.testing.assert_allclose(still[..., :-1], masked, atol=1e-6)


def test_mask_resize_is_the_mean_of_the_middle_two_by_two():
  """Bilinear without antialiasing reads pixels 8i+3 and 8i+4; diffusers reads pixel 8i."""
  mask = np.random.default_rng(0).integers(0, 2, (2, 64, 96, 1)).astype(np.float32)
  middle = [mask[:, i::8, j::8] for i in (3, 4) for j in (3, 4)]
  bilinear = pbe.keep(jnp.asarray(mask), (8, 12))
  np.testing.assert_allclose(bilinear, 1 - np.mean(middle, 0), atol=1e-6)
  nearest = pbe.keep(jnp.asarray(mask), (8, 12), 'nearest')
  np.testing.assert_array_equal(nearest, 1 - mask[:, ::8, ::8])


def edit_inputs(n: int = 2, h: int = 16, w: int = 16):
  rng = np.random.default_rng(1)
  image = lambda *s: jnp.asarray(rng.integers(0, 256, s) / 127.5 - 1, jnp.float32)
  mask = jnp.zeros((n, h, w, 1)).at[:, 3:10, 5:11].set(1)
  return image(n, h, w, 3), mask, image(n, 20, 31, 3)


@pytest.mark.parametrize('sampler', ['plms', 'dpm_solver_pp'])
def test_edit_leaves_everything_outside_the_mask_alone(model, sampler):
  source, mask, exemplar = edit_inputs(h=15, w=21)
  how = dict(steps=3, sampler=sampler)
  result = pbe.edit(model, source, mask, exemplar, jax.random.key(0), **how)
  outside = np.broadcast_to(np.asarray(mask) == 0, source.shape)
  np.testing.assert_array_equal(np.asarray(result)[outside], np.asarray(source)[outside])
  assert np.all(np.isfinite(result)) and np.any(
    np.asarray(result)[~outside] != np.asarray(source)[~outside]
  )
  raw = pbe.edit(model, source, mask, exemplar, jax.random.key(0), paste=False, **how)
  assert np.any(np.asarray(raw)[outside] != np.asarray(source)[outside])
  np.testing.assert_array_equal(np.asarray(raw)[~outside], np.asarray(result)[~outside])


def test_an_image_does_not_depend_on_its_batch_neighbours(model):
  source, mask, exemplar = edit_inputs()
  keys = jax.random.split(jax.random.key(5), 2)
  together = pbe.edit(model, source, mask, exemplar, keys, steps=4, sampler='ddim')
  alone = pbe.edit(model, source[1:2], mask[1:2], exemplar[1:2], keys[1:2], steps=4, sampler='ddim')
  np.testing.assert_allclose(together[1:2], alone, atol=1e-4)


def test_given_noise_replaces_the_key(model):
  source, mask, exemplar = edit_inputs()
  noise = jax.random.normal(jax.random.key(9), (2, *pbe.latent_shape(model, source.shape)))
  how = dict(steps=4, sampler='ddim', posterior_noise=jnp.zeros_like(noise))
  a, b = (
    pbe.edit(model, source, mask, exemplar, jax.random.key(k), noise=noise, **how) for k in (0, 1)
  )
  np.testing.assert_array_equal(a, b)
  c = pbe.edit(model, source, mask, exemplar, jax.random.key(0), **how)
  assert np.any(a != c)


def test_guidance_of_one_is_the_plain_conditional_model(model):
  """eps_null + 1 (eps - eps_null) = eps, computed by another road."""
  source, mask, exemplar = edit_inputs()
  run = lambda scale: pbe.edit(
    model, source, mask, exemplar, jax.random.key(0), steps=4, sampler='ddim', scale=scale
  )
  np.testing.assert_allclose(run(1.0), run(1.0 + 1e-6), atol=1e-3)
  assert float(jnp.abs(run(1.0) - run(5.0)).max()) > 1e-3


def test_edit_equals_the_loop_written_out(model):
  """DDIM by hand, with the full-width UNet input and no shortcut, against the compiled edit."""
  source, mask, exemplar = edit_inputs()
  noise = jax.random.normal(jax.random.key(9), (2, *pbe.latent_shape(model, source.shape)))
  result = pbe.edit(
    model, source, mask, exemplar, jax.random.key(0), steps=4, sampler='ddim', noise=noise,
    paste=False,
  )  # fmt: skip
  z = model.autoencoder.encode(source * (1 - mask), None)
  still = jnp.concatenate([z, pbe.keep(mask, z.shape[1:3])], -1)
  square = jnp.asarray(pbe.images.squash(exemplar, 16))
  context = model.conditioner(model.clip(square)[:, None], shortcut=False)
  null = model.conditioner.null[...].repeat(2, 0)
  call = jax.jit(lambda x, t, c: model.unet(jnp.concatenate([x, still], -1), t, c, shortcut=False))
  x, ts = noise, model.schedule.timesteps(4)
  a = model.schedule.signal_rate**2
  for t, before in zip(ts, [*ts[1:], 0]):
    steps = jnp.full(2, t)
    e_null, e = call(x, steps, null), call(x, steps, context)
    e = e_null + 5.0 * (e - e_null)
    x0 = (x - np.float32((1 - a[t]) ** 0.5) * e) / np.float32(a[t] ** 0.5)
    x = np.float32(a[before] ** 0.5) * x0 + np.float32((1 - a[before]) ** 0.5) * e
  by_hand = model.autoencoder.decode(x)
  np.testing.assert_allclose(result, by_hand, rtol=1e-3, atol=1e-3 * float(jnp.abs(by_hand).max()))


def test_the_guidance_interval_of_the_whole_schedule_is_the_program_without_one(model):
  still, context = jnp.ones((2, 4, 4, 1 + model.autoencoder.z_channels)), jnp.ones((2, 1, 12))
  x, t = still[..., 1:], jnp.zeros(2, jnp.int32)

  def program(*interval):
    return str(jax.make_jaxpr(pbe.denoiser(model, still, context, 3.0, *interval))(x, t))

  assert program() == program((0.0, 1.0))
  assert program().count('cond') < program((0.2, 0.8)).count('cond')


def test_spacing_decides_the_timesteps_of_an_edit():
  """Of 10 timesteps, 4 steps of the original are 5, those of 5 steps."""
  model, inputs = make(schedule=dict(num_steps=10)), edit_inputs(1, 8, 8)
  run = lambda steps, **how: pbe.edit(
    model, *inputs, jax.random.key(0), steps=steps, sampler='plms', scale=1.0, **how
  )
  np.testing.assert_array_equal(run(4, spacing='ldm'), run(5))
  assert np.any(run(4, spacing='ldm') != run(4))


def test_without_the_bottleneck_every_token_is_context():
  ablated = make(bottleneck=False)
  source, mask, exemplar = edit_inputs()
  context = ablated.context(jnp.asarray(pbe.images.squash(exemplar, 16)))
  assert context.shape == (2, 5, 12)  # 2 x 2 patches and the class token
  result = pbe.edit(ablated, source, mask, exemplar, jax.random.key(0), steps=4, sampler='ddim')
  assert np.all(np.isfinite(result))
  assert np.isfinite(compiled_loss(ablated)(batch())[0])


def test_a_rematerialised_model_edits_the_same(model):
  remat = make(unet={**SETTINGS['unet'], 'remat': 'conv1'})
  run = lambda m: pbe.edit(m, *edit_inputs(), jax.random.key(0), steps=4, sampler='ddim')
  np.testing.assert_allclose(run(remat), run(model), atol=1e-4)


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    (dict(sampler='euler'), "sampler is 'euler'; use one of plms, ddim, dpm_solver_pp"),
    (dict(mask_resize='cubic'), "mask_resize is 'cubic'; use 'bilinear' or 'nearest'"),
    (dict(spacing='karras'), "spacing is 'karras'; use one of leading, ldm"),
    (dict(spacing='ldm', sampler='dpm_solver_pp'), 'dpm_solver_pp has timesteps of its own'),
  ],
)
def test_unknown_choices_are_named(model, change, line):
  with pytest.raises(ValueError, match=line):
    pbe.edit(model, *edit_inputs(), jax.random.key(0), **change)


def test_shapes_that_do_not_belong_together_are_named(model):
  source, mask, exemplar = edit_inputs()
  with pytest.raises(ValueError, match=r'mask has shape \(2, 15, 16, 1\); the source needs'):
    pbe.edit(model, source, mask[:, :15], exemplar, jax.random.key(0))
  with pytest.raises(ValueError, match='1 exemplars for 2 sources'):
    pbe.edit(model, source, mask, exemplar[:1], jax.random.key(0))


def test_unknown_drop_is_named():
  with pytest.raises(ValueError, match="drop is 'never'; use 'example' or 'batch'"):
    make(drop='never')


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 0), ('float16', 1e-3)])
def test_exported_weights_come_back(model, tmp_path, dtype, tolerance):
  config = dict(model=SETTINGS, data=dict(size=16, exemplar_size=16))
  _, params = parameters.flatten(model)
  params = {name: np.asarray(array) for name, array in params.items()}
  own.write(tmp_path / 'out', config, params, step=7, dtype=dtype)
  _, back = parameters.flatten(pbe.load(tmp_path / 'out'))
  for name, array in params.items():
    np.testing.assert_allclose(back[name], array, atol=tolerance, rtol=tolerance)
    assert back[name].dtype == np.float32
  assert own.read(tmp_path / 'out').step == 7
  with pytest.raises(UserError, match='remove it or name another'):
    own.write(tmp_path / 'out', config, params, step=7)


def test_a_config_that_builds_no_model_is_named(model, tmp_path):
  params = {name: np.asarray(array) for name, array in parameters.flatten(model)[1].items()}
  own.write(tmp_path / 'b', dict(model={**SETTINGS, 'contxt': 1}, data={}), params, step=1)
  with pytest.raises(UserError, match='its config builds no model .*contxt'):
    pbe.load(tmp_path / 'b')
