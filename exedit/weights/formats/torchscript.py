"""The tensors of a TorchScript archive, such as OpenAI's ViT-B-32.pt; its code is not looked at.

Such a zip holds one pickle of nested modules (torch/csrc/jit/serialization/pickler.cpp): objects of
classes that its own code defines, with parameters and submodules as attributes. A tensor is called
by the attributes that lead to it, joined by dots, as in a state dict.
"""

import functools
from typing import Any

from exedit.runtime.errors import UserError
from exedit.weights.formats import pickles, torch_names
from exedit.weights.formats.pickles import LONGEST_NAME, Object, Pairs
from exedit.weights.formats.pread import damaged, quoted
from exedit.weights.formats.tensor import Tensor, read_view
from exedit.weights.formats.torch_names import View
from exedit.weights.formats.torch_zip import LONGEST_PICKLE
from exedit.weights.formats.zips import Zip

MOST = 100_000  # modules: one that stands in the pickle once may be pointed to without end


class _Builders(dict):
  """What torch's files ask for, and an object for every class of the archive's own code."""

  def __contains__(self, name: object) -> bool:
    return super().__contains__(name) or str(name).startswith('__torch__.')

  def get(self, name: Any, default: Any = None) -> Any:
    """The builder of that name."""
    return super().get(name, _module if str(name).startswith('__torch__.') else default)


def _module(*_: Any) -> Object:
  return Object()


_INERT = {*torch_names.NAMES.inert, 'torch.jit._pickle.restore_type_tag'}
_INERT |= {f'torch.jit._pickle.build_{kind}list' for kind in ('int', 'tensor', 'double', 'bool')}
NAMES = torch_names.NAMES._replace(builders=_Builders(torch_names.NAMES.builders), inert=_INERT)


def is_torchscript(archive: Zip) -> bool:
  """Whether it has the entry that only these archives have."""
  return any(name.endswith('/constants.pkl') for name in archive.names())


def open_tensors(archive: Zip, where: str) -> dict[str, Tensor]:
  """The tensors by name, unread.

  Raises:
    UserError: where it is damaged, or its pickle asks for more than tensors and modules.
  """
  top = next(n for n in archive.names() if n.endswith('/constants.pkl')).split('/')[0]
  entry = f'{top}/data.pkl'
  if not 0 < archive.size(entry) <= LONGEST_PICKLE:
    raise damaged(where, f'its {entry} has {archive.size(entry)} bytes')
  root = pickles.unpickle(archive.read(entry).tobytes(), where, NAMES)
  views = _views(root, where)
  if not views:
    raise UserError(f'{where} is a TorchScript archive without any tensors: wrong file?')
  tensors = {}
  for name, view in views.items():
    key = f'{top}/data/{view.storage.key}'
    if archive.size(key) != view.storage.size:
      raise damaged(where, f'{quoted(name)} needs {view.storage.size} bytes in {quoted(key)}')
    read = functools.partial(read_view, functools.partial(archive.read, key), view)
    tensors[name] = Tensor(view.shape, view.dtype, read)
  return tensors


def _views(root: Any, where: str) -> dict[str, View]:
  """The tensors of a module and of those inside it, by the way to them."""
  views, waiting, seen = {}, [('', root)], 0
  while waiting:
    prefix, module = waiting.pop()
    state = module.state if isinstance(module, Object) else None
    seen += 1
    if max(seen, len(waiting), len(views)) > MOST or len(prefix) > LONGEST_NAME:
      raise damaged(where, 'modules inside of modules without end')
    for key, value in state.items if isinstance(state, Pairs) else ():
      if not isinstance(key, str):
        raise damaged(where, 'an attribute whose name is no text')
      if isinstance(value, View):
        views[prefix + key] = value
      elif isinstance(value, Object):
        waiting.append((f'{prefix}{key}.', value))
  return views
