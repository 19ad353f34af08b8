"""Learning concepts: what trains and what does not, the loss, exact resume, the concept's file."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import custom_edit as recipe
from exedit import custom_edit, latent_diffusion, stable_diffusion, systems
from exedit.concepts import concept, files
from exedit.input_pipeline.tokenizer import Tokenizer
from exedit.models import parameters
from exedit.planning import compile_step
from exedit.runtime.errors import UserError
from exedit.training import fixed_loss, loop
from exedit.training.config import read_config
from exedit.training.given import given_weights
from exedit.weights import find
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.tensor import Tensor
from tests import few_pictures, runs, small_text, vocabulary
from tests.networks import with_random_weights

KERNELS = 14  # keys and values of the seven cross-attentions of the small UNet


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp('base')
  weights = small_text.export(folder, stable_diffusion.SYSTEM)
  root = few_pictures.write(folder / 'pictures')
  model = find.config(weights)['model']
  return dict(
    system='custom_edit',
    steps=2,
    batch_size=2,
    log_every=1,
    save_every=1,
    fixed_every=1,
    fixed_examples=2,
    trainable=recipe.KEYS_AND_VALUES + '|text[.]new_tokens',
    compile_cache=False,
    init_from=weights,
    concept={'name': '<new1>', 'class_': 'red ball', 'keep': 'last'},
    data=dict(root=root, size=16, templates=('photo of {}',), small=(), large=()),
    model=dict(model, text=dict(model['text'], new=1)),
    optimizer=dict(lr=1e-2, warmup=0),
    edit=dict(small_text.EDIT, count=2),
  )


@pytest.fixture(scope='module')
def run(config, tmp_path_factory):
  """(workdir, the frozen parameters after the last step) of a run that went on and was killed.

  The kill came between the concept of the last step and its checkpoint.
  """
  folder, seen = tmp_path_factory.mktemp('run') / 'run', {}

  def outcome(folder, config, trained, frozen, step):
    seen.update({name: np.asarray(array) for name, array in frozen.items()})
    custom_edit.outcome(folder, config, trained, frozen, step)

  spied = dataclasses.replace(custom_edit.SYSTEM, outcome=outcome)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(systems._registered, 'custom_edit', spied)
    runs.train(folder, **config)
    shutil.rmtree(folder / 'checkpoints' / '2')
    assert runs.train(folder, **dict(config, steps=3, edit_every=3)).step == 3
  return folder, seen


def test_kill_and_resume_gives_the_same_bits(config, run, tmp_path):
  runs.train(tmp_path / 'whole', **dict(config, steps=3))
  assert runs.digests(run[0], 3) == runs.digests(tmp_path / 'whole', 3)
  assert runs.lines(run[0]) == runs.lines(tmp_path / 'whole')
  name = 'concept.safetensors'
  assert (run[0] / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()


def test_what_does_not_train_keeps_every_bit_and_is_not_copied(config, run):
  folder, frozen = run
  base = given_weights(custom_edit.SYSTEM, config)
  learned = files.read(folder)
  assert len(learned.kernels) == KERNELS and [*learned.tokens] == ['<new1>']
  assert frozen.keys() == base.keys() - learned.kernels.keys() - {custom_edit.ROWS}
  for name, array in frozen.items():
    np.testing.assert_array_equal(array, base[name].read())
  for name, array in learned.kernels.items():
    assert (array != base[name].read()).any(), name
  assert sum(p.stat().st_size for p in folder.glob('*.safetensors')) < 20_000
  with pytest.raises(UserError, match='is the run of a concept and holds no whole weights'):
    find.weights(folder)


def test_the_concept_is_applied_to_the_weights_it_was_learned_from(config, run):
  weights = find.weights(config['init_from'])
  learned = files.read(run[0])
  found = concept.applied(weights, [learned])
  assert stable_diffusion.tokenizer(found)('<new1> ball')[1] == found.config['model']['text'][
    'vocabulary']  # fmt: skip
  assert learned.about['classes'] == {'<new1>': 'red ball'} and learned.about['step'] == 3


def test_previews_and_the_fixed_loss_are_written(run):
  assert Image.open(run[0] / 'samples' / '3.png').size[0] > 64
  lines = [json.loads(line) for line in (run[0] / 'metrics.jsonl').read_text().splitlines()]
  fixed = [(line['step'], line['fixed_prior']) for line in lines if 'fixed_loss' in line]
  assert [step for step, _ in fixed] == [1, 2, 3] and all(prior > 0 for _, prior in fixed)


def test_a_run_does_not_go_on_with_other_weights_or_another_concept(config, run, tmp_path):
  other = tmp_path / 'other'
  shutil.copytree(config['init_from'], other)
  tensors = {n: t.read() for n, t in find.weights(config['init_from']).tensors.items()}
  tensors['unet.conv_out.kernel'] = tensors['unet.conv_out.kernel'] + np.float32(1e-6)
  save_tensors(other / 'model.safetensors', tensors)
  settings = json.loads((other / 'config.json').read_text())
  (other / 'config.json').write_text(json.dumps(dict(settings, exported={})))
  more, named = dict(config, steps=4), dict(config['concept'], name='<new3>')
  for given, says in (
    (dict(init_from=str(other)), 'was begun with other weights .*unet.conv_out.kernel differs'),
    (dict(concept=named), 'other settings: concept.name <new1> -> <new3>'),
  ):
    with pytest.raises(UserError, match=says):
      runs.train(run[0], **more | given)


def test_what_cannot_be_learned_is_refused_before_anything_is_written(config, tmp_path):
  model, words = config['model'], config['concept']
  two = {**words, 'name': '<new1>,<new2>', 'class_': 'ball,star'}
  for given, says in (
    (dict(init_from=None), 'config.init_from is not set'),
    (dict(concept={}), 'a noun, as --config.concept.class='),
    (dict(concept={**words, 'kind': 'x'}), 'config.concept.kind is not a setting'),
    (
      dict(concept=two),
      'text.new is 1 and concept.name has 2 names: set --config.model.text.new=2',
    ),
    (dict(concept={**words, 'name': 'red'}), "'red' is one token already"),
    (dict(concept={**words, 'class_': 'dog!'}), "cannot spell 'dog!'"),
    (dict(concept={**words, 'keep': 'best'}, fixed_every=0), 'no step is known to be the best'),
    (dict(trainable='unet'), 'set --config.model.before=.unet., or --config.model.prior=none'),
    (dict(trainable='unet[.]conv_in[.]bias'), 'of unet.conv_in.bias no values .*.before='),
    (dict(trainable='text'), r'and \d+ others no values .*: set --config.model.prior=none'),
    (dict(model={**model, 'prior': 'none', 'text': model['text'] | dict(new=0)}), 'new is 0'),
    (dict(init_clip='x'), 'leave out --config.init_clip'),
    (dict(system='stable_diffusion', model={}), 'stable_diffusion learns no concepts'),
  ):
    with pytest.raises(UserError, match=says):
      runs.train(tmp_path / 'run', **config | given)
    assert not (tmp_path / 'run').exists()


def test_the_best_step_is_kept_over_a_restart(config, tmp_path, monkeypatch):
  losses = {1: 3.0, 2: 1.0, 3: 2.0}

  class Told:
    def __init__(self, *_):
      pass

    def __call__(self, state, frozen):
      return {fixed_loss.NAME: losses[int(state.step)]}

  monkeypatch.setattr(loop, 'FixedLoss', Told)
  given = dict(config, concept={**config['concept'], 'keep': 'best'})
  assert fixed_loss.least(str(tmp_path), 9) == np.inf
  steps = []
  for last in (1, 2, 3):
    runs.train(tmp_path, **dict(given, steps=last))
    steps.append(files.read(tmp_path).about['step'])
  assert steps == [1, 2, 2]
  assert [fixed_loss.least(str(tmp_path), last) for last in (0, 1, 3)] == [np.inf, 3.0, 1.0]


# The loss


ONE_LEVEL = 8  # keys and values of a UNet of one level, which compiles faster


def model_of(config, **more):
  small = dict(config['model']['unet'], mult=(1,), attention_levels=(0,))
  settings = {**config['model'], 'unet': small, **more}
  return with_random_weights(lambda: custom_edit.build(**settings, rngs=nnx.Rngs(0)))


@pytest.fixture(scope='module')
def batch(config):
  data = custom_edit.data_settings(config, 'nowhere')
  rows = next(custom_edit.examples.batches(batch_size=2, **data | dict(augment=False)))
  return {name: jnp.asarray(value) for name, value in rows.items()}


def test_exactly_keys_values_and_rows_have_gradients(config, batch):
  graph, params = parameters.flatten(model_of(config, prior='none'))
  rows = {name: value for name, value in batch.items() if name != 'prior_tokens'}

  def total(params):
    return custom_edit.loss(parameters.merge(graph, params), rows, jax.random.key(0))[0]

  grads = jax.jit(jax.grad(total))(params)
  chosen, _ = parameters.split_trainable(grads, config['trainable'])
  assert len(chosen) == ONE_LEVEL + 1 and custom_edit.ROWS in chosen
  assert all(np.abs(grad).max() > 0 for grad in chosen.values())


@pytest.mark.parametrize('held', [True, False])
def test_no_gradient_flows_through_the_first_token_if_it_is_held(config, held):
  graph, params = parameters.flatten(model_of(config, hold_first=held).unet)
  x = jax.random.normal(jax.random.key(0), (1, 4, 4, 48))
  context = jnp.zeros((1, 5, 16)).at[:, 0].set(1.0)  # nothing but the first token reaches kernels

  def total(params, context):
    return (parameters.merge(graph, params)(x, jnp.array([9]), context) ** 2).sum()

  kernels, tokens = jax.jit(jax.grad(total, (0, 1)))(params, context)
  own = [g for n, g in kernels.items() if '.attn2.to_k' in n or '.attn2.to_v' in n]
  assert len(own) == ONE_LEVEL and np.abs(tokens[:, 1:]).max() > 0
  assert all((np.asarray(g) == 0).all() == held for g in [*own, tokens[:, 0]])


def test_the_loss_is_that_of_latent_diffusion_and_the_distance_from_before(config, batch):
  graph, params = parameters.flatten(model_of(config, unet=config['model']['unet']))
  kept = (name for name in params if name.startswith('before.'))
  same = {**params, **{name: params[name.replace('before', 'unet', 1)] for name in kept}}
  key = jax.random.key(3)
  k_z, k_t, k_noise, *_ = latent_diffusion.example_keys(key, batch['id'], 6)

  @jax.jit
  def found(params, batch):
    return custom_edit.loss(parameters.merge(graph, params), batch, key)

  @jax.jit
  def plain(params):
    model = parameters.merge(graph, params)
    z = model.autoencoder.encode(latent_diffusion.as_signed(batch['image']), None)
    context = model.text(batch['tokens'])
    predict = lambda x, t: model.unet(x, t, context)
    return latent_diffusion.noise_prediction_loss(predict, model.schedule, z, k_t, k_noise)[1]

  total, whole = found(params, batch)
  expected = plain(params)
  np.testing.assert_allclose(whole['per_example'], expected['per_example'], rtol=1e-5)
  np.testing.assert_array_equal(whole['t'], expected['t'])
  np.testing.assert_allclose(total, (whole['per_example'] + whole['prior']).mean(), rtol=1e-6)
  unchanged = found(same, batch)[1]['prior']
  assert (unchanged < 1e-9).all() and (whole['prior'] > 1e-4).all()
  upper, none = (
    found(params, {**batch, 'mask': mask})[1]['per_example']
    for mask in (batch['mask'].at[:, :2].set(0), 0 * batch['mask'])
  )
  assert (np.abs(upper - whole['per_example']) > 1e-4).all() and (none == 0).all()
  others = found(params, {**batch, 'prior_image': batch['image']})[1]
  np.testing.assert_allclose(others['per_example'], whole['per_example'], rtol=1e-5)
  assert (np.abs(others['prior'] - whole['prior']) > 1e-3).all()


def test_diffusers_weighs_the_picture_by_the_channels(config):
  settings = lambda more: dict(config['model'], **more, rngs=nnx.Rngs(0))
  build = lambda **more: nnx.eval_shape(lambda: custom_edit.build(**settings(more)))
  assert build().relation == 1 and build(normalisation='diffusers').relation == 48
  for wrong in (dict(prior='class'), dict(normalisation='sum'), dict(prior_weight=-1.0)):
    with pytest.raises(ValueError, match=next(iter(wrong))):
      build(**wrong)


# Where new words start


def test_a_new_word_starts_from_a_rare_piece_else_from_its_class(config, tmp_path):
  size = vocabulary.write(tmp_path / 'words', ('red', 'ball', 'ktnab'))
  table = np.random.default_rng(0).normal(size=(size, 16)).astype(np.float32)
  tensor = Tensor(table.shape, table.dtype, lambda: table)
  model = dict(config['model'], text=dict(config['model']['text'], vocabulary=size, new=2))
  known = Tokenizer(tmp_path / 'words', size, 12)

  def rows(**words):
    group = {'name': '<a>,<b>', 'class_': 'ball,red ball', **words}
    given = dict(config, model=model, concept=group, data=dict(tokenizer=str(tmp_path / 'words')))
    return custom_edit.completed({'text.token_embedding': tensor}, given)[custom_edit.ROWS].read()

  mean = lambda text: table[known.tokens(text)].mean(0)
  np.testing.assert_allclose(rows(), [table[known.piece('ktn')], mean('red ball')])
  np.testing.assert_allclose(rows(init='{class}'), [mean('ball'), mean('red ball')])
  np.testing.assert_allclose(rows(init='red,ball'), [mean('red'), mean('ball')])


# The configs


@pytest.mark.parametrize(
  'variant, kernels, trained, kept',
  [
    ('full', 32, 19_169_280 + 768, 19_169_280),
    ('textual_inversion', 0, 768, 0),
    ('dreambooth', 686, 859_520_964, 859_520_964),
    ('tiny', 14, None, None),
  ],
)
def test_the_variants_train_what_they_say(variant, kernels, trained, kept):
  config = compile_step.with_defaults(recipe.get_config(variant).to_dict())
  compile_step.check(config)
  keep = {**config['concept'], 'class_': 'dog'}
  read_config({**config, 'concept': keep, 'data': {**config['data'], 'root': 'x'}})
  shapes = compile_step.example_shapes(config)
  assert ('prior_tokens' in shapes) == (variant != 'textual_inversion')
  _, params = latent_diffusion.abstract(custom_edit.build, config['model'])
  chosen, frozen = parameters.split_trainable(params, config['trainable'])
  assert config['model']['hold_first'] == (variant in ('full', 'tiny'))
  assert len([name for name in chosen if name != custom_edit.ROWS]) == kernels
  size = lambda params: sum(a.size for a in params.values())
  if trained:
    before = {n: a for n, a in frozen.items() if n.startswith('before.')}
    assert (size(chosen), size(before)) == (trained, kept)
  custom_edit.SYSTEM.complete(config['model'])


def test_planning_lays_the_step_out():
  config = compile_step.with_defaults(recipe.get_config('tiny').to_dict())
  program = compile_step.make_step(config, jax.devices()[:1])
  assert program.flops(compile_step.batch_shapes(config, program.mesh)) > 0
