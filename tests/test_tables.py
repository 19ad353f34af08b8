"""The engine of the weight tables: both directions, and one listing of everything that is wrong."""

import numpy as np
import pytest

from exedit.weights import autoencoder, clip, conditioner, unet
from exedit.weights.tables import CONV1X1, SAME, conv, linear, norm, to_ours, to_theirs, under

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
    assert b[name].flags['C_CONTIGUOUS']  # safetensors writes others wrongly, and silently


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
  with pytest.raises(ValueError) as error:
    to_ours(TABLE, bad, like=ours())
  listing = str(error.value).splitlines()[1:]
  assert sorted(line.strip() for line in listing) == sorted(
    [
      '- model.blocks.11.conv.weight',
      '- ln.bias',
      '+ stray',
      '+ model.blocks.2.conv.bias',
      '= head.query.bias and head.to_q.bias both set head.bias',
      '! ln.weight: shape (7,), here (7,), should be (4,)',
      '! model.blocks.0.conv.weight: shape (5, 4) is of another kind of layer',
    ]
  )
  assert [line.strip()[0] for line in listing] == list('--++=!!')


def test_dots_in_a_template_are_dots():
  with pytest.raises(ValueError, match=r'\+ lnxbias'):
    to_ours(TABLE, {'lnxbias': np.zeros(1)})


def test_a_table_fits_behind_a_prefix():
  table = under('a.', 'b.', TABLE)
  names = to_ours(table, {f'a.{k}': v for k, v in (theirs() | {'position_ids': 0}).items()})
  assert names.keys() == {f'b.{k}' for k in ours()}


@pytest.mark.parametrize(
  'table', [autoencoder.TABLE, clip.TABLE, conditioner.IMAGE_ENCODER, unet.TABLE]
)
def test_no_table_has_one_name_twice(table):
  for side in (0, 1):
    names = [row[side] for row in table if row[side] is not None]
    assert len(names) == len(set(names))
