"""The names in a torch checkpoint's pickle: what builds tensors, and what is ignored."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from exedit.runtime.errors import UserError
from exedit.weights.formats import pickles
from exedit.weights.formats.pickles import Name, Pairs, kind
from exedit.weights.formats.tensor import damaged, quoted

MOST_AXES = 32
MOST_LEVELS, MOST_ENTRIES = 4, 2**20  # of dicts in dicts
MOST_REPEATED = 2**24  # elements that an expanded tensor may have more than its storage

DTYPES = {  # the names of torch's types
  **{
    name: np.dtype(name)
    for name in ('float64', 'float32', 'float16', 'complex64', 'complex128', 'int64', 'int32')
    + ('int16', 'int8', 'uint64', 'uint32', 'uint16', 'uint8', 'bool')
  },
  **{
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ('bfloat16', 'float8_e4m3fn', 'float8_e5m2', 'float8_e8m0fnu')
  },
}
STORAGES = {  # the types of torch's storage classes; an untyped storage has bytes
  **{
    f'torch.{name}Storage': DTYPES[dtype]
    for name, dtype in dict(
      **dict(Double='float64', Float='float32', Half='float16', BFloat16='bfloat16'),
      **dict(ComplexFloat='complex64', ComplexDouble='complex128', Long='int64', Int='int32'),
      **dict(Short='int16', Char='int8', Byte='uint8', Bool='bool', Untyped='uint8'),
    ).items()
  },
  'torch.storage.UntypedStorage': DTYPES['uint8'],
  'torch.storage._UntypedStorage': DTYPES['uint8'],
}
# Lightning stores callbacks, loggers and hyper-parameters beside the weights. All classes of these
# packages, and the names in INERT, become placeholders.
INERT_PACKAGES = (
  'pytorch_lightning',
  'lightning',
  'lightning_fabric',
  'lightning_utilities',
  'omegaconf',
  'torchmetrics',
  'torch.optim',
  'ldm',
  'typing',
  'datetime',
  'pathlib',
)
INERT = {
  *(f'torch.{name}' for name in DTYPES),
  *('torch.Size', 'torch.device', 'torch.Tensor', 'torch.nn.parameter.Parameter'),
  *('collections.Counter', 'collections.deque', 'argparse.Namespace', 'types.SimpleNamespace'),
  *('_codecs.encode', 'copyreg._reconstructor', 'copy_reg._reconstructor', 'enum.Enum'),
  *(
    f'{module}.{name}'
    for module in ('builtins', '__builtin__')
    for name in 'object set frozenset list tuple int float bool str bytes bytearray complex slice'
    ' range long unicode'.split()
  ),
  *('numpy.dtype', 'numpy.ndarray', 'numpy.bool_', 'numpy.str_', 'numpy.bytes_'),
  *(f'numpy.{kind}{bits}' for kind in ('int', 'uint', 'float') for bits in (8, 16, 32, 64)),
  *(
    f'numpy.{core}.multiarray.{name}'
    for core in ('core', '_core')
    for name in ('scalar', '_reconstruct')
  ),
}


class Storage(NamedTuple):
  """The bytes of one or more tensors: in a zip, the entry `data/<key>`."""

  key: str
  dtype: np.dtype
  size: int  # bytes


class View(NamedTuple):
  """A tensor: a window on a storage. Offset and stride count elements."""

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]


def read_weights(
  data: bytes, path: str, names: pickles.Names | None = None, nested: bool = False
) -> dict[str, View]:
  """Returns the tensors in the pickle of a torch checkpoint, by name.

  They are taken from the dict 'state_dict' or else 'model', or from the top level if there is none.
  Everything beside them (optimizer, callbacks, numbers) is ignored.

  Args:
    data: the pickle.
    path: the file around the pickle, for messages.
    names: the names that the pickle may contain, by default NAMES.
    nested: take all tensors instead, also those of dicts in dicts, by names such as 'unet/a'.
  Raises:
    UserError: if the pickle contains another name, is damaged, or has no tensors.
  """
  root = pickles.unpickle(data, path, names or NAMES)
  if not isinstance(root, Pairs):
    raise UserError(f'{path} holds {kind(root)}, not a dict of tensors: save a state_dict instead')
  if nested:
    return _flat(root, path)
  inner = {k: v for k, v in root.items if isinstance(k, str) and isinstance(v, Pairs)}
  pairs = inner.get('state_dict') or inner.get('model') or root
  views = {}
  for name, value in pairs.items:
    if isinstance(value, View):
      _check_name(name, views, path)
      views[name] = value
  if not views:
    keys = ', '.join(kind(key) for key, _ in root.items[:5])
    raise UserError(f'{path} holds no weights (at the top: {keys or "nothing"}): wrong file?')
  return views


def _flat(root: Pairs, path: str) -> dict[str, View]:
  """All tensors of dicts in dicts by their names, joined by slashes."""
  views: dict[str, View] = {}
  left, seen = [('', root, MOST_LEVELS)], 0
  while left:
    above, pairs, levels = left.pop()
    seen += len(pairs.items)
    if seen > MOST_ENTRIES:
      raise damaged(path, f'more than {MOST_ENTRIES} entries')
    for name, value in pairs.items:
      if isinstance(value, View):
        _check_name(name, {}, path)
        _check_name(f'{above}{name}', views, path)
        views[f'{above}{name}'] = value
      elif isinstance(value, Pairs) and isinstance(name, str) and levels > 1:
        left.append((f'{above}{name}/', value, levels - 1))
  if not views:
    raise UserError(f'{path} holds no tensors: wrong file?')
  return views


def _check_name(name: Any, views: dict[str, View], path: str) -> None:
  if not isinstance(name, str):
    raise damaged(path, f'a tensor is called by {kind(name)}, not by a name')
  if name in views or any('\ud800' <= character <= '\udfff' for character in name):
    raise damaged(path, f'the tensor name {quoted(name)} stands there twice or is no text')


# The builders


def _dict(*args: Any) -> Pairs:
  """An OrderedDict. Python 3 writes its items afterwards."""
  if args:
    raise ValueError('a dict built from arguments')
  return Pairs([])


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> View:
  """torch._utils._rebuild_tensor_v2: a window on a storage."""
  if not isinstance(storage, Storage):
    raise ValueError(f'a tensor over {kind(storage)} instead of a storage')
  return _window(storage, storage.dtype, offset, shape, stride)


def _tensor_v3(
  storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> View:
  """torch._utils._rebuild_tensor_v3: the same for types that have no storage class."""
  known = isinstance(dtype, Name) and dtype.module == 'torch' and dtype.name in DTYPES
  if not isinstance(storage, Storage) or not known:
    raise ValueError(f'a tensor of dtype {kind(dtype)} over {kind(storage)}')
  return _window(storage, DTYPES[dtype.name], offset, shape, stride)


def _window(storage: Storage, dtype: np.dtype, offset: Any, shape: Any, stride: Any) -> View:
  """Checks that the window does not leave its storage."""
  if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
    raise ValueError('a tensor whose shape and stride do not belong together')
  if len(shape) > MOST_AXES:
    raise ValueError(f'a tensor of {len(shape)} axes')
  if not all(type(n) is int and 0 <= n < 2**60 for n in (offset, *shape, *stride)):
    raise ValueError('a tensor with a shape, stride or offset out of range')
  count, size = storage.size // dtype.itemsize, math.prod(shape)
  end = offset + 1 + sum((n - 1) * step for n, step in zip(shape, stride))
  if size and end > count:
    raise ValueError(f'a tensor up to element {end} of a storage that has {count}')
  if size > count + MOST_REPEATED or math.prod(n or 1 for n in shape) >= 2**59:
    raise ValueError(f'a tensor of shape {shape} over a storage of {count} elements')
  return View(storage, dtype, offset, shape, stride)


def _parameter(tensor: Any, *_: Any) -> View:
  if not isinstance(tensor, View):
    raise ValueError(f'a parameter made of {kind(tensor)}')
  return tensor


def _from_type(function: Any, _type: Any, args: Any, *_: Any) -> Any:
  """torch._tensor._rebuild_from_type_v2: a tensor with attributes, which are ignored."""
  build = BUILDERS.get(str(function), _no_call) if isinstance(function, Name) else _no_call
  if build not in (_tensor, _tensor_v3, _parameter) or type(args) is not tuple:
    raise ValueError(f'a tensor rebuilt by {kind(function)}')
  return build(*args)


def _storage(pid: Any) -> Storage:
  """A persistent id of torch.save: ('storage', class, key, location, number of elements)."""
  if not isinstance(pid, tuple) or len(pid) not in (5, 6):
    raise ValueError(f'a persistent id that is {kind(pid)}')
  word, cls, key, _, count = pid[:5]
  if not isinstance(word, str) or word != 'storage' or not isinstance(cls, Name):
    raise ValueError(f'a persistent id of {kind(word)} and {kind(cls)}')
  if str(cls) not in STORAGES or not isinstance(key, str):
    raise ValueError(f'a storage {kind(key)} of {kind(cls)}')
  if type(count) is not int or not 0 <= count < 2**60:
    raise ValueError(f'a storage of {kind(count)} elements')
  dtype = STORAGES[str(cls)]
  return Storage(key, dtype, count * dtype.itemsize)


def _no_call(*_: Any) -> Any:
  raise ValueError('a call of a storage class')


BUILDERS: dict[str, Callable[..., Any]] = {
  'collections.OrderedDict': _dict,
  'collections.defaultdict': lambda _: Pairs([]),
  'torch._utils._rebuild_tensor': _tensor,
  'torch._utils._rebuild_tensor_v2': _tensor,
  'torch._utils._rebuild_tensor_v3': _tensor_v3,
  'torch._utils._rebuild_parameter': _parameter,
  'torch._utils._rebuild_parameter_with_state': _parameter,
  'torch._tensor._rebuild_from_type_v2': _from_type,
}
BUILDERS |= {name: _no_call for name in STORAGES}
NAMES = pickles.Names(BUILDERS, INERT, INERT_PACKAGES, _storage)
