"""Conversions keep every bit of the weights, and leave nothing behind when they fail."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from exedit import convert as door
from exedit import latent_diffusion
from exedit import paint_by_example as pbe
from exedit.convert import convert
from exedit.runtime.errors import UserError
from exedit.weights import find, translate
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.tensor import Tensor
from exedit.weights.layouts import original
from exedit.weights.tables import conditioner
from tests import ROOT, released, small


def quiet(*args, **kwargs):
  convert(*map(str, args), say=lambda line: None, **kwargs)


@pytest.fixture(autouse=True)
def build_each_model_once(monkeypatch):
  """Traces each network once, because tracing takes half of a conversion's time."""
  shapes = lambda build, settings, where='': released.abstracted(json.dumps(settings))
  monkeypatch.setattr(latent_diffusion, 'abstract', shapes)


def contents(path):
  """The content of every file below a folder, or of the one file, by name."""
  files = [path] if path.is_file() else [p for p in path.rglob('*') if p.is_file()]
  return {str(p.relative_to(path)): p.read_bytes() for p in files}


@pytest.mark.parametrize('name', ['attention-at-the-bottom', 'as-published'])
def test_round_trips_keep_every_bit(name, tmp_path):
  """original -> exedit -> diffusers -> exedit -> original, with the kernels that have no effect."""
  model = released.MODELS[name]
  expected = released.params(model)
  start = tmp_path / 'start.safetensors'
  original.write(
    start,
    dict(released.config(model), model=pbe.complete(model)),
    released.tensors(expected),
  )
  quiet(start, tmp_path / 'a')
  quiet(tmp_path / 'a', tmp_path / 'b', layout='diffusers')
  quiet(tmp_path / 'b', tmp_path / 'c')
  quiet(tmp_path / 'c', tmp_path / 'end.safetensors', layout='original')
  for folder in ('a', 'b', 'c'):
    weights = find.weights(tmp_path / folder)
    assert pbe.complete(weights.config['model']) == pbe.complete(model)
    assert weights.config['data'] == released.config(model)['data']
    assert weights.tensors.keys() == expected.keys()
    for path, array in expected.items():
      np.testing.assert_array_equal(weights.tensors[path].read(), array, err_msg=path)
  first, last = open_tensors(start), open_tensors(tmp_path / 'end.safetensors')
  assert first.keys() == last.keys()
  for path in first:
    assert first[path].read().tobytes() == last[path].read().tobytes(), path


def test_the_original_names_are_the_published_ones():
  """Counts, sizes and names: docs/facts.md, Weight layouts. No weights are made for this."""
  complete = pbe.complete({})
  _, shapes = pbe.abstract({})
  table = [*original.networks(complete['unet'], complete['autoencoder']), *conditioner.ORIGINAL]
  unread = {n: Tensor(a.shape, np.dtype(np.float32), lambda: 1 / 0) for n, a in shapes.items()}
  theirs = {name: tensor.shape for name, tensor in translate.to_theirs(table, unread).items()}
  count = lambda prefix: sum(name.startswith(prefix) for name in theirs)
  assert count('model.diffusion_model.') == 686
  assert count('first_stage_model.') == 248
  assert count('cond_stage_model.transformer.vision_model.') == 391
  assert count('cond_stage_model.mapper.resblocks.') == 60
  assert len(theirs) == 686 + 248 + 391 + 60 + 2 + 2 + 1
  assert 4 * sum(int(np.prod(shape)) for shape in theirs.values()) == 5_240_560_556
  unet, mapper = 'model.diffusion_model.', 'cond_stage_model.mapper.resblocks.4.'
  vae = 'first_stage_model.'
  assert {
    unet + 'input_blocks.0.0.weight': (320, 9, 3, 3),
    unet + 'input_blocks.9.0.op.weight': (1280, 1280, 3, 3),
    unet + 'input_blocks.10.0.in_layers.2.weight': (1280, 1280, 3, 3),
    unet + 'middle_block.1.transformer_blocks.0.attn2.to_k.weight': (1280, 768),
    unet + 'output_blocks.2.1.conv.weight': (1280, 1280, 3, 3),
    unet + 'output_blocks.5.2.conv.weight': (1280, 1280, 3, 3),
    unet + 'output_blocks.8.2.conv.weight': (640, 640, 3, 3),
    unet + 'output_blocks.8.0.skip_connection.weight': (640, 960, 1, 1),
    unet + 'output_blocks.11.1.proj_in.weight': (320, 320, 1, 1),
    vae + 'encoder.down.2.downsample.conv.weight': (512, 512, 3, 3),
    vae + 'decoder.up.3.upsample.conv.weight': (512, 512, 3, 3),
    vae + 'decoder.up.0.block.0.nin_shortcut.weight': (128, 256, 1, 1),
    vae + 'encoder.mid.attn_1.q.weight': (512, 512, 1, 1),
    mapper + 'attn.c_qkv.weight': (3072, 1024),
    mapper + 'attn.c_qkv.bias': (3072,),
    mapper + 'mlp.c_fc.weight': (4096, 1024),
    'learnable_vector': (1, 1, 768),
    'proj_out.weight': (768, 1024),
  }.items() <= theirs.items()


def test_from_a_workdir(tmp_path):
  workdir = small.workdir(tmp_path / 'run', steps=(2, 4))
  quiet(workdir, tmp_path / 'out', which='params')
  weights = find.weights(tmp_path / 'out')
  assert weights.step == 4 and weights.config['exported']['dtype'] == 'float32'
  for path, array in small.params().items():
    np.testing.assert_array_equal(weights.tensors[path].read(), array)


def test_another_type(tmp_path):
  dtype, tolerance = 'bfloat16', 1e-2
  quiet(released.export(tmp_path / 'a'), tmp_path / 'b', layout='diffusers', dtype=dtype)
  tensors = find.weights(tmp_path / 'b').tensors
  assert {str(tensor.dtype) for tensor in tensors.values()} == {dtype}
  for path, array in released.params().items():
    back = tensors[path].read().astype(np.float32)
    np.testing.assert_allclose(back, array, rtol=tolerance, atol=1e-4)
  quiet(tmp_path / 'b', tmp_path / 'c')  # without --dtype
  assert find.weights(tmp_path / 'c').config['exported']['dtype'] == dtype


def too_large(path):
  params = released.params() | {'unet.conv_in.bias': np.full(16, 1e6, np.float32)}
  released.own.write(path, released.config(), params, step=1)
  return path


@pytest.mark.parametrize('layout', ['exedit', 'diffusers', 'original'])
def test_what_fails_half_way_leaves_nothing(tmp_path, layout):
  too_large(tmp_path / 'a')
  before = contents(tmp_path)
  with pytest.raises(UserError, match=r'unet.conv_in.bias holds numbers up to 1e\+06, more than'):
    quiet(tmp_path / 'a', tmp_path / 'b.safetensors', layout=layout, dtype='float16')
  assert contents(tmp_path) == before


@pytest.mark.parametrize(
  ('to', 'layout', 'words'),
  [
    ('a', 'exedit', 'a is a folder with files in it'),
    ('b', 'original', 'one .safetensors or .ckpt or .pt or .pth; end the name so'),
    ('b.safetensors', 'original --format=ckpt', 'one .ckpt or .pt or .pth; end the name so'),
    ('b', 'exedit --format=ckpt', '--format=ckpt goes with --layout=original'),
    ('none/b.safetensors', 'original', 'does not exist'),
  ],
)
def test_targets_that_cannot_be(tmp_path, to, layout, words):
  released.export(tmp_path / 'a')
  before = contents(tmp_path)
  with pytest.raises(UserError, match=words):
    layout, _, format = layout.partition(' --format=')
    quiet(tmp_path / 'a', tmp_path / to, layout=layout, format=format or None)
  assert contents(tmp_path) == before


def test_a_model_without_an_autoencoder_has_only_our_layout(tmp_path):
  small.export(tmp_path / 'a')
  with pytest.raises(UserError, match='has no autoencoder .*space_to_depth'):
    quiet(tmp_path / 'a', tmp_path / 'b.safetensors', layout='original')
  assert os.listdir(tmp_path) == ['a']


@pytest.mark.parametrize(
  ('part', 'change', 'words'),
  [
    ('conditioner', dict(layers=2), 'the conditioner has 2 layers, and diffusers builds 1'),
    ('unet', dict(mult=(2, 4)), 'is 2 times as wide as its first convolution'),
  ],
)
def test_what_diffusers_cannot_say_goes_into_the_original_layout(tmp_path, part, change, words):
  model = {**released.SMALL, part: {**released.SMALL[part], **change}}
  released.export(tmp_path / 'a', model)
  with pytest.raises(UserError, match=words):
    quiet(tmp_path / 'a', tmp_path / 'b', layout='diffusers')
  quiet(tmp_path / 'a', tmp_path / 'b.safetensors', layout='original')
  quiet(tmp_path / 'b.safetensors', tmp_path / 'c')
  assert (
    contents(tmp_path / 'a')['model.safetensors'] == contents(tmp_path / 'c')['model.safetensors']
  )


def test_a_note_in_the_file_keeps_settings_of_edits_and_no_paths(tmp_path):
  config = released.config()
  config['data']['root'] = 'somewhere/private'
  config['edit'] |= dict(spacing='ldm', mask_resize='nearest', count=4)
  released.own.write(tmp_path / 'a', config, released.params(), step=1)
  quiet(tmp_path / 'a', tmp_path / 'b.safetensors', layout='original')
  assert b'private' not in (tmp_path / 'b.safetensors').read_bytes()
  kept = find.weights(tmp_path / 'b.safetensors').config['edit']
  assert kept == {name: value for name, value in config['edit'].items() if name != 'count'}


@pytest.mark.parametrize('ending', ['ckpt', 'pt'])
def test_a_file_for_torch_load_and_back(tmp_path, ending):
  released.export(tmp_path / 'a')
  file = tmp_path / f'b.{ending}'
  quiet(tmp_path / 'a', file, layout='original', format=None if ending == 'pt' else 'ckpt')
  expected, tensors = released.checkpoint(), open_tensors(file)
  assert tensors.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(tensors[name].read(), array, err_msg=name)
  weights = find.weights(file)  # the file says its heads, groups and sampler itself
  assert weights.config == dict(released.config(), model=pbe.complete(released.SMALL))
  quiet(file, tmp_path / 'c')
  assert (
    contents(tmp_path / 'a')['model.safetensors'] == contents(tmp_path / 'c')['model.safetensors']
  )
  half = tmp_path / 'half.ckpt'
  quiet(file, half, layout='original', dtype='bfloat16')
  assert {str(tensor.dtype) for tensor in open_tensors(half).values()} == {'bfloat16'}


def test_heads_of_a_tower_that_no_shape_tells(tmp_path):
  model = {**released.SMALL, 'clip': {**released.CLIP, 'width': 48}}
  file = released.write_checkpoint(tmp_path / 'a.safetensors', released.checkpoint(model))
  with pytest.raises(UserError, match=r'of width 48, .* exedit.convert --clip_heads=NUMBER$'):
    quiet(file, tmp_path / 'b', heads=2, groups=4)
  with pytest.raises(UserError, match='width 48 cannot have 5 heads'):
    quiet(file, tmp_path / 'b', heads=2, groups=4, clip_heads=5)
  quiet(file, tmp_path / 'b', heads=2, groups=4, clip_heads=3)
  assert find.config(tmp_path / 'b')['model']['clip']['heads'] == 3
  file = released.write_checkpoint(tmp_path / 'c.safetensors')  # the flag goes before the guess
  assert find.weights(file, heads=2, groups=4, clip_heads=4).config['model']['clip']['heads'] == 4


def test_the_door_says_what_it_took_from_where(tmp_path, capsys):
  model = {**released.SMALL, 'unet': {**released.UNET, 'heads': 4}}
  released.write_checkpoint(tmp_path / 'a.safetensors', released.checkpoint(model))
  to, given = str(tmp_path / 'b'), ['--heads=4', '--groups=4']
  door.run(['convert', f'--from={tmp_path / "a.safetensors"}', f'--to={to}', *given])
  output = capsys.readouterr().out
  assert 'heads 4: as given\n' in output and 'groups 4: as given\n' in output
  assert 'schedule: as published, for the file does not say\n' in output
  assert re.search(r'b: exedit layout, \d+ tensors, [\d.]+ MB in float32\n$', output)
  assert json.loads((tmp_path / 'b' / 'config.json').read_text())['model']['unet']['heads'] == 4


MEASURE = """
import re, sys
import jax, numpy as np
from exedit import convert, paint_by_example as pbe
from exedit.weights import find

def peak():  # of this program; ru_maxrss includes the process that started it
  return 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])

src, how, to = sys.argv[1:]
weights = find.weights(src)
pbe.abstract(weights.config['model'])
jax.device_put(np.ones(3))
before = peak()
if how == 'load':
  pbe.load(weights)
elif how == 'bfloat16':
  pbe.load(weights, dtype='bfloat16')
else:
  convert.convert(src, to, layout=how, say=str)
size = sum(file.stat().st_size for file in weights.files)
print((peak() - before) / size)
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='needs Linux')
def test_memory(tmp_path):
  """Loading needs little more memory than the weights, a conversion only that of a few tensors."""
  model = dict(
    unet=dict(channels=256, mult=(1, 2), layers=1, attention_levels=(0, 1)),
    autoencoder=dict(kind='kl', channels=32, mult=(1, 2), layers=1),
    clip=dict(width=512, layers=4, heads=8, mlp=2048, patch=16, image_size=64),
    conditioner=dict(layers=1),
    context_dim=256,
  )
  shapes = pbe.abstract(model)[1]
  params = {name: np.zeros(a.shape, np.float32) for name, a in shapes.items()}
  released.own.write(tmp_path / 'a', released.config(model), params, step=1)
  assert (tmp_path / 'a' / 'model.safetensors').stat().st_size > 280e6

  def peak(src, how, to='x'):
    command = [sys.executable, '-c', MEASURE, str(tmp_path / src), how, str(tmp_path / to)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1])

  assert peak('a', 'diffusers', 'b') < 0.3
  assert 0.9 < peak('b', 'load') < 1.3
  assert peak('b', 'bfloat16') < 1.0
