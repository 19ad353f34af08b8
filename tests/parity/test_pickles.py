"""Files of torch.save, read without torch, give the tensors that torch.load gives."""

import collections
import sys
import types
import zipfile

import numpy as np
import pytest

from exedit.runtime.errors import UserError
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.torch_names import DTYPES
from exedit.weights.formats.torch_saving import save_checkpoint
from tests.weights import test_torch_saving

torch = pytest.importorskip('torch')


def assert_same(path, expected):
  """Checks that the file's tensors have torch's names, order, types, shapes and bits."""
  tensors = open_tensors(path)
  assert list(tensors) == list(expected)
  for name, theirs in expected.items():
    tensor, theirs = tensors[name], theirs.detach()
    ours = tensor.read()
    assert ours.shape == tensor.shape == tuple(theirs.shape) and ours.flags['C_CONTIGUOUS']
    assert ours.dtype == tensor.dtype == DTYPES[str(theirs.dtype).removeprefix('torch.')]
    bits = theirs.contiguous().reshape(-1)
    bits = bits.view(torch.uint8) if bits.numel() else bits
    np.testing.assert_array_equal(ours.reshape(-1).view(np.uint8), bits.numpy(), err_msg=name)


def refusal(path):
  with pytest.raises(UserError) as caught:
    open_tensors(path)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def every_dtype():
  """A tensor of each type that numpy has too."""
  random = torch.randint(0, 256, (3, 16 * 5), dtype=torch.uint8)
  tensors = {name: random.clone().view(getattr(torch, name)) for name in DTYPES if name != 'bool'}
  return tensors | {'bool': random > 100}


def views():
  """Windows on one storage, and tensors of unusual shapes."""
  base = torch.arange(120.0)
  weight = torch.randn(8, 4, 3, 3)
  return collections.OrderedDict(
    base=base,
    offset=base[7:19].view(3, 4),
    transposed=base.view(10, 12).t(),
    column=base.view(10, 12)[:, 5],
    steps=base[3:100:7],
    expanded=base[:12].expand(5, 12),
    diagonal=base.view(10, 12).diagonal(),
    channels_last=weight.to(memory_format=torch.channels_last),
    permuted=weight.permute(2, 0, 3, 1),
    scalar=torch.tensor(3.0),
    element=base[17],
    empty=torch.zeros(0, 4),
    one=torch.ones(1, 1, 1),
    parameter=torch.nn.Parameter(base[10:20]),
  )


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_every_dtype_and_view_of_every_pickle_protocol(tmp_path, protocol):
  for values in (every_dtype(), views()):
    torch.save(values, tmp_path / 'a.pt', pickle_protocol=protocol)
    assert_same(tmp_path / 'a.pt', values)


def test_every_dtype_and_view_as_torch_wrote_them_before_1_6(tmp_path):
  for values in (every_dtype(), views()):
    torch.save(values, tmp_path / 'a.pt', _use_new_zipfile_serialization=False)
    assert_same(tmp_path / 'a.pt', values)


def test_through_safetensors_and_back_to_torch(tmp_path):
  from safetensors.torch import load_file

  values = every_dtype() | views()
  values = {k: v for k, v in values.items() if v.dtype != torch.complex128}  # not in safetensors
  torch.save(values, tmp_path / 'a.pt')
  save_tensors(tmp_path / 'a.safetensors', open_tensors(tmp_path / 'a.pt'))
  assert_same(
    tmp_path / 'a.safetensors',
    {name: values[name] for name in open_tensors(tmp_path / 'a.safetensors')},
  )
  for name, tensor in load_file(tmp_path / 'a.safetensors').items():
    a, b = (x.detach().contiguous().reshape(-1) for x in (tensor, values[name]))
    assert a.dtype == b.dtype and tensor.shape == values[name].shape
    assert not a.numel() or torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize('limit', [zipfile.ZIP64_LIMIT, 1000])
def test_our_checkpoints_load_there(tmp_path, monkeypatch, limit):
  """Bit by bit, also by the reader of weights alone, and from a map of the file."""
  monkeypatch.setattr(zipfile, 'ZIP64_LIMIT', limit)  # as if 1000 bytes were 4 GB
  arrays = test_torch_saving.every_dtype()
  save_checkpoint(tmp_path / 'a.ckpt', arrays, dict(exedit='{}'))
  for how in (dict(weights_only=True), dict(weights_only=False), dict(mmap=True)):
    state_dict = torch.load(tmp_path / 'a.ckpt', map_location='cpu', **how)['state_dict']
    assert list(state_dict) == list(arrays)
    assert isinstance(state_dict, collections.OrderedDict)
    assert_same(tmp_path / 'a.ckpt', state_dict)
    for name, array in arrays.items():
      theirs = state_dict[name]
      assert tuple(theirs.shape) == array.shape and theirs.is_contiguous()
      flat = theirs.reshape(-1)
      data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b''
      assert data == array.tobytes(), name


def test_without_checksums_and_with_big_endian_bytes(tmp_path):
  values = {'a': torch.arange(5), 'b': torch.randn(3).bfloat16(), 'c': torch.randn(2) * 1j}
  torch.serialization.set_crc32_options(False)
  try:
    torch.save(values, tmp_path / 'a.pt')
  finally:
    torch.serialization.set_crc32_options(True)
  assert_same(tmp_path / 'a.pt', values)


@pytest.fixture
def lightning(monkeypatch):
  """Classes with the names in the released checkpoint, because Lightning is not installed."""
  made = {}
  for full in (
    'pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint',
    'pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor',
    'omegaconf.listconfig.ListConfig',
    'omegaconf.dictconfig.DictConfig',
  ):
    module, name = full.rsplit('.', 1)
    made[name] = type(name, (), {'__module__': module})
    parents = module.split('.')
    for i in range(1, len(parents)):  # the pickler imports each to check the name
      package = types.ModuleType('.'.join(parents[:i]))
      package.__path__ = []
      monkeypatch.setitem(sys.modules, package.__name__, package)
    stub = types.ModuleType(module)
    setattr(stub, name, made[name])
    monkeypatch.setitem(sys.modules, module, stub)
  return made


@pytest.mark.parametrize('protocol', [2, 4])
def test_a_lightning_checkpoint_with_all_that_stands_in_it(tmp_path, lightning, protocol):
  import argparse
  import datetime
  import pathlib

  net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
  optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)
  net(torch.ones(2, 4)).square().sum().backward()
  optimizer.step()
  schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
  config = lightning['DictConfig']()
  config.__dict__.update(_content={'a': lightning['ListConfig']()}, _parent=config)
  state = {
    'best_model_score': torch.tensor(0.5),
    'best_model_path': pathlib.PurePosixPath('logs/last.ckpt'),
    'current_score': np.float64(0.25),
    'scores': np.arange(4.0),
    'counts': {np.int64(3): np.bool_(True)},
  }
  everything = {
    'epoch': 39,
    'global_step': 100_000,
    'state_dict': net.state_dict(),
    'callbacks': {lightning['ModelCheckpoint']: state, lightning['LearningRateMonitor']: {}},
    'optimizer_states': [optimizer.state_dict()],
    'lr_schedulers': [schedule.state_dict()],
    'hyper_parameters': {'config': config, 'args': argparse.Namespace(seed=23, device='cuda')},
    'more': [
      collections.Counter('abc'),
      collections.deque([1]),
      collections.defaultdict(list, {'a': [1]}),
      {1, 2},
      frozenset('ab'),
      bytearray(b'abc'),
      1 + 2j,
      slice(3),
      datetime.timedelta(3),
      torch.Size([2, 3]),
      torch.float16,
      torch.device('cpu'),
      types.SimpleNamespace(a=1),
    ],
  }
  torch.save(everything, tmp_path / 'last.ckpt', pickle_protocol=protocol)
  assert_same(tmp_path / 'last.ckpt', net.state_dict())


def test_what_torch_writes_besides_is_refused_in_words(tmp_path):
  path = tmp_path / 'a.pt'
  torch.save(torch.nn.Linear(2, 2), path)
  assert "'torch.nn.modules.linear.Linear'" in refusal(path)
  torch.save(torch.ones(3), path)
  assert 'not a dict of tensors' in refusal(path)
  torch.save([torch.ones(3)], path)
  assert 'not a dict of tensors' in refusal(path)
  torch.save({'a': torch.ones(3).to_sparse()}, path)
  assert '_rebuild_sparse_tensor' in refusal(path)
