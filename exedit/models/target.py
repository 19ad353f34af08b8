"""What kind of device is traced for: what is written differently for one asks here."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax


class Device(NamedTuple):
  """What the choice asks of a device: its platform, and of NVIDIA's the compute capability."""

  platform: str
  capability: tuple[int, ...] = ()


PLAIN = Device('none')  # no device's kernels: products that can be counted
_elsewhere: contextvars.ContextVar[Device | None] = contextvars.ContextVar('device', default=None)


@contextlib.contextmanager
def traced_for(other: Device) -> Iterator[None]:
  """What is traced inside is for such a device, not for those that are here.

  JAX remembers traces of compiled functions and does not know of this: a function that was traced
  before keeps what was chosen then, until `jax.clear_caches`.
  """
  token = _elsewhere.set(other)
  try:
    yield
  finally:
    _elsewhere.reset(token)


def device() -> Device:
  """The kind of device that is computed on, here if nothing else is said."""
  elsewhere = _elsewhere.get()
  if elsewhere is not None:
    return elsewhere
  first = jax.local_devices()[0]
  if first.platform != 'gpu' or 'cuda' not in first.client.platform_version:
    return Device(first.platform)
  return Device('gpu', tuple(map(int, first.compute_capability.split('.'))))
