"""Which of several processes this one is, from flags and environment variables."""

import dataclasses
import os
import re
from collections.abc import Mapping

from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError

# The arguments of `processes.join_processes`. TPU slices, Slurm and Kubernetes need none of them.
FLAGS = (
  Flag('coordinator', None, 'of several processes: HOST:PORT of process 0', str),
  Flag('num_processes', None, 'number of processes of this run', int, 1),
  Flag('process_id', None, 'number of this process, from 0', int, 0),
  Flag(
    'join_timeout', None, 'seconds to wait for the other processes at the start', float,
    shown='EXEDIT_JOIN_TIMEOUT, or 300',
  ),
  Flag(
    'heartbeat', None, 'seconds without a heartbeat until a process counts as lost', float,
    shown='EXEDIT_HEARTBEAT, or 100',
  ),
)  # fmt: skip
FIRST_SLURM_PORT = 61_440  # no service is registered for the 4,096 ports from here on


@dataclasses.dataclass(frozen=True)
class Place:
  """Process `index` of `count`, which meet at `address`, the HOST:PORT of process 0.

  devices: the numbers of the local accelerators that it uses; None: all.

  Raises:
    UserError: if the address is not HOST:PORT, or the index is not below the count.
  """

  address: str
  count: int
  index: int
  devices: tuple[int, ...] | None = None

  def __post_init__(self):
    host, _, port = self.address.rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
      raise UserError(
        f"the coordinator's address is '{self.address}': it must be HOST:PORT of process 0"
      )
    if not 0 <= self.index < self.count:
      raise UserError(
        f'process_id {self.index} of {self.count} processes: it must be 0 to {self.count - 1}'
      )


def find_place(
  env: Mapping[str, str],
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Place | None:
  """This process's place; None if it is alone, as far as flags, JAX's and Slurm's variables say.

  Each of the three arguments overrides its variable: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,
  JAX_PROCESS_ID. In a Kubernetes Job with indexed completions, JOB_COMPLETION_INDEX replaces the
  last one. Slurm's variables count if neither arguments nor JAX's name several processes.

  Raises:
    UserError: if a part of the place is missing or not a number.
  """
  address = coordinator or env.get('JAX_COORDINATOR_ADDRESS') or None
  count = _number(env, 'JAX_NUM_PROCESSES') if num_processes is None else num_processes
  index = process_id
  if index is None:
    named = 'JAX_PROCESS_ID' if env.get('JAX_PROCESS_ID') else 'JOB_COMPLETION_INDEX'
    index = _number(env, named)
  asked = coordinator is not None or num_processes is not None or process_id is not None
  if not asked and (count or 1) == 1:
    return _slurm(env)
  given = {'coordinator': address, 'num_processes': count, 'process_id': index}
  for name, value in given.items():
    if value is None:
      variable = {'coordinator': 'JAX_COORDINATOR_ADDRESS'}.get(name, f'JAX_{name.upper()}')
      raise UserError(f'one of several processes, but without --{name} (or {variable}): give it')
  assert address is not None and count is not None and index is not None
  return Place(address, count, index, _devices(env.get('JAX_LOCAL_DEVICE_IDS')))


def _slurm(env: Mapping[str, str]) -> Place | None:
  """The place that srun gave: one process with all devices of its node, or one for each device."""
  count = _number(env, 'SLURM_STEP_NUM_TASKS') or 1
  if count == 1 or 'SLURM_PROCID' not in env:
    return None
  job, nodes = _number(env, 'SLURM_JOB_ID') or 0, env.get('SLURM_STEP_NODELIST', '')
  step = _number(env, 'SLURM_STEP_ID') or 0
  port = _number(env, 'JAX_COORDINATOR_PORT') or FIRST_SLURM_PORT + (job + 61 * step) % 4096
  local, devices = _number(env, 'SLURM_LOCALID'), _devices(env.get('JAX_LOCAL_DEVICE_IDS'))
  # With --gpus-per-task, Slurm shows each task only its own device, as number 0.
  visible = env.get('CUDA_VISIBLE_DEVICES', '')
  shared = _tasks_here(env) > 1 and (not visible or ',' in visible)
  if devices is None and local is not None and shared:
    devices = (local,)
  return Place(f'{first_host(nodes)}:{port}', count, _number(env, 'SLURM_PROCID') or 0, devices)


def _tasks_here(env: Mapping[str, str]) -> int:
  """The number of tasks on this node, from SLURM_STEP_TASKS_PER_NODE such as '4(x2),1'."""
  counts = []
  for part in filter(None, env.get('SLURM_STEP_TASKS_PER_NODE', '').split(',')):
    match = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part)
    counts += [int(match[1])] * int(match[2] or 1) if match else []
  node = _number(env, 'SLURM_NODEID') or 0
  return counts[node] if node < len(counts) else 1


def first_host(nodes: str) -> str:
  """The first host of a Slurm node list: 'gpu[007-9,12],cpu1' -> 'gpu007'."""
  match = re.match(r'([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?', nodes)
  if match is None:
    raise UserError(f"SLURM_STEP_NODELIST is '{nodes}': start the processes with srun")
  return match[1] + (match[2] or '') + (match[3] or '')


def _devices(text: str | None) -> tuple[int, ...] | None:
  return tuple(int(part) for part in text.split(',')) if text else None


def _number(env: Mapping[str, str], name: str) -> int | None:
  text = env.get(name)
  if not text:
    return None
  if not re.fullmatch(r'\d+', text):
    raise UserError(f"{name} is '{text:.50}': it must be a whole number")
  return int(text)


def wait_seconds(given: float | None, variable: str, default: float) -> float:
  """A duration in seconds: the flag's, the environment variable's, or the default.

  Raises:
    UserError: if it is not a number of at least 1.
  """
  text = os.environ.get(variable)
  try:
    value = float(text) if given is None and text else given
  except ValueError:
    raise UserError(f"{variable} is '{text:.50}': it must be a number of seconds") from None
  value = default if value is None else value
  if not 1 <= value < 1e6:
    raise UserError(f'{variable} is {value:g}: it must be at least 1 second')
  return value
