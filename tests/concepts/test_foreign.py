"""Concepts in other layouts: written and read again, what is lost, and what is refused."""

import dataclasses
import re

import numpy as np
import pytest

from exedit import stable_diffusion
from exedit.concepts import concept as concepts
from exedit.concepts import files, foreign
from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.torch_saving import save_tree
from tests import concepts_made, small_text

PROJECTION = 'unet.mid_attention.proj_in.kernel'
NAMES = dict(adobe='delta.bin', compressed='delta.bin', original='delta.ckpt')


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return find.weights(small_text.export(tmp_path_factory.mktemp('sd'), stable_diffusion.SYSTEM))


@pytest.fixture(scope='module')
def concept(base):
  return concepts_made.made(base, ('<new1>', '<new2>'))


@pytest.mark.parametrize('layout', ['adobe', 'original', 'diffusers', 'comfyui'])
def test_what_is_written_is_read_again(tmp_path, base, concept, layout):
  path = tmp_path / NAMES.get(layout, 'folder')
  foreign.write(path, concept, layout, base)
  found = files.read(path, base)
  assert found.tokens.keys() == concept.tokens.keys() and found.base == ''
  for name, row in concept.tokens.items():
    np.testing.assert_array_equal(found.tokens[name], row)
  assert found.kernels.keys() == concept.kernels.keys()
  for name, array in concept.kernels.items():
    off = 1e-6 if layout == 'comfyui' else 0  # the base was taken off and is added again
    np.testing.assert_allclose(found.kernels[name], array, rtol=0, atol=off)
  assert concepts.applied(base, [found]).words == ('<new1>', '<new2>')


def low_rank(base, concept, rank):
  """The concept with differences of this rank and of falling size."""
  random, kernels = np.random.default_rng(5), {}
  for path in concept.kernels:
    plain = base.tensors[path].read()
    n, m = plain.shape
    u, v = (
      random.standard_normal((n, rank)) * 2.0 ** -np.arange(rank),
      random.normal(size=(rank, m)),
    )
    kernels[path] = np.float32(plain + u @ v)
  return dataclasses.replace(concept, kernels=kernels)


@pytest.mark.parametrize('layout', ['compressed', 'kohya'])
def test_products_of_low_rank(tmp_path, base, concept, layout):
  three = low_rank(base, concept, 3)
  for rank in (3, 2):
    path = tmp_path / str(rank) / NAMES.get(layout, 'folder')
    path.parent.mkdir()
    said = foreign.write(path, three, layout, base, rank)
    found, squares = files.read(path, base), np.zeros(2)
    for name, array in three.kernels.items():
      change = array - base.tensors[name].read()
      u, s, v = np.linalg.svd(change.T)  # their orientation
      kept = (
        rank if layout == 'kohya' else next(r for r in range(1, 9) if s[:r].sum() >= 0.6 * s.sum())
      )
      best = (u[:, :kept] * s[:kept]) @ v[:kept]
      np.testing.assert_allclose(found.kernels[name] - base.tensors[name].read(), best.T, atol=1e-5)
      squares += np.square(change.T - best).sum(), np.square(change).sum()
    told = float(re.search(r'from the base are ([\d.]+)% off', said).group(1))
    assert told == pytest.approx(100 * (squares[0] / squares[1]) ** 0.5, abs=0.06)


def test_a_lora_of_others(tmp_path, base):
  random = np.random.default_rng(0)
  plain = {name: base.tensors[name].read() for name in (concepts_made.MIDDLE, PROJECTION)}
  named, factors = {}, {}
  for (path, array), flat in zip(plain.items(), ('transformer_blocks_0_attn2_to_k', 'proj_in')):
    up, down = random.normal(size=(array.shape[1], 2)), random.normal(size=(2, array.shape[0]))
    factors[path] = np.float32(4 * up @ down).T  # alpha 8 by rank 2
    ones = (1, 1) if flat == 'proj_in' else ()  # a convolution
    name = f'lora_unet_mid_block_attentions_0_{flat}'
    named[f'{name}.lora_up.weight'] = np.float32(up).reshape(*up.shape, *ones)
    named[f'{name}.lora_down.weight'] = np.float32(down).reshape(*down.shape, *ones)
    named[f'{name}.alpha'] = np.array(8, np.float32)
  save_tensors(tmp_path / 'lora.safetensors', named)
  found = files.read(tmp_path / 'lora.safetensors', base)
  assert found.kernels.keys() == plain.keys()
  for path, array in found.kernels.items():
    np.testing.assert_allclose(array, plain[path] + factors[path], atol=1e-5)


def test_words_alone(tmp_path, base):
  one = concepts_made.made(base, ('<new1>',), kernels=False)
  several = concepts_made.made(base, ('<a>', '<a>_1', '<a>_2'), kernels=False)
  for concept in (one, several):
    for name in ('e.safetensors', 'e.bin'):
      foreign.write(tmp_path / name, concept, 'embedding', base)
      found = files.read(tmp_path / name)
      assert [*found.tokens] == [*concept.tokens] and not found.kernels
      assert all((found.tokens[word] == row).all() for word, row in concept.tokens.items())
  rows = np.stack([*several.tokens.values()])
  save_tree(tmp_path / 'style.pt', {'string_to_param': {'*': rows}, 'string_to_token': {}})
  save_tensors(tmp_path / 'other.safetensors', dict(emb_params=rows[:1]))
  assert [*files.read(tmp_path / 'style.pt').tokens] == ['style', 'style_1', 'style_2']
  assert [*files.read(tmp_path / 'other.safetensors').tokens] == ['other']


def row(size=16):
  return np.zeros(size, np.float32)


@pytest.mark.parametrize(
  'tree, says',
  [
    ({'unet': {'mid.to_k.weight': row()[None]}}, r'\+ mid.to_k.weight'),
    ({'text_encoder': {'a': row()}, 'modifier_token': {'<a>': row()}}, 'text_encoder/a'),
    ({'unet': {'a': {'u': row()[None]}}}, "'a' lacks one of its two factors"),
    ({'state_dict': {'model.diffusion_model.a': row()}}, r'\+ model.diffusion_model.a'),
    ({'state_dict': {'model.diffusion_model.a': row(), 'b': row()}}, "such as 'b'"),
    ({'lora_unet_a.diff': row()[None]}, "such as 'lora_unet_a'"),
    ({'lora_unet_a.diff': row()[None], 'lora_te_b.diff': row()[None]}, 'holds 2 entries'),
    ({'lora_unet_a.lora_down.weight': row()[None]}, "'lora_unet_a' lacks one of its two factors"),
    ({'lora_unet_a.dora_scale': row()}, "such as 'lora_unet_a.dora_scale'"),
    ({'x.attn2.processor.to_k_custom_diffusion.weight': row()[None], 'y': row()}, "such as 'y'"),
    ({'a': row(), 'b': row().reshape(2, 2, 4)}, "such as 'b'"),
  ],
)  # fmt: skip
def test_what_a_concept_does_not_have_is_refused(tmp_path, base, tree, says):
  save_tree(tmp_path / 'a.bin', tree)
  with pytest.raises(UserError, match=says):
    files.read(tmp_path / 'a.bin', base)


@pytest.mark.parametrize(
  'layout, words, says',
  [
    ('diffusers', ('../../x',), "'../../x' cannot name a file of the layout diffusers: choose"),
    ('comfyui', ('..\\x',), 'cannot name a file'),
    ('diffusers', ('.x',), 'cannot name a file'),
    ('kohya', ('<>',), 'cannot name a file'),
    ('kohya', ('<lora>',), "'<lora>' .* has the name lora.safetensors, as the arrays have"),
    ('kohya', ('<a>', 'A'), "'A' .* has the name A.safetensors, as that of '<a>'"),
    ('diffusers', ('pytorch_custom_diffusion_weights',), 'as the arrays have'),
  ],
)
def test_a_word_that_cannot_name_a_file_is_refused(tmp_path, base, layout, words, says):
  concept = concepts_made.made(base, words, kernels=False)
  with pytest.raises(UserError, match=says):
    foreign.write(tmp_path / 'a' / 'b', concept, layout, base)
  assert not [*tmp_path.iterdir()]


def test_the_rest_is_refused_too(tmp_path, base, concept):
  foreign.write(tmp_path / 'delta.ckpt', concept, 'original', base)
  with pytest.raises(UserError, match='only with the weights that it belongs to'):
    files.read(tmp_path / 'delta.ckpt')
  foreign.write(tmp_path / 'c', concept, 'diffusers', base)
  (tmp_path / 'c' / 'again.bin').write_bytes((tmp_path / 'c' / foreign.WHOLE).read_bytes())
  with pytest.raises(UserError, match='two files in .* hold unet'):
    files.read(tmp_path / 'c', base)
  part = {n: a for n, a in concept.kernels.items() if n != concepts_made.MIDDLE}
  foreign.write(tmp_path / 'part.bin', dataclasses.replace(concept, kernels=part), 'adobe', base)
  with pytest.raises(
    UserError, match=f'lacks 1 of 14 keys and values, such as {concepts_made.MIDDLE}'
  ):
    concepts.applied(base, [files.read(tmp_path / 'part.bin', base)])
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='has neither concept.safetensors nor a .safetensors'):
    files.read(tmp_path / 'empty')
  for layout, name, change, says in (
    ('adobe', 'a.safetensors', {}, 'the layout adobe is one .bin'),
    ('embedding', 'e.bin', {}, 'the layout embedding cannot hold unet'),
    ('embedding', 'e.bin', dict(kernels={}), 'the words <new1>, <new2>, and an'),
    ('embedding', 'e.bin', dict(kernels={}, tokens={}), 'has no words'),
    ('adobe', 'a.bin', dict(kernels={'text.final_norm.bias': row()}), 'cannot hold text'),
    ('comfyui', 'f', dict(kernels={'unet.conv_in.bias': row()}), 'is no matrix'),
    ('diffusers', 'f', dict(kernels={'unet.time1.bias': row()}), 'cannot hold time'),
  ):  # fmt: skip
    with pytest.raises(UserError, match=says):
      foreign.write(tmp_path / name, dataclasses.replace(concept, **change), layout, base)
    assert not (tmp_path / name).exists()
