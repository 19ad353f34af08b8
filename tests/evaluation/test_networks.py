"""Feature networks from files: every layout, what is refused, batches, memory."""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit.evaluation import networks, preprocessing
from exedit.models import parameters
from exedit.models.clip import CLIPImageEncoder
from exedit.models.clip_text import CLIPTextEncoder
from exedit.models.dino import DINO
from exedit.models.inception import BlockA, Inception
from exedit.models.lpips import LPIPS
from exedit.runtime import parallel
from exedit.runtime.errors import UserError
from exedit.weights import translate
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.tables import clip_image, clip_text, dino, inception, lpips
from tests import vocabulary
from tests.networks import fresh, jitted, with_random_weights

keys = lambda: parameters.Keys(jax.random.key(0))

TOWER: dict[str, Any] = dict(width=64, layers=2, heads=1, mlp=96, patch=8, image_size=32)
CONFIG = dict(
  model_type='clip_vision_model',
  hidden_size=64,
  num_hidden_layers=2,
  num_attention_heads=1,
  intermediate_size=96,
  patch_size=8,
  image_size=32,
  hidden_act='quick_gelu',
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))  # digests are remembered there


@pytest.fixture(scope='module')
def encoder():
  return with_random_weights(lambda: CLIPImageEncoder(vision=TOWER, dim=12, rngs=keys()))


@pytest.fixture(scope='module')
def vit():
  return with_random_weights(lambda: DINO(**TOWER, rngs=keys()))


@pytest.fixture(scope='module')
def network(encoder, tmp_path_factory):
  return networks.load('clip', write(tmp_path_factory.mktemp('clip'), encoder, clip_image.OPENAI))


def theirs(model, table) -> dict[str, np.ndarray]:
  arrays = {name: np.asarray(value) for name, value in parameters.flatten(model)[1].items()}
  return translate.to_theirs(table, arrays)


def write(folder, model, table, **others) -> str:
  """Write the network's weights in a publisher's layout."""
  save_tensors(folder / 'weights.safetensors', theirs(model, table) | others)
  return str(folder / 'weights.safetensors')


def pictures(count=7, size=(40, 56), seed=0):
  random = np.random.default_rng(seed)
  return list(random.integers(0, 256, (count, *size, 3), dtype=np.uint8))


def text_encoder(vocabulary=50):
  sizes = dict(vocabulary=vocabulary, length=9, width=64, layers=2, heads=1, mlp=96)
  return with_random_weights(lambda: CLIPTextEncoder(dim=12, text=sizes, rngs=keys()))


def refusal(*args):
  with pytest.raises(UserError) as caught:
    networks.load(*args)
  return str(caught.value)


# Layouts


@pytest.mark.parametrize('table', [clip_image.OPENAI, clip_image.TRANSFORMERS])
def test_clip_from_a_file_of_either_layout(tmp_path, encoder, table):
  text = (
    {'text_model.final_layer_norm.bias': np.zeros(2)} if table is clip_image.TRANSFORMERS else {}
  )
  loaded = networks.load('clip', write(tmp_path, encoder, table, logit_scale=np.zeros(()), **text))
  image = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
  np.testing.assert_allclose(loaded.embed(iter(image)), jitted(encoder)(image), atol=1e-5)
  assert (loaded.name, loaded.dim, loaded.size) == ('clip_64x2p8s32', 12, 32)


@pytest.mark.parametrize('table', [dino.ORIGINAL, dino.TRANSFORMERS])
def test_dino_from_a_file_of_either_layout(tmp_path, vit, table):
  loaded = networks.load('dino', write(tmp_path, vit, table))
  image = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
  np.testing.assert_allclose(loaded.embed(iter(image)), jitted(vit)(image), atol=1e-5)
  assert (loaded.name, loaded.dim, loaded.size) == ('dino_64x2p8s32', 64, 32)


def test_a_folders_config_gives_the_number_of_heads(tmp_path, encoder):
  save_tensors(tmp_path / 'model.safetensors', theirs(encoder, clip_image.TRANSFORMERS))
  results = []
  for heads in (1, 4):
    config = CONFIG | dict(num_attention_heads=heads)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    results.append(networks.load('clip', tmp_path)(iter(pictures(2))))
  assert np.abs(results[0] - results[1]).max() > 1e-2


def test_halved_weights_are_computed_in_float32(tmp_path, encoder, network):
  half = {k: v.astype(np.float16) for k, v in theirs(encoder, clip_image.OPENAI).items()}
  save_tensors(tmp_path / 'half.safetensors', half)
  loaded = networks.load('clip', tmp_path / 'half.safetensors')
  result, exact = (f(iter(pictures(2))) for f in (loaded, network))
  assert result.dtype == np.float32
  assert 0 < np.abs(result - exact).max() < 0.02 * np.abs(exact).max()
  assert loaded.digest != network.digest and len(network.digest) == 64


def test_written_back_the_weights_are_the_same_bits(encoder, vit):
  for model, table in [
    (encoder, clip_image.OPENAI),
    (encoder, clip_image.TRANSFORMERS),
    (vit, dino.ORIGINAL),
    (vit, dino.TRANSFORMERS),
    (with_random_weights(lambda: Inception(rngs=keys())), inception.TABLE),
    (with_random_weights(lambda: LPIPS('alex', rngs=keys())), lpips.TABLES['alex']),
    (with_random_weights(lambda: LPIPS('vgg', rngs=keys())), lpips.TABLES['vgg']),
    (with_random_weights(lambda: LPIPS('squeeze', rngs=keys())), lpips.TABLES['squeeze']),
    (text_encoder(), clip_text.OPENAI),
    (text_encoder(), clip_text.TRANSFORMERS),
  ]:
    ours = parameters.flatten(model)[1]
    back = translate.to_ours(table, theirs(model, table), like=ours)
    assert back.keys() == ours.keys()
    for name, value in back.items():
      np.testing.assert_array_equal(value, ours[name], err_msg=name)


# What is refused


def test_other_weights_are_refused_with_what_to_get(tmp_path, encoder):
  clip_file = write(tmp_path, encoder, clip_image.OPENAI)
  line = refusal('clip_b32', clip_file)
  assert line.startswith("clip_b32 needs OpenAI's CLIP ViT-B/32: the folder or hub id openai/")
  assert line.endswith('weights.safetensors is clip_64x2p8s32, not clip_b32')
  line = refusal('inception', clip_file)
  assert line.startswith('inception needs pt_inception-2015-12-05-6726825d.pth')
  assert '\n  - Conv2d_1a_3x3.conv.weight' in line and ' more' in line and line.count('\n') < 23
  line = refusal('dino_s16', clip_file)
  assert 'facebook/dino-vits16' in line and '+ visual.class_embedding' in line
  with pytest.raises(UserError, match="lpips needs a folder with torchvision's alexnet"):
    networks.load_lpips('lpips', clip_file)


def test_half_a_file_is_refused(tmp_path, encoder):
  whole = theirs(encoder, clip_image.OPENAI)
  for lost in ('visual.proj', 'visual.class_embedding', 'visual.transformer.resblocks.1.ln_2.bias'):
    save_tensors(tmp_path / 'half.safetensors', {k: v for k, v in whole.items() if k != lost})
    line = refusal('clip', tmp_path / 'half.safetensors')
    assert line.startswith("clip needs OpenAI's CLIP ViT-B/32")
    assert lost in line or 'holds no ' in line
  quantised = whole | {'visual.proj': np.zeros((64, 12), np.int8)}
  save_tensors(tmp_path / 'int8.safetensors', quantised)
  assert 'int8 numbers' in refusal('clip', tmp_path / 'int8.safetensors')


def test_places_and_configs_that_do_not_fit_are_refused(tmp_path, encoder):
  assert 'does not exist' in refusal('inception', tmp_path / 'none.pth')
  assert 'holds no weights' in refusal('inception', tmp_path)
  assert "'vgg' is not a network" in refusal('vgg', tmp_path)
  assert "'lpips_alex' is not a network" in refusal('lpips_alex', tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
  assert 'has no weights' in refusal('clip', tmp_path)
  save_tensors(tmp_path / 'model.safetensors', theirs(encoder, clip_image.TRANSFORMERS))
  for wrong, message in [
    (dict(hidden_act='gelu'), "hidden_act is 'gelu'"),
    (dict(num_hidden_layers=3), '- vision_model.encoder.layers.2.'),
    (dict(num_attention_heads=5), 'width 64 cannot have 5 heads'),
  ]:
    (tmp_path / 'config.json').write_text(json.dumps(CONFIG | wrong))
    assert message in refusal('clip', tmp_path)
  (tmp_path / 'config.json').unlink()
  save_tensors(tmp_path / 'b.safetensors', theirs(encoder, clip_image.TRANSFORMERS))
  assert 'tensors whose names another file in its folder has too' in refusal('clip', tmp_path)


def test_texts_of_a_clip_in_openais_layout(tmp_path, encoder):
  """Both towers in one file, the tokenizer beside it."""
  tokens = vocabulary.write(tmp_path / 'words')
  model = text_encoder(tokens)
  both = theirs(model, clip_text.OPENAI) | {'logit_scale': np.zeros(())}
  path = write(tmp_path, encoder, clip_image.OPENAI, **both)
  with pytest.raises(UserError, match=r'has no tokenizer: put vocab.json and merges.txt of'):
    networks.load_texts('clip', path)
  for name in os.listdir(tmp_path / 'words'):
    (tmp_path / 'words' / name).rename(tmp_path / name)
  texts = networks.load_texts('clip', path)
  said = ['red ball', 'photo of blue star']
  expected = jitted(model)(np.stack([texts.prepare(text) for text in said]))
  np.testing.assert_allclose(texts(said), expected, atol=1e-5)
  assert (texts.name, texts.dim) == ('clip_64x2p8s32', 12) and np.ptp(expected, 0).max() > 0.1
  assert networks.load('clip', path).dim == 12


def test_structure_is_of_squares_alone(tmp_path, vit):
  distance = networks.load_structure('dino', write(tmp_path, vit, dino.ORIGINAL))
  (a, b), wide = pictures(2, (40, 40)), pictures(1)[0]
  same, there, back = distance([(a, a), (a, b), (b, a)])
  assert same == 0 and there > 1e-4
  np.testing.assert_allclose(there, back, rtol=1e-5)
  with pytest.raises(ValueError, match='56 x 40 pixels .* defined for squares'):
    distance([(wide, wide)])


# Batches


def test_vectors_depend_neither_on_the_batch_nor_on_other_sizes(network):
  several = [pictures(1, size)[0] for size in ((32, 32), (200, 33), (50, 64))] + pictures(4)
  expected = np.stack([network([picture])[0] for picture in several])
  assert np.abs(expected - expected[:1]).max() > 0.05
  for batch_size in (1, 3, 7, 32):
    np.testing.assert_allclose(network(iter(several), batch_size), expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(
    network.embed([preprocessing.centre(several[1], 32)]), expected[1:2]
  )
  assert network(iter([])).shape == (0, 12)
  with pytest.raises(ValueError, match='batch_size is 0'):
    network(iter(several), 0)


def test_few_sizes_of_batch_are_compiled():
  seen = []
  double = lambda x: (seen.append(len(x)), 2 * x)[1]
  rows = [(np.full((2,), i),) for i in range(21)]
  result = np.concatenate(list(networks.run_batches(double, rows, 8)))
  np.testing.assert_array_equal(result, 2 * np.arange(21)[:, None] * np.ones((1, 2), int))
  assert seen == [8, 8, 8]
  for n, sizes in [(1, [1]), (3, [4]), (5, [8]), (8, [8]), (9, [8, 8])]:
    seen.clear()
    assert sum(map(len, networks.run_batches(double, rows[:n], 8))) == n
    assert seen == sizes
  rows = [(np.zeros(n),) for n in (2, 2, 3, 2)]
  shapes = [piece.shape for piece in networks.run_batches(lambda x: x, rows, 4)]
  assert shapes == [(2, 2), (1, 3), (1, 2)]


def test_memory_does_not_grow_with_the_number_of_pictures(network):
  """A picture is asked for only when those before it are nearly done."""
  done, most = 0, 0

  def asked(several):
    nonlocal most
    for i, picture in enumerate(several):
      most = max(most, i - done)
      yield picture

  prepared = parallel.in_parallel(network.prepare, asked(pictures(3) * 40), threads=2)
  for piece in network.stream(prepared, 8):
    done += len(piece)
  assert done == 120 and most <= 2 * 8 + 2 * 2


def test_networks_compute_in_full_float32(network):
  """On accelerators too, which by default round the factors of a float32 product."""
  jaxpr = str(network.batch.func.trace(*network.batch.args, jnp.zeros((1, 32, 32, 3))).jaxpr)
  products = jaxpr.count('dot_general[') + jaxpr.count('conv_general_dilated[')
  assert products > 10 and jaxpr.count('HIGHEST') >= products


# LPIPS


@pytest.fixture(scope='module')
def distance(tmp_path_factory):
  """A whole LPIPS in two files, as its publishers give it."""
  model = with_random_weights(lambda: LPIPS('alex', rngs=keys()), scale=0.03)
  tensors, folder = theirs(model, lpips.TABLES['alex']), tmp_path_factory.mktemp('lpips')
  linear = {name: 50 * np.abs(value) for name, value in tensors.items() if name.startswith('lin')}
  rest = {name: value for name, value in tensors.items() if name not in linear}
  save_tensors(folder / 'alex.safetensors', linear)
  save_tensors(folder / 'alexnet.safetensors', rest | {'classifier.6.bias': np.zeros(1000)})
  return networks.load_lpips('lpips_alex', folder)


def test_distance_is_zero_for_equal_and_symmetric(distance):
  a, b = pictures(3, (40, 50)), pictures(3, (40, 50), seed=1)
  assert distance.name == 'lpips_alex'
  np.testing.assert_allclose(distance(zip(a, a)), np.zeros(3), atol=1e-12)
  there, back = distance(zip(a, b)), distance(zip(b, a))
  np.testing.assert_allclose(there, back, rtol=1e-5)
  assert (there > 0.01).all()
  np.testing.assert_allclose(distance(zip(a, b), 2), there, rtol=1e-4)
  assert distance(zip([], [])).shape == (0,)


def test_distance_within_a_region_sees_the_change_there(distance):
  a = pictures(1, (96, 96))[0]
  b = a.copy()
  b[:20, :20] = 255 - b[:20, :20]
  near, far = np.zeros((2, 96, 96), bool)
  near[:20, :20] = far[88:, 88:] = True
  regions = iter([(a, b, near), (a, b, far), (a, b, near | far)])
  values = np.concatenate(list(distance.within(regions)))
  assert values[0] > 10 * values[1]
  shares = np.array([near.sum(), far.sum()]) / (near | far).sum()
  np.testing.assert_allclose(values[2], shares @ values[:2], rtol=1e-4)


def test_pairs_that_cannot_be_compared_are_refused(distance):
  a, b, small = pictures(1)[0], pictures(1, (40, 57))[0], pictures(1, (30, 40))[0]
  with pytest.raises(UserError, match='at least 31 x 31 pixels, not 56 x 40 and 57 x 40'):
    distance(iter([(a, b)]))
  with pytest.raises(UserError, match='not 40 x 30 and 40 x 30'):
    distance(iter([(small, small)]))


def test_inception_does_not_count_what_it_pads_with():
  block = fresh(lambda: BlockA(8, 4, rngs=keys()))
  pooled = jitted(block)(jnp.ones((1, 9, 9, 8)))[0, :, :, -4:]  # the last branch
  assert float(pooled.max()) > 0.01
  np.testing.assert_allclose(pooled, jnp.broadcast_to(pooled[4, 4], (9, 9, 4)), rtol=1e-5)
