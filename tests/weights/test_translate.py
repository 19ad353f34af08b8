"""Tables translate tensors both ways, and one list shows everything that does not fit."""

import numpy as np
import pytest

from exedit.runtime.errors import UserError
from exedit.weights.formats.tensor import Tensor
from exedit.weights.tables import autoencoder, clip, conditioner, unet
from exedit.weights.translate import (
  CONV1X1,
  SAME,
  conv,
  fused,
  ignored,
  linear,
  norm,
  to_ours,
  to_theirs,
  under,
)

TABLE = [
  *conv('[model.|]blocks.{i}.conv', 'layers.{i}.conv'),
  *linear('head.[to_q|query]', 'head'),
  *linear('proj', 'proj', CONV1X1, bias=False),
  *norm('ln', 'norm'),
  ('position_ids', None, SAME),
]


def theirs():
  random = np.random.default_rng(0)
  shapes = {
    'model.blocks.0.conv.weight': (5, 4, 3, 2),
    'model.blocks.0.conv.bias': (5,),
    'model.blocks.11.conv.weight': (6, 5, 3, 2),
    'model.blocks.11.conv.bias': (6,),
    'head.to_q.weight': (3, 2),
    'head.to_q.bias': (3,),
    'proj.weight': (3, 2, 1, 1),
    'ln.weight': (4,),
    'ln.bias': (4,),
  }
  return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def ours():
  return to_ours(TABLE, theirs())


def test_reading_gives_our_names_and_layouts():
  a, b = theirs(), ours()
  assert len(b) == len(a)
  kernel = b['layers.11.conv.kernel']
  assert kernel.shape == (3, 2, 5, 6) and kernel.flags['C_CONTIGUOUS']
  assert kernel[2, 1, 4, 0] == a['model.blocks.11.conv.weight'][0, 4, 2, 1]
  np.testing.assert_array_equal(b['head.kernel'], a['head.to_q.weight'].T)
  np.testing.assert_array_equal(b['proj.kernel'], a['proj.weight'][:, :, 0, 0].T)
  np.testing.assert_array_equal(b['norm.scale'], a['ln.weight'])


def test_writing_is_the_inverse_of_reading():
  a, b = theirs(), to_theirs(TABLE, ours(), like=theirs())
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])
    assert b[name].flags['C_CONTIGUOUS']  # the library writes others wrongly


def test_other_spellings_are_read_as_the_same():
  a = theirs()
  old = {k.replace('model.', '').replace('to_q', 'query'): v for k, v in a.items()}
  old['head.query.weight'] = old['head.query.weight'][:, :, None, None]  # a 1x1 convolution
  old['position_ids'] = np.arange(3)
  assert len(old.keys() - a.keys()) == 7
  b = to_ours(TABLE, old, like=ours())
  for name, value in ours().items():
    np.testing.assert_array_equal(b[name], value)


def test_everything_wrong_is_in_one_listing():
  bad = theirs()
  bad['head.query.bias'] = bad['head.to_q.bias']  # twice
  bad['stray'] = np.zeros(1)
  bad['model.blocks.2.conv.bias'] = np.zeros(5)  # a layer too many
  bad['ln.weight'] = np.zeros(7)
  bad['model.blocks.0.conv.weight'] = np.zeros((5, 4))  # not a convolution
  del bad['ln.bias'], bad['model.blocks.11.conv.weight']
  with pytest.raises(UserError, match='the file does not fit the network') as error:
    to_ours(TABLE, bad, like=ours())
  listing = error.value.listing
  assert sorted(listing) == sorted(
    [
      '- model.blocks.11.conv.weight',
      '- ln.bias',
      '+ stray',
      '+ model.blocks.2.conv.bias',
      '= head.query.bias and head.to_q.bias both set head.bias',
      '! ln.weight: shape (7,), should be (4,)',
      '! model.blocks.0.conv.weight: shape (5, 4) is of another kind of layer',
    ]
  )
  assert [line[0] for line in listing] == list('--++=!!')


def test_dots_in_a_template_are_dots():
  with pytest.raises(UserError, match=r'\+ lnxbias'):
    to_ours(TABLE, {'lnxbias': np.zeros(1)})


def test_a_table_fits_behind_a_prefix():
  table = under('a.', 'b.', TABLE)
  names = to_ours(
    table, {f'a.{k}': v for k, v in (theirs() | {'position_ids': np.arange(3)}).items()}
  )
  assert names.keys() == {f'b.{k}' for k in ours()}


FUSED = fused('block.{i}.qkv', ('{i}.q', '{i}.k', '{i}.v'))


def whole(rows=6):
  random = np.random.default_rng(1)
  weight = random.normal(size=(rows, 5)).astype(np.float32)
  return {'block.7.qkv.weight': weight, 'block.7.qkv.bias': weight[:, 0].copy()}


def test_one_of_theirs_can_be_several_of_ours():
  parts = to_ours(FUSED, whole())
  assert parts.keys() == {f'7.{n}.{kind}' for n in 'qkv' for kind in ('kernel', 'bias')}
  np.testing.assert_array_equal(parts['7.k.kernel'], whole()['block.7.qkv.weight'][2:4].T)
  np.testing.assert_array_equal(parts['7.v.bias'], whole()['block.7.qkv.bias'][4:])
  back = to_theirs(FUSED, parts, like=whole())
  assert back.keys() == whole().keys()
  for name, value in whole().items():
    np.testing.assert_array_equal(back[name], value)
    assert back[name].flags['C_CONTIGUOUS']


def test_parts_that_do_not_fit_are_listed_once():
  parts = to_ours(FUSED, whole())
  with pytest.raises(UserError) as error:
    to_ours(FUSED, whole(rows=7), like=parts)
  shapes = {'7, 5': 'weight', '7,': 'bias'}
  assert sorted(error.value.listing) == sorted(
    f'! block.7.qkv.{kind}: shape ({shape}) is of another kind of layer'
    for shape, kind in shapes.items()
  )
  with pytest.raises(UserError) as error:
    to_ours(FUSED, {}, like=parts)
  assert error.value.listing == ('- block.7.qkv.bias', '- block.7.qkv.weight')
  del parts['7.k.kernel']
  with pytest.raises(UserError) as error:  # also without `like`
    to_theirs(FUSED, parts)
  assert error.value.listing == ('- 7.k.kernel',)


def test_nothing_is_read_before_it_is_asked_for():
  reads = []

  def unread(name, array):
    return Tensor(array.shape, array.dtype, lambda: reads.append(name) or array)

  table = [*TABLE, *FUSED]
  source = {name: unread(name, array) for name, array in (theirs() | whole()).items()}
  ours_then_theirs = to_theirs(table, to_ours(table, source), like=source)
  assert reads == []
  for name, array in (theirs() | whole()).items():
    assert ours_then_theirs[name].shape == array.shape
    np.testing.assert_array_equal(ours_then_theirs[name].read(), array)
    assert set(reads) == {name}
    reads.clear()


def test_a_star_stands_for_any_rest():
  table = [*TABLE, *ignored('ema.*')]
  assert to_ours(table, {'ema.a.b': np.zeros(1), 'ln.bias': np.zeros(1)}).keys() == {'norm.bias'}
  with pytest.raises(UserError, match=r'\+ emax'):
    to_ours(table, {'emax': np.zeros(1)})


@pytest.mark.parametrize(
  'table',
  [
    autoencoder.TABLE,
    clip.TABLE,
    conditioner.IMAGE_ENCODER,
    conditioner.ORIGINAL,
    unet.TABLE,
    unet.original(4, 2, (0, 1, 2)),
    unet.original(3, 3, (1, 2)),
    unet.original(1, 1, ()),
    autoencoder.original(4),
    autoencoder.original(1),
  ],
)
def test_no_table_has_one_name_twice(table):
  ours = [row[1] for row in table if row[1] is not None]
  assert len(ours) == len(set(ours))
  theirs = [(name, transform.part) for name, _, transform in table]
  assert len(theirs) == len(set(theirs))
