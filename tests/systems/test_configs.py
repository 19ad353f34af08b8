"""The configs build what they say, and their keys are the arguments that they become."""

import functools
import inspect
import re

import jax
import pytest
from flax import nnx

from configs import autoencoder, clip, pbe, sd, synthetic_bench
from exedit import autoencoder_kl, contrastive, latent_diffusion, paint_by_example, stable_diffusion
from exedit.evaluation import synthetic_bench as evaluation
from exedit.input_pipeline import open_images, vocabulary, world
from exedit.models import parameters
from exedit.runtime import settings
from exedit.training.config import Config
from tests.networks import keys


@functools.cache
def parts(variant):
  """(trainable, frozen) shapes of a variant."""
  config = pbe.get_config(variant)
  build = lambda: paint_by_example.build(
    **config.model.to_dict(), rngs=parameters.Keys(jax.random.key(0))
  )
  _, shapes = parameters.flatten(nnx.eval_shape(build))
  return parameters.split_trainable(shapes, config.trainable)


def size(params):
  return sum(x.size for x in jax.tree.leaves(params))


def test_the_published_recipe_trains_what_the_original_trained():
  """Facts 1.5: AdamW's moments of 923,306,500 parameters explain the released file's size."""
  trainable, frozen = parts('full')
  assert size(trainable) == 923_306_500
  assert size(frozen) == 303_179_776 + 83_653_863
  assert {name.split('.')[0] for name in frozen} == {'clip', 'autoencoder'}
  assert 'conditioner.null' in trainable


def test_the_published_recipe():
  """Facts 5, cell by cell."""
  config = pbe.get_config()
  assert (config.data.size, config.data.exemplar_size) == (512, 224)
  optimizer = config.optimizer
  assert (optimizer.lr, optimizer.b1, optimizer.b2, optimizer.eps) == (1e-5, 0.9, 0.999, 1e-8)
  assert (optimizer.weight_decay, optimizer.decay_exclude, optimizer.clip) == (1e-2, '', None)
  assert (optimizer.warmup, optimizer.schedule) == (10_000, 'constant')
  assert (config.model.p_drop, config.model.schedule.prediction) == (0.2, 'eps')
  assert (config.ema.decay, config.batch_size) == (0.0, 256)
  assert (config.edit.steps, config.edit.scale, config.edit.sampler) == (50, 5.0, 'plms')


def test_tiny_trains_its_tower_too_and_fits_the_weights_that_ship():
  trainable, frozen = parts('tiny')
  assert not frozen
  assert size(trainable) * 2 <= 8e6  # bytes, stored in half precision


@pytest.mark.parametrize(
  'variant', ['full', 'tiny', 'lineage', 'published', 'baseline', 'guidance:tiny', 'generator:tiny']
)
def test_every_key_is_an_argument(variant):
  config = pbe.get_config(variant)
  arguments = inspect.signature(Config).parameters
  assert set(config) <= set(arguments)
  known = set(inspect.signature(open_images.make_example).parameters)
  loader = {'root', 'split', 'workers', 'threads', 'prefetch', 'on_corrupt', 'shuffle'}
  assert set(config.data) <= known | loader


@pytest.mark.parametrize(
  'variant, factor, count', [('full', 8, 83_653_863), ('tiny', 8, 1_084_168)]
)
def test_the_autoencoders_sizes(variant, factor, count):
  config = autoencoder.get_config(variant).to_dict()
  assert set(config) == set(pbe.get_config(variant))
  _, shapes = latent_diffusion.abstract(autoencoder_kl.build, config['model'])
  trained, frozen = parameters.split_trainable(shapes, config['trainable'])
  assert (size(trained), frozen) == (count, {})
  model = nnx.eval_shape(lambda: autoencoder_kl.build(**config['model'], rngs=keys()))
  assert model.multiple() == factor
  with pytest.raises(ValueError, match="no variant 'huge'; use full or tiny"):
    autoencoder.get_config('huge')


@pytest.mark.parametrize(
  'variant, width, count', [('full', 768, 427_616_513), ('tiny', 128, 811_361)]
)
def test_clips_sizes(variant, width, count):
  """transformers' CLIPModel of openai/clip-vit-large-patch14 has as many parameters."""
  config = clip.get_config(variant).to_dict()
  assert set(config) == set(sd.get_config(variant))
  _, shapes = latent_diffusion.abstract(contrastive.build, config['model'])
  trained, frozen = parameters.split_trainable(shapes, config['trainable'])
  assert frozen == {} and size(trained) == count
  assert shapes['text_projection.kernel'].shape[1] == width
  with pytest.raises(ValueError, match="no variant 'huge'; use full or tiny"):
    clip.get_config('huge')


@pytest.mark.parametrize('config', [autoencoder.tiny, clip.tiny, sd.tiny, pbe.lineage])
def test_the_command_line_can_set_what_has_no_value(config):
  made = config()
  assert made.get_type('init_from') is made.get_type('init_clip') is str
  assert made.optimizer.get_type('clip') is float and made.mesh.get_type('fsdp') is int


def test_the_small_lineage_fits_together():
  """Each training can start from those before it, and its weights are small enough to ship."""
  latents, towers, by_text, by_picture = (
    system.complete(config['model'])
    for system, config in (
      (autoencoder_kl, autoencoder.tiny().to_dict()),
      (contrastive, clip.tiny().to_dict()),
      (stable_diffusion, sd.tiny().to_dict()),
      (paint_by_example, pbe.lineage().to_dict()),
    )
  )
  assert latents['autoencoder'] == by_text['autoencoder'] and towers['text'] == by_text['text']
  for part in ('unet', 'autoencoder', 'schedule', 'context_dim'):
    assert by_text[part] == by_picture[part]
  assert towers['clip'] == by_picture['clip']
  assert towers['text']['vocabulary'] == len(vocabulary.make(world.words())[0])
  for system, config in ((stable_diffusion, sd.tiny()), (paint_by_example, pbe.lineage())):
    _, shapes = latent_diffusion.abstract(system.build, config.model.to_dict())
    assert size(shapes) * 2 <= 12e6  # bytes, stored in half precision


def test_the_settings_of_older_weights_say_what_they_said():
  """Digests in recipes and in encoded data are made of them."""
  complete = paint_by_example.complete({})['autoencoder']
  assert (
    'fold' not in complete
    and complete == paint_by_example.complete(dict(autoencoder=dict(fold=1)))['autoencoder']
  )
  assert paint_by_example.complete(dict(autoencoder=dict(fold=2)))['autoencoder']['fold'] == 2


def test_the_variant_published_takes_the_released_codes_choices():
  full, found = pbe.get_config('full').to_dict(), pbe.get_config('published').to_dict()
  assert sorted(settings.differences(full, found)) == [
    'data.mask_dedupe None -> True',
    'edit.spacing None -> ldm',
    'model.drop example -> batch',
    'model.dtype bfloat16 -> float32',
  ]


def test_variants_have_the_same_keys():
  full, tiny = pbe.get_config('full'), pbe.get_config('tiny')
  assert set(tiny) == set(full)
  with pytest.raises(ValueError, match="no variant 'huge'; use full, tiny, .* or guidance:tiny"):
    pbe.get_config('huge')


def test_the_benchmark_scores_enough_edits():
  config = synthetic_bench.get_config()
  assert config.edits >= 256
  assert set(config) - {'bench'} <= set(inspect.signature(evaluation.evaluate).parameters)


def test_the_dead_kernels_that_the_recipe_names_are_the_dead_ones():
  """22,000,000 parameters of the UNet and 10,496,000 of the mapper (docs/facts.md)."""
  pattern = re.compile(r'attn2[.]to_[qk]|attention.*norm2[.]|mapper.*to_[qk]')
  trainable, _ = parts('full')
  dead = {name: x for name, x in trainable.items() if pattern.search(name)}
  in_resblocks = {
    name: x for name, x in dead.items() if 'resnets' in name or 'mid1' in name or 'mid2' in name
  }
  mapper = {name: x for name, x in dead.items() if 'mapper' in name}
  assert not in_resblocks
  assert size(mapper) == 10_496_000
  assert size(dead) - size(mapper) == 22_000_000
