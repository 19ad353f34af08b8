"""PyTorch's networks with random weights, and ours with the same weights through the tables."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from exedit.weights import tables


def randomised(module, seed: int = 0):
  """Every parameter random, norms and biases too, so that nothing hides behind a 0 or a 1."""
  import torch

  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for p in module.parameters():
      noise = torch.randn(p.shape, generator=generator)
      if p.ndim > 1:
        p.copy_(noise * p[0].numel() ** -0.5)
      else:
        p.add_(0.2 * noise)
  return module.eval()


def weights(module) -> dict[str, np.ndarray]:
  """A module's state dict as numpy arrays."""
  return {name: value.numpy() for name, value in module.state_dict().items()}


def ours(build, table, theirs: dict[str, np.ndarray]) -> nnx.Module:
  """Our network, built by `build()`, holding their weights; strict in names and shapes."""
  graphdef, params = nnx.split(nnx.eval_shape(build))
  paths = {'.'.join(map(str, path)): path for path, _ in nnx.to_flat_state(params)}
  arrays = tables.to_ours(table, theirs, like=flat(params))
  leaves = [(paths[name], nnx.Param(jnp.asarray(value))) for name, value in arrays.items()]
  return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def flat(model: nnx.Module | nnx.State) -> dict:
  """Our parameters by dotted path, abstract ones too."""
  leaves = nnx.to_flat_state(nnx.state(model) if isinstance(model, nnx.Module) else model)
  return {'.'.join(map(str, path)): leaf.get_value() for path, leaf in leaves}


def assert_round_trip(table, module: nnx.Module, theirs: dict[str, np.ndarray]):
  """Written back, our weights are theirs: the same names and the same bits."""
  values = {name: np.asarray(value) for name, value in flat(module).items()}
  written = tables.to_theirs(table, values, like=theirs)
  for name, value in theirs.items():
    np.testing.assert_array_equal(written[name], value, err_msg=name)


def assert_same_weights(a: nnx.Module, b: nnx.Module):
  a, b = flat(a), flat(b)
  assert a.keys() == b.keys()
  for name, value in a.items():
    np.testing.assert_array_equal(value, b[name], err_msg=name)


def channels_last(x) -> np.ndarray:
  return x.detach().numpy().transpose(0, 2, 3, 1)


def channels_first(x: np.ndarray):
  import torch

  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
