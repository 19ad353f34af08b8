import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from exedit.training.optimizer import learning_rate, learning_rate_schedule, make_optimizer


def run(tx, params, grads):
  opt_state = tx.init(params)
  rates = []
  for g in grads:
    updates, opt_state = tx.update(g, opt_state, params)
    params = optax.apply_updates(params, updates)
    rates.append(float(learning_rate(opt_state)))
  return params, rates


def reference_adamw(w, grads, rates, b1=0.9, b2=0.999, eps=1e-8, decay=1e-2):
  """Loshchilov & Hutter 2019, algorithm 2, with PyTorch's order: decay, then the step."""
  w, m, v = np.float64(w), 0.0, 0.0
  for n, (g, lr) in enumerate(zip(grads, rates), 1):
    g = np.float64(g)
    w = w - lr * decay * w
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    w = w - lr * (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + eps)
  return w


def random_case(steps=6):
  keys = iter(jax.random.split(jax.random.key(0), steps + 1))
  params = {'a.kernel': jax.random.normal(next(keys), (3, 2))}
  return params, [{'a.kernel': jax.random.normal(next(keys), (3, 2))} for _ in range(steps)]


def test_adamw_agrees_with_the_formula():
  params, grads = random_case()
  tx = make_optimizer(lr=1e-2, warmup=4)
  result, rates = run(tx, params, grads)
  expected = reference_adamw(params['a.kernel'], [g['a.kernel'] for g in grads], rates)
  np.testing.assert_allclose(result['a.kernel'], expected, rtol=2e-5)


def test_warmup_is_the_originals_lambda_scheduler():
  rate = learning_rate_schedule(1e-5, 10_000)

  def original(n):  # PbE ldm/lr_scheduler.py, LambdaLinearScheduler
    return 1e-5 * ((1 - 1e-6) / 10_000 * n + 1e-6 if n < 10_000 else 1.0)

  for n in (0, 1, 5_000, 9_999, 10_000, 300_000):
    np.testing.assert_allclose(rate(n), original(n), rtol=1e-5)


def test_cosine_ends_at_lr_end():
  rate = learning_rate_schedule(1.0, 10, 'cosine', lr_end=0.1, steps=110)
  np.testing.assert_allclose([rate(10), rate(60), rate(110), rate(500)], [1, 0.55, 0.1, 0.1])


def test_decay_leaves_out_what_it_is_told_to():
  params = {
    'unet.attn2.to_k.kernel': jnp.ones((2, 2)),
    'unet.conv.kernel': jnp.ones((2, 2)),
    'unet.conv.bias': jnp.ones(2),
  }
  zeros = [jax.tree.map(jnp.zeros_like, params)]

  def moved(**settings):
    result, _ = run(make_optimizer(lr=0.1, warmup=0, **settings), params, zeros)
    return sorted(name for name in params if not np.array_equal(result[name], params[name]))

  assert moved() == sorted(params)  # as the original: everything decays
  assert moved(decay_exclude=r'attn2\.to_[qk]') == ['unet.conv.bias', 'unet.conv.kernel']
  assert moved(decay_vectors=False) == ['unet.attn2.to_k.kernel', 'unet.conv.kernel']
  np.testing.assert_allclose(
    run(make_optimizer(lr=0.1, warmup=0), params, zeros)[0]['unet.conv.bias'],
    1 - 0.1 * 1e-2,
  )


def test_lr_multipliers_scale_the_whole_update_by_path():
  params = {'clip.a': jnp.ones((2, 2)), 'unet.a': jnp.ones((2, 2))}
  grads = [jax.tree.map(jnp.ones_like, params)]
  tx = make_optimizer(lr=0.1, warmup=0, lr_multipliers={'^clip': 0.5})
  result, _ = run(tx, params, grads)
  np.testing.assert_allclose(1 - result['clip.a'], 0.5 * (1 - result['unet.a']), rtol=1e-5)


def test_clip_bounds_the_global_norm():
  params = {'a': jnp.zeros(2), 'b': jnp.zeros(2)}
  grads = [{'a': jnp.array([3.0, 0.0]), 'b': jnp.array([0.0, 4.0])}]
  result, _ = run(make_optimizer('sgd', lr=1.0, warmup=0, clip=1.0), params, grads)
  np.testing.assert_allclose(result['a'], [-0.6, 0], rtol=1e-6)
  np.testing.assert_allclose(result['b'], [0, -0.8], rtol=1e-6)


@pytest.mark.parametrize(
  'settings, words',
  [
    (dict(name='adam'), "optimizer.name is 'adam'"),
    (dict(schedule='linear'), "optimizer.schedule is 'linear'; use one of constant, cosine"),
    (dict(schedule='cosine', warmup=10, steps=10), r'more steps \(10\) than warm-up \(10\)'),
  ],
)
def test_wrong_settings_are_refused_in_one_line(settings, words):
  with pytest.raises(ValueError, match=words):
    make_optimizer(**settings)
