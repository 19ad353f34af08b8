"""Checkpoints as torch and Lightning write them; parity/test_pickles.py compares with torch."""

import struct
import sys
import zipfile

import numpy as np
import pytest

from tests.pickled import (
  WHOLE,
  Code,
  call,
  code,
  counted,
  floats,
  name,
  opened,
  ordered,
  refused,
  state_dict,
  storage,
  tensor,
)


@pytest.mark.parametrize('legacy', [False, True])
def test_weights_come_back_wherever_they_stand(tmp_path, legacy):
  arrays = {'b': np.arange(6, dtype=np.float32).reshape(2, 3), 'a': np.ones(3, np.float16)}
  arrays['step'] = np.array(3, np.int64)
  weights, storages = state_dict(arrays, legacy)
  epoch = {'epoch': 3, 'loss': 0.5, 'nested': {'deeper': [1, {'x': None}]}}
  for value in (
    weights,
    {'state_dict': weights},
    {'model': weights, **epoch},
    {**epoch, 'state_dict': weights, 'model': {'other': weights}},
    ordered({**epoch, 'state_dict': weights}),
  ):
    tensors = opened(tmp_path, value, storages, legacy)
    assert list(tensors) == list(arrays)
    for key, array in arrays.items():
      back = tensors[key].read()
      assert (tensors[key].shape, tensors[key].dtype) == (array.shape, array.dtype)
      np.testing.assert_array_equal(back, array)
      assert back.flags['C_CONTIGUOUS'] and back.flags.writeable


@pytest.mark.parametrize('pack', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize('top', ['archive/', 'model/', ''])
def test_packed_and_otherwise_named_archives(tmp_path, pack, top):
  tensors = opened(tmp_path, *state_dict({'a': np.arange(9.0)}), pack=pack, top=top)
  assert tensors['a'].read().tolist() == list(range(9))


@pytest.mark.parametrize('pack', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, None])
def test_views_with_offsets_and_strides_on_a_shared_storage(tmp_path, pack):
  base, legacy = np.arange(24, dtype=np.float32), pack is None
  shared = storage('0', 24, view=WHOLE if legacy else ())
  views = {
    'all': (tensor(shared, (24,), (1,)), base),
    'transposed': (tensor(shared, (4, 6), (1, 4)), base.reshape(6, 4).T),
    'column': (tensor(shared, (6,), (4,), 1), base.reshape(6, 4)[:, 1]),
    'part': (tensor(shared, (2, 3), (3, 1), 5), base[5:11].reshape(2, 3)),
    'expanded': (tensor(shared, (3, 2), (0, 1), 7), np.tile(base[7:9], (3, 1))),
    'overlapping': (
      tensor(shared, (5, 4), (2, 1)),
      np.stack([base[i : i + 4] for i in range(0, 10, 2)]),
    ),
    'scalar': (tensor(shared, (), (), 23), base[23]),
    'one': (tensor(shared, (1, 1), (77, 99), 3), base[3:4].reshape(1, 1)),
    'empty': (tensor(shared, (0, 4), (4, 1), 24), np.zeros((0, 4), np.float32)),
    'channels last': (
      tensor(shared, (2, 3, 2, 2), (12, 1, 6, 3)),
      base.reshape(2, 2, 2, 3).transpose(0, 3, 1, 2),
    ),
  }
  items = ordered({key: view for key, (view, _) in views.items()})
  storages = {'0': counted(base) if legacy else base.tobytes()}
  tensors = opened(tmp_path, items, storages, legacy, **({} if legacy else {'pack': pack}))
  for key, (_, expected) in views.items():
    back = tensors[key].read()
    assert back.shape == tensors[key].shape == expected.shape and back.flags['C_CONTIGUOUS']
    np.testing.assert_array_equal(back, expected, err_msg=key)


def test_other_byte_orders_are_refused(tmp_path):
  weights = state_dict({'a': np.arange(2.0)})
  assert "the byte order b'big'" in refused(tmp_path, *weights, order='big')
  assert opened(tmp_path, *weights, order='')['a'].read()[1] == 1


def test_dtypes_without_a_storage_of_their_own(tmp_path):
  untyped = storage('0', 6, name('torch.storage', 'UntypedStorage'))
  rebuild = name('torch._utils', '_rebuild_tensor_v3')
  value = call(rebuild, untyped, 1, (2,), (1,), False, ordered({}), name('torch', 'uint16'))
  tensors = opened(tmp_path, {'a': value}, {'0': struct.pack('<3H', 7, 8, 65535)})
  assert tensors['a'].read().tolist() == [8, 65535] and tensors['a'].dtype == np.uint16
  wrong = call(rebuild, untyped, 1, (2,), (1,), False, ordered({}), name('torch', 'device'))
  assert 'torch.device' in refused(tmp_path, {'a': wrong}, {'0': bytes(6)})


def test_parameters_and_tensors_with_attributes(tmp_path):
  inner = tensor(('0', 2), (2,), (1,))
  rebuild = name('torch._utils', '_rebuild_tensor_v2')
  args = (storage('0', 2), 0, (2,), (1,), False, ordered({}))
  values = {
    'parameter': call(name('torch._utils', '_rebuild_parameter'), inner, True, ordered({})),
    'typed': call(
      name('torch._tensor', '_rebuild_from_type_v2'),
      *(rebuild, name('torch', 'Tensor'), args, {'note': 'mine'}),
    ),
    'with state': Code(inner + code({'note': 'mine'}) + b'b'),
  }
  for tensor_ in opened(tmp_path, values, {'0': floats(1, 2)}).values():
    assert tensor_.read().tolist() == [1, 2]


def lightning(weights):
  """What Lightning 1.x stores around the weights: callbacks by class, optimizer, settings."""
  callback = name('pytorch_lightning.callbacks.model_checkpoint', 'ModelCheckpoint')
  scalar = call(
    name('numpy.core.multiarray', 'scalar'),
    Code(call(name('numpy', 'dtype'), 'f8', False, True) + code((3, '<', None, -1)) + b'b'),
    call(name('_codecs', 'encode'), '\x00' * 8, 'latin1'),
  )
  attributes = Code(
    name('pytorch_lightning.utilities.parsing', 'AttributeDict') + b')\x81(' + code('lr') + b'K\1u'
  )
  config = Code(
    name('omegaconf.dictconfig', 'DictConfig')
    + b')\x81'
    + code({'_content': {}, 'type': name('typing', 'Any')})
    + b'b'
  )
  group = {'lr': 1e-5, 'betas': (0.9, 0.95), 'params': [0, 1]}
  moments = {0: {'step': 5, 'exp_avg': tensor(('moment', 2), (2,), (1,))}}
  return {
    'epoch': 39,
    'global_step': 100_000,
    'pytorch-lightning_version': '1.4.2',
    'state_dict': weights,
    'callbacks': {callback: {'best_model_score': scalar, 'monitor': 'val/loss_simple_ema'}},
    'optimizer_states': [{'state': moments, 'param_groups': [group]}],
    'lr_schedulers': [call(name('collections', 'Counter'), {1: 2})],
    'hparams_name': 'kwargs',
    'hyper_parameters': attributes,
    'config': config,
    'args': Code(name('argparse', 'Namespace') + b')\x81' + code({'seed': 23}) + b'b'),
    'times': Code(name('collections', 'defaultdict') + b'(' + name('builtins', 'list') + b'tR'),
    'set': Code(call(name('builtins', 'set'), [1, 2])),
  }


def test_a_lightning_checkpoint_opens_without_lightning_and_only_its_weights_are_read(tmp_path):
  weights, storages = state_dict({'learnable_vector': np.ones((1, 1, 4), np.float32)})
  before = set(sys.modules)
  tensors = opened(tmp_path, lightning(weights), storages)  # without the storage of the moments
  assert list(tensors) == ['learnable_vector'] and tensors['learnable_vector'].read().sum() == 4
  assert set(sys.modules) - before == set()
