"""The feature networks against their originals, same random weights, float32: within 1e-4."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.evaluation import networks, preprocessing
from exedit.metrics import pixels
from exedit.metrics.features import clip_scores as scored
from exedit.models import clip, dino, vit
from exedit.runtime.errors import UserError
from exedit.weights.formats.tensor import Tensor
from exedit.weights.layouts.published import Published
from exedit.weights.tables import clip_image, lpips
from exedit.weights.tables import dino as dino_tables
from exedit.weights.tables import inception as inception_tables
from tests import vocabulary
from tests.networks import count
from tests.parity import references

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

PACKAGES = os.environ.get('EXEDIT_TORCHVISION', '')


@pytest.fixture(scope='module')
def out(tmp_path_factory):
  """The folder that torchvision_references.py fills."""
  if not PACKAGES and not os.environ.get('EXEDIT_PARITY'):
    pytest.skip('EXEDIT_TORCHVISION is not set: launch/test.sh --parity sets it')
  folder = tmp_path_factory.mktemp('references')
  for net in ('alex', 'vgg', 'squeeze'):
    (folder / net).mkdir()
  script = Path(__file__).with_name('torchvision_references.py')
  subprocess.run([sys.executable, str(script), PACKAGES, str(folder)], check=True)
  return folder


def assert_close(ours, theirs, relative=1e-4):
  """Relative to the largest: a feature may be near 0 by chance."""
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, atol=relative * np.abs(theirs).max(), rtol=0)
  assert np.std(theirs, 0).max() > 0.05 * np.abs(theirs).max()  # images differ, so it could fail


# Against the code that the published numbers were made with


def test_inception_is_pytorch_fids(out):
  network = networks.load('inception', out / 'inception.pth')
  expected = np.load(out / 'inception.npz')
  assert_close(network(iter(expected['pictures'])), expected['features'])
  assert (network.name, network.dim, network.size) == ('inception', 2048, 299)


@pytest.mark.parametrize('net', ['alex', 'vgg', 'squeeze'])
def test_lpips_is_the_packages(out, net):
  distance = networks.load_lpips(f'lpips_{net}', out / net)  # backbone and weights in two files
  expected = np.load(out / f'{net}.npz')
  a, b = expected['a'], expected['b']
  np.testing.assert_allclose(distance(zip(a, b)), expected['distances'], rtol=1e-4)
  region = np.zeros(a.shape[:3], bool)
  region[0, 10:30, 5:50] = region[1, :, 20:] = True
  inside = [m[r].mean() for m, r in zip(expected['maps'], region)]
  found = np.concatenate(list(distance.within(zip(a, b, region))))
  np.testing.assert_allclose(found, inside, rtol=1e-4)
  whole = networks.load_lpips('lpips', out / f'{net}_whole.pth')  # the state dict of LPIPS itself
  assert whole.name == f'lpips_{net}'
  np.testing.assert_array_equal(whole(zip(a, b)), distance(zip(a, b)))


def test_clip_in_openais_layout(out):
  network = networks.load('clip', out / 'clip.pt')
  expected = np.load(out / 'clip.npz')
  assert_close(network(iter(expected['pictures'])), expected['features'])
  assert (network.name, network.dim) == ('clip_128x3p8s40', 24)


def test_dino_in_the_original_layout(out):
  network = networks.load('dino', out / 'dino.pth')
  expected = np.load(out / 'dino.npz')
  prepared = (p.astype(np.float32) / 127.5 - 1 for p in expected['pictures'])  # nothing cut off
  assert_close(network.embed(prepared), expected['features'])
  assert (network.name, network.dim) == ('dino_128x3p8s48', 128)


def test_pie_benchs_metrics_are_its_codes(out):
  expected = np.load(out / 'pie_bench.npz')
  a, b = expected['a'], expected['b']
  distance = networks.load_structure('dino', out / 'dino.pth')
  keep = expected['mask'][..., None].astype(np.uint8)
  ours = [
    (pixels.frame_psnr(x, y), pixels.frame_mse(x, y), pixels.frame_ssim(x, y))
    for x, y in zip(a * keep, b * keep)
  ]
  found = np.concatenate([distance(zip(a, b))[:, None], ours], 1)
  np.testing.assert_allclose(found, expected['values'], rtol=1e-4)
  assert (np.ptp(found, 0) > 0.01 * np.abs(found).max(0)).all()


def test_preprocessing_is_torchvisions(out):
  views = np.load(out / 'views.npz')
  for name in {key.split('/')[0] for key in views}:
    picture = views[f'{name}/picture']
    mask = np.zeros(picture.shape[:2], bool)
    mask[5:34, 7:39] = True
    for kind, image, mean, std in [
      ('clip', preprocessing.centre(picture, 32), clip.MEAN, clip.STD),
      ('clip224', preprocessing.centre(picture, 224), clip.MEAN, clip.STD),
      ('dino', preprocessing.centre(picture, 32, shorter=36), dino.MEAN, dino.STD),
      ('dino224', preprocessing.centre(picture, 224, shorter=256), dino.MEAN, dino.STD),
      ('squash', preprocessing.squash(picture, 224), clip.MEAN, clip.STD),
      ('region', preprocessing.score_region(picture, mask, 224), clip.MEAN, clip.STD),
    ]:
      ours = vit.normalise(jnp.asarray(image)[None], mean, std)[0]
      expected = views[f'{name}/{kind}']
      np.testing.assert_allclose(ours, expected, atol=2e-5, err_msg=f'{name} {kind}')


def test_published_names_shapes_and_numbers_of_parameters(out):
  """At full size, without weights; 21,785,568 and the statistics of Inception's norms."""
  tables = {
    'clip_b32': (clip_image.OPENAI, 87_849_216),
    'inception': (inception_tables.TABLE, 21_785_568 + 34_432),
    'dino_s16': (dino_tables.ORIGINAL, 21_665_664),
    'lpips_alex': (lpips.TABLES['alex'], 2_469_696 + 1152),
    'lpips_vgg': (lpips.TABLES['vgg'], 14_714_688 + 1472),
    'lpips_squeeze': (lpips.TABLES['squeeze'], 722_496 + 2240),
  }
  weights = dict(lpips_alex=[64, 192, 384, 256, 256], lpips_vgg=[64, 128, 256, 512, 512])
  weights |= dict(lpips_squeeze=[64, 128, 256, 384, 384, 512, 512])
  for name, shapes in json.loads((out / 'shapes.json').read_text()).items():
    shapes |= {f'lin{i}.model.1.weight': [1, n, 1, 1] for i, n in enumerate(weights.get(name, []))}
    arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    tensors = {key: Tensor(a.shape, a.dtype, lambda a=a: a) for key, a in arrays.items()}
    family, (table, parameters) = networks.FAMILIES[name.split('_')[0]], tables[name]
    network = family.recognise(Published(tensors, {}, (), name))
    assert network.name == name
    build = lambda: family.build(**network.settings, rngs=nnx.Rngs(0))  # noqa: B023
    assert count(references.ours(build, table, arrays)) == parameters


# Against transformers


def tower(**settings):
  return dict(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=100,
    image_size=40,
    patch_size=8,
    **settings,
  )


@pytest.mark.parametrize('whole', [True, False])
def test_clip_in_transformers_folders(tmp_path, whole):
  if whole:
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    config = transformers.CLIPConfig(vision_config=tower(), text_config=text, projection_dim=24)
    theirs = references.randomised(transformers.CLIPModel(config))
    call = theirs.get_image_features
  else:
    config = transformers.CLIPVisionConfig(**tower(projection_dim=24))
    theirs = references.randomised(transformers.CLIPVisionModelWithProjection(config))
    call = theirs
  theirs.save_pretrained(tmp_path)
  network = networks.load('clip', tmp_path)
  pictures = np.random.default_rng(1).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
  pixels = vit.normalise(jnp.asarray(pictures / 127.5 - 1, jnp.float32), clip.MEAN, clip.STD)
  with torch.no_grad():
    result = call(references.channels_first(np.asarray(pixels)))
  expected = result.pooler_output if whole else result.image_embeds
  assert_close(network(iter(pictures)), expected.numpy())


def test_clips_texts_in_a_transformers_folder(tmp_path):
  """And the score of PIE-Bench, by torchmetrics' formula."""
  size = vocabulary.write(tmp_path)
  text = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
  text |= dict(vocab_size=size, max_position_embeddings=9, eos_token_id=size - 1)
  config = transformers.CLIPConfig(vision_config=tower(), text_config=text, projection_dim=24)
  theirs = references.randomised(transformers.CLIPModel(config))
  theirs.save_pretrained(tmp_path)
  texts = networks.load_texts('clip', tmp_path)
  said = ['red ball', 'blue star', 'photo of red red ball blue star photo of star']  # one is cut
  with torch.no_grad():
    ids = torch.from_numpy(np.stack([texts.prepare(text) for text in said])).long()
    expected = theirs.get_text_features(ids).pooler_output.numpy()
  assert_close(texts(said), expected)
  network = networks.load('clip', tmp_path)
  seen = network(iter(np.random.default_rng(1).integers(0, 256, (3, 40, 40, 3), np.uint8)))
  unit = lambda x: torch.nn.functional.normalize(torch.from_numpy(x), dim=-1)
  score = (100 * (unit(seen) * unit(expected)).sum(-1)).clamp(min=0)
  np.testing.assert_allclose(scored(seen, texts(said)), score, atol=1e-3)
  assert (texts.name, texts.dim) == (network.name, network.dim) and score.max() > 1


def test_dino_in_a_transformers_folder(tmp_path):
  config = transformers.ViTConfig(**tower(hidden_act='gelu'))
  theirs = references.randomised(transformers.ViTModel(config))
  theirs.save_pretrained(tmp_path)
  network = networks.load('dino', tmp_path)
  image = np.random.default_rng(1).uniform(-1, 1, (3, 40, 40, 3)).astype(np.float32)
  pixels = vit.normalise(jnp.asarray(image), dino.MEAN, dino.STD)
  with torch.no_grad():
    hidden = theirs(references.channels_first(np.asarray(pixels))).last_hidden_state
  assert_close(network.embed(iter(image)), hidden[:, 0].numpy())


# What is refused


def test_torchvisions_own_inception_is_not_fids(tmp_path):
  tensors = {'fc.weight': torch.zeros(1000, 2048), 'fc.bias': torch.zeros(1000)}
  torch.save(tensors, tmp_path / 'inception_v3_google.pth')
  with pytest.raises(UserError, match='needs pt_inception-2015-12-05.* 1000 classes'):
    networks.load('inception', tmp_path / 'inception_v3_google.pth')
