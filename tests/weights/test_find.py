"""The layout of weights is recognised; unknown weights are refused with one line."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from exedit import paint_by_example as pbe
from exedit.models import parameters
from exedit.runtime.errors import UserError, explain
from exedit.weights import find
from exedit.weights.formats.torch_saving import save_checkpoint
from tests import pictures, released, small

KERNEL = 'unet.down.0.attentions.0.attn1.to_q.kernel'


@pytest.fixture(scope='session')
def run(tmp_path_factory):
  return Path(small.workdir(tmp_path_factory.mktemp('small') / 'run', steps=(3,)))


pytestmark = pytest.mark.usefixtures('own_cache')


def test_every_layout_is_found(pipeline, tmp_path):
  checkpoint = released.checkpoint()
  released.write_checkpoint(tmp_path / 'model.safetensors', checkpoint)
  found = {
    'diffusers': find.weights(pipeline),
    'exedit': find.weights(released.export(tmp_path / 'exported')),
    'original': find.weights(tmp_path / 'model.safetensors', heads=2, groups=4),
  }
  model = pbe.complete(released.SMALL)
  for layout, weights in found.items():
    assert weights.layout == layout
    released.assert_same(weights, where=layout)
    own = pbe.complete(weights.config['model'])
    if layout == 'original':  # the given number of groups holds for all networks
      own['unet']['groups'] = 8
    assert own == model
    assert weights.config['data']['exemplar_size'] == 32
    assert weights.config['edit']['steps'] > 0
  assert found['exedit'].step == 7 and found['diffusers'].step == 0


def test_a_folder_with_one_checkpoint_means_it(tmp_path):
  (tmp_path / 'download').mkdir()
  released.write_checkpoint(tmp_path / 'download' / 'model.safetensors')
  pictures.strew(tmp_path)
  assert find.weights(tmp_path / 'download', heads=2, groups=4).layout == 'original'
  (tmp_path / 'download' / 'optimizer.pt').write_bytes(b'not weights')
  assert find.weights(tmp_path / 'download', heads=2, groups=4).layout == 'original'
  released.write_checkpoint(tmp_path / 'download' / 'other.safetensors')
  with pytest.raises(UserError, match=r'several checkpoints \(model.safetensors, other.safeten'):
    find.weights(tmp_path / 'download')
  (tmp_path / 'torch').mkdir()
  save_checkpoint(tmp_path / 'torch' / 'model.pt', released.checkpoint())
  assert find.weights(tmp_path / 'torch', heads=2, groups=4).layout == 'original'
  (tmp_path / 'torch' / 'model.ckpt').write_bytes(b'another kind of the same')
  released.write_checkpoint(tmp_path / 'torch' / 'model.safetensors')
  assert find.weights(tmp_path / 'torch', heads=2, groups=4).files[0].suffix == '.safetensors'


def test_the_system_of_our_own_layout_is_in_its_config(tmp_path):
  released.export(tmp_path / 'a')
  assert find.weights(tmp_path / 'a').kind == 'paint_by_example'  # old configs do not name it
  released.change_json(tmp_path / 'a' / 'config.json', system='another')
  assert find.weights(tmp_path / 'a').kind == 'another'


def test_a_workdir_gives_each_array_away_and_can_be_asked_again(pipeline, tmp_path):
  weights = find.weights(small.workdir(tmp_path / 'run', steps=(3,)))
  assert weights.step == 3 and weights.kind == 'paint_by_example'
  for _ in range(2):
    released.assert_same(weights, small.params())
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')  # the config alone does not need it
  assert find.config(tmp_path / 'run')['model']['context_dim'] == 16
  assert find.config(pipeline)['model']['context_dim'] == 12


def test_a_path_that_is_not_there():
  with pytest.raises(UserError, match='nowhere does not exist'):
    find.weights('nowhere')


@pytest.mark.parametrize(
  'part',
  [
    'pipeline/unet',
    'pipeline/unet/config.json',
    'pipeline/unet/diffusion_pytorch_model.safetensors',
    'pipeline/image_encoder',
    'pipeline/scheduler/scheduler_config.json',
    'pipeline/model_index.json',
    'run/checkpoints',
    'run/checkpoints/3',
    'run/config.json',
    'run/frozen.safetensors',
  ],
)
@pytest.mark.parametrize('where', ['absolute', 'relative', 'inside'])
def test_a_part_of_weights_names_the_whole(pipeline, run, tmp_path, monkeypatch, part, where):
  name, _, rest = part.partition('/')
  folder = dict(pipeline=pipeline, run=run)[name]
  path, whole = folder / rest, folder
  if where != 'absolute':
    monkeypatch.chdir(folder.parent if where == 'relative' else folder)
    path = path.relative_to(os.getcwd())
    whole = os.path.relpath(folder)
  what = 'a diffusers pipeline' if name == 'pipeline' else 'exported weights or a run'
  for look in (find.weights, find.config):
    with pytest.raises(UserError) as error:
      look(path)
    assert str(error.value) == f'{path} is a part of {what}: name the whole folder, {whole}'
  find.config(whole)


def test_parts_without_the_whole_and_wholes_among_others(folder, tmp_path):
  (folder / 'unet').rename(tmp_path / 'alone')
  with pytest.raises(UserError, match='one network of diffusers .*UNet2D.* folder of a pipeline'):
    find.weights(tmp_path / 'alone')
  runs = tmp_path / 'unet'  # a folder of this name is no pipeline
  runs.mkdir()
  released.export(runs / 'unet')
  assert find.weights(runs / 'unet').layout == 'exedit'
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'config.json').touch()
  for place in (folder, tmp_path / 'checkpoints'):  # as the hub and the original code have it
    original = released.write_checkpoint(place / 'model.safetensors')
    assert find.weights(original, heads=2, groups=4).layout == 'original'
  (tmp_path / 'all').mkdir()
  released.export(tmp_path / 'all' / 'one')
  (tmp_path / 'all' / 'photos').mkdir()
  with pytest.raises(UserError, match=f'no weights itself: name one of {tmp_path}/all/one$'):
    find.weights(tmp_path / 'all')


# loading


def test_kernels_have_the_wanted_type(pipeline):
  dtype = 'bfloat16'
  model = pbe.load(pipeline, dtype=dtype)
  _, params = parameters.flatten(model)
  for name, array in released.params().items():
    kept = jnp.dtype(dtype if name.endswith('.kernel') else 'float32')
    assert params[name].dtype == kept
    np.testing.assert_array_equal(params[name], array.astype(kept))
  assert model.unet.dtype == jnp.dtype(dtype) and model.clip.dtype == jnp.dtype(dtype)


def test_halved_weights_are_loaded_as_float32(tmp_path):
  released.export(tmp_path / 'a')
  released.rewrite(
    tmp_path / 'a' / 'model.safetensors',
    lambda arrays: {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()},
  )
  released.change_json(tmp_path / 'a' / 'config.json', exported=None)
  model = pbe.load(find.weights(tmp_path / 'a'))
  _, params = parameters.flatten(model)
  expected = released.params()[KERNEL].astype(ml_dtypes.bfloat16).astype(np.float32)
  assert params[KERNEL].dtype == np.float32
  np.testing.assert_array_equal(params[KERNEL], expected)


# digests


def test_the_digest_is_the_files_own_and_follows_it(tmp_path):
  file = released.write_checkpoint(tmp_path / 'a.safetensors')
  first = find.weights(file, heads=2, groups=4).digest()
  assert first == hashlib.sha256(file.read_bytes()).hexdigest()
  released.rewrite(file, lambda arrays: arrays | {'proj_out.bias': arrays['proj_out.bias'] + 1})
  second = find.weights(file, heads=2, groups=4).digest()
  assert second == hashlib.sha256(file.read_bytes()).hexdigest() != first


def test_digests_tell_which_and_every_part(pipeline, folder, tmp_path):
  one = find.weights(pipeline).digest()
  assert find.weights(folder).digest() == one  # the place has no influence
  vae = folder / 'vae' / 'diffusion_pytorch_model.safetensors'
  released.rewrite(vae, lambda arrays: {n: 2 * a for n, a in arrays.items()})
  assert find.weights(folder).digest() != one
  run = small.workdir(tmp_path / 'run', steps=(3,))
  assert find.weights(run, 'ema').digest() != find.weights(run, 'params').digest()


def test_an_exported_file_that_changed_is_refused(tmp_path):
  file = released.export(tmp_path / 'a') / 'model.safetensors'
  data = bytearray(file.read_bytes())
  data[-5] ^= 4
  file.write_bytes(data)
  weights = find.weights(tmp_path / 'a')
  with pytest.raises(UserError, match='model.safetensors is damaged .its SHA-256 is') as error:
    pbe.load(weights)
  assert '\n' not in str(error.value)


# names


def test_one_listing_of_all_that_does_not_fit(folder):
  file = folder / 'unet' / 'diffusion_pytorch_model.safetensors'

  def spoil(arrays):
    del arrays['conv_in.bias']
    arrays['conv_out.bias'] = np.zeros(5, np.float32)
    return arrays | {f'adapter.{i}': np.zeros(1, np.float32) for i in range(30)}

  released.rewrite(file, spoil)
  with pytest.raises(UserError) as error:
    pbe.load(folder)
  assert len(error.value.listing) == 32
  lines = explain(error.value).splitlines()
  assert 'does not fit the network (- missing, + unexpected' in lines[0]
  assert lines[1:3] == ['  - unet/conv_in.bias', '  + unet/adapter.0']
  assert lines[-1] == '  and 12 more' and len(lines) == 22
  assert error.value.listing[-1] == '! unet/conv_out.bias: shape (5,), should be (4,)'


def test_names_in_a_file_cannot_break_the_line(folder):
  file = folder / 'vae' / 'diffusion_pytorch_model.safetensors'
  released.rewrite(file, lambda arrays: arrays | {'a\nerror: b\x1b[2J': np.zeros(1, np.float32)})
  with pytest.raises(UserError) as error:
    pbe.load(folder)
  assert error.value.listing == (r'+ vae/a\nerror: b\x1b[2J',)


def test_whole_numbers_are_no_weights(folder):
  file = folder / 'vae' / 'diffusion_pytorch_model.safetensors'
  released.rewrite(file, lambda arrays: {n: a.astype(np.int8) for n, a in arrays.items()})
  with pytest.raises(UserError, match='holds int8 numbers for autoencoder.* must be floating-poi'):
    pbe.load(folder)


# Stable Diffusion


def test_stable_diffusion_without_its_text_tower_is_half_a_pipeline(folder):
  text = released.to_text_pipeline(folder)
  (text / 'text_encoder').rmdir()  # the hub gives only the needed files
  with pytest.raises(UserError, match='is half a pipeline: .* lacks text_encoder/'):
    find.weights(text)


def test_an_inpainting_model_is_not_mistaken_for_paint_by_example(folder, tmp_path):
  """It has nine channels too, in another order and with the opposite mask."""
  for src in (
    released.to_text_pipeline(folder, channels=9),
    released.write_checkpoint(tmp_path / 'sd.safetensors', released.text_checkpoint(channels=9)),
  ):
    found = find.weights(src, heads=2, groups=4, to_start=True)
    assert found.kind == 'stable_diffusion_inpainting'
    with pytest.raises(UserError, match='holds weights of stable_diffusion_inpainting: name those'):
      pbe.load(found)


@pytest.mark.parametrize(
  ('group', 'name', 'value', 'words'),
  [
    ('data', 'size', 65536, 'size is 65536, which must be whole and at most 4096'),
    ('data', 'exemplar_size', 65536, 'size is 65536, which must be whole and at most 4096'),
    ('clip', 'image_size', 2048, 'image_size is 2048, which must be whole and at most 1024'),
    ('autoencoder', 'scale', 'a', "autoencoder.scale is 'a', which must be a finite number"),
    ('autoencoder', 'scale', 10**400, 'autoencoder.scale is 1000'),
    ('autoencoder', 'scale', 0, 'autoencoder.scale is 0'),
    ('autoencoder', 'mean', float('nan'), 'autoencoder.mean is nan'),
    ('schedule', 'beta_start', True, 'schedule.beta_start is True'),
    ('schedule', 'beta_end', None, 'schedule.beta_end is None'),
    ('edit', 'scale', 10**400, r'\(scale is 1000'),
    ('edit', 'scale', float('inf'), r'\(scale is inf'),
  ],
)
def test_numbers_that_would_cost_all_memory_or_are_none(tmp_path, group, name, value, words):
  config = released.config()
  config['model']['schedule'] = {}
  (config if group in ('data', 'edit') else config['model'])[group][name] = value
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=words) as error:
    find.config(tmp_path)
  assert '\n' not in str(error.value) and len(str(error.value)) < 400


def test_numbers_of_our_own_config_may_be_written_in_any_way(tmp_path):
  released.export(tmp_path / 'a')
  file = tmp_path / 'a' / 'config.json'
  config = json.loads(file.read_text())
  config['model']['unet'] |= dict(heads=2.0, mult=[1.0, 2])
  config['model'] |= dict(context_dim=12.0, schedule=dict(beta_start=0.001, num_steps=500.0))
  config['model']['autoencoder']['scale'] = 1
  config |= dict(data=dict(size=32.0), edit=dict(steps=3.0, scale=2, sampler=None))
  config['exported'] |= dict(sha256=None, step=None)
  file.write_text(json.dumps(config))
  found = find.weights(tmp_path / 'a')
  released.assert_same(found)
  model = found.config['model']
  assert repr(model['unet']['heads']) == '2' and repr(model['unet']['mult']) == '[1, 2]'
  assert repr(model['context_dim']) == '12' and repr(model['schedule']['num_steps']) == '500'
  assert repr(found.config['data']) == "{'size': 32}" and found.step == 0
  assert repr(found.config['edit']) == "{'steps': 3, 'scale': 2}"
  config['model']['unet']['heads'] = '2'
  file.write_text(json.dumps(config))
  with pytest.raises(UserError, match="model.unet.heads is '2', which must be whole"):
    find.config(tmp_path / 'a')


def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(folder):
  (folder / 'unet' / 'config.json').unlink()
  os.mkfifo(folder / 'unet' / 'config.json')
  with pytest.raises(UserError, match='config.json is a pipe or device'):
    find.weights(folder)
