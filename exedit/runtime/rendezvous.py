"""How the processes of one run find each other, so that what is wrong with that is said in words.

JAX itself ends a process that cannot reach its peers with a stack trace and SIGABRT. Here they meet
first: process 0 calls the roll on the very port that JAX's service opens afterwards.
"""

import contextlib
import dataclasses
import json
import os
import re
import select
import socket
import time
from collections.abc import Iterator, Mapping

from exedit.runtime.errors import UserError

FIRST_SLURM_PORT = 61_440  # ports above are nobody's; 4,096 of them, shared out by job
LONGEST_LINE = 4096


@dataclasses.dataclass(frozen=True)
class Place:
  """One process among `count`; `devices` are the local accelerators it takes, None: all."""

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

  @property
  def host(self) -> str:
    return self.address.rpartition(':')[0].strip('[]')

  @property
  def port(self) -> int:
    return int(self.address.rpartition(':')[2])


def find_place(
  env: Mapping[str, str],
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Place | None:
  """This process's place by flags, by JAX's variables or by Slurm's; None where nothing tells.

  Flags go before JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, each by itself. In
  a Kubernetes Job with indexed completions JOB_COMPLETION_INDEX stands in for the last. UserError
  where only a part is given.
  """
  address = coordinator or env.get('JAX_COORDINATOR_ADDRESS') or None
  count = _number(env, 'JAX_NUM_PROCESSES') if num_processes is None else num_processes
  index = process_id
  if index is None:
    named = 'JAX_PROCESS_ID' if env.get('JAX_PROCESS_ID') else 'JOB_COMPLETION_INDEX'
    index = _number(env, named)
  asked = coordinator is not None or num_processes is not None or process_id is not None
  if asked or (count or 1) > 1:
    given = {'coordinator': address, 'num_processes': count, 'process_id': index}
    for name, value in given.items():
      if value is None:
        variable = {'coordinator': 'JAX_COORDINATOR_ADDRESS'}.get(name, f'JAX_{name.upper()}')
        raise UserError(f'one of several processes, but without --{name} (or {variable}): give it')
    assert address is not None and count is not None and index is not None
    return Place(address, count, index, _devices(env.get('JAX_LOCAL_DEVICE_IDS')))
  return _slurm(env)


def _slurm(env: Mapping[str, str]) -> Place | None:
  """The place that srun gave: one process with all devices of its node, or one for each device."""
  count = _number(env, 'SLURM_STEP_NUM_TASKS') or 1
  if count == 1 or 'SLURM_PROCID' not in env:
    return None
  job, nodes = _number(env, 'SLURM_JOB_ID') or 0, env.get('SLURM_STEP_NODELIST', '')
  step = _number(env, 'SLURM_STEP_ID') or 0
  port = _number(env, 'JAX_COORDINATOR_PORT') or FIRST_SLURM_PORT + (job + 61 * step) % 4096
  local, devices = _number(env, 'SLURM_LOCALID'), _devices(env.get('JAX_LOCAL_DEVICE_IDS'))
  # With --gpus-per-task Slurm itself shows each task its own device, which is number 0 there.
  visible = env.get('CUDA_VISIBLE_DEVICES', '')
  shared = _tasks_here(env) > 1 and (not visible or ',' in visible)
  if devices is None and local is not None and shared:
    devices = (local,)
  return Place(f'{first_host(nodes)}:{port}', count, _number(env, 'SLURM_PROCID') or 0, devices)


def _tasks_here(env: Mapping[str, str]) -> int:
  """Tasks on this node, by SLURM_STEP_TASKS_PER_NODE such as '4(x2),1'."""
  counts = []
  for part in filter(None, env.get('SLURM_STEP_TASKS_PER_NODE', '').split(',')):
    match = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part)
    counts += [int(match[1])] * int(match[2] or 1) if match else []
  node = _number(env, 'SLURM_NODEID') or 0
  return counts[node] if node < len(counts) else 1


def first_host(nodes: str) -> str:
  """The first of a Slurm list of nodes: 'gpu[007-9,12],cpu1' -> 'gpu007'."""
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


# The roll call.


def call_roll(place: Place, timeout: float) -> None:
  """Return when all processes have come, each once; UserError in all of them where they do not.

  timeout: seconds. Who comes too late finds nobody and says so after its own time.
  """
  if place.count == 1:
    return
  if place.index == 0:
    _call(place, timeout)
  else:
    _answer(place, timeout)


def _call(place: Place, timeout: float) -> None:
  """Process 0: hear every other one, then tell all of them how it went."""
  deadline = time.monotonic() + timeout
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(place, deadline))
    here = {0: (None, socket.gethostname())}
    waiting: dict[socket.socket, bytes] = {}
    verdict = ''
    while len(here) < place.count and not verdict:
      left = deadline - time.monotonic()
      if left <= 0:
        verdict = _missing(place, {i: host for i, (_, host) in here.items()}, timeout)
        break
      peers = [peer for peer, _ in here.values() if peer is not None]
      for ready in select.select([server, *waiting, *peers], [], [], min(left, 1.0))[0]:
        if ready is server:
          peer = stack.enter_context(server.accept()[0])
          peer.setblocking(False)
          waiting[peer] = b''
        elif ready in peers:  # it has hung up: whatever restarts it may send it again
          here = {i: (p, host) for i, (p, host) in here.items() if p is not ready}
        else:
          verdict = verdict or _hear(place, ready, waiting, here)
    for peer in [*(p for p, _ in here.values() if p is not None), *waiting]:
      with contextlib.suppress(OSError):
        peer.setblocking(True)
        peer.sendall(json.dumps({'exedit': verdict or 'all here'}).encode() + b'\n')
  if verdict:
    raise UserError(verdict)


def _hear(place: Place, peer: socket.socket, waiting: dict, here: dict) -> str:
  """Take what a peer sent; a sentence where it cannot be one of us, else ''."""
  try:
    part = peer.recv(LONGEST_LINE)
  except OSError:
    part = b''
  waiting[peer] += part
  if not part or len(waiting[peer]) > LONGEST_LINE:
    waiting.pop(peer)  # not one of ours, or gone again
    peer.close()
    return ''
  if not waiting[peer].endswith(b'\n'):
    return ''
  said = _said(waiting.pop(peer))
  if not isinstance(said, dict) or set(said) != {'index', 'count', 'host'}:
    peer.close()
    return ''
  index, count, host = said['index'], said['count'], said['host']
  if count != place.count:
    waiting[peer] = b''  # so that it hears the verdict too
    return (
      f'process {index} on {host} was told of {count} processes, process 0 of {place.count}: '
      'give all the same --num_processes'
    )
  if index in here:
    waiting[peer] = b''
    return (
      f'two processes have the id {index}, on {here[index][1]} and on {host}: give each its own '
      f'--process_id, 0 to {place.count - 1}'
    )
  here[index] = (peer, host)
  return ''


def _answer(place: Place, timeout: float) -> None:
  """Every other process: say who one is, and wait for the verdict."""
  deadline = time.monotonic() + timeout
  why = 'no answer'
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection((place.host, place.port), timeout=left) as server:
        # Process 0 gives up at its own deadline, which may be a little later than this one.
        verdict = _hello(server, place, max(deadline - time.monotonic(), 0.0) + 5.0)
      if verdict == 'all here':
        return
      if isinstance(verdict, str):
        raise UserError(verdict)
      why = 'something else answers there'  # perhaps the service of the run before, on its way out
    except OSError as error:
      why = error.strerror or str(error) or type(error).__name__
    time.sleep(min(0.2, max(deadline - time.monotonic(), 0.0)))
  raise UserError(
    f'process {place.index} cannot reach process 0 at {place.address} within {timeout:g} s '
    f'({why}): check --coordinator, that process 0 runs, and the firewall between them; '
    '--join_timeout waits longer'
  )


def _hello(server: socket.socket, place: Place, timeout: float) -> object:
  """Say who one is; the verdict, or None from a server that is none of ours."""
  mine = dict(index=place.index, count=place.count, host=socket.gethostname())
  server.sendall(json.dumps({'exedit': mine}).encode() + b'\n')
  server.settimeout(timeout)
  return _said(b''.join(_until_line(server)))


def _until_line(peer: socket.socket) -> Iterator[bytes]:
  size = 0
  while size <= LONGEST_LINE and (part := peer.recv(LONGEST_LINE)):
    yield part
    size += len(part)
    if part.endswith(b'\n'):
      return


def _said(line: bytes) -> object:
  """What one of our processes sent, or None where this is none of ours."""
  try:
    return json.loads(line)['exedit']
  except (ValueError, KeyError, TypeError):
    return None


def _listen(place: Place, deadline: float) -> socket.socket:
  """A socket on the port of every address; waits for a run before to let go of it."""
  while True:
    try:
      return _server(place.port)
    except OSError as error:
      with contextlib.suppress(OSError):  # if another process 0 of this run holds it, both hear so
        with socket.create_connection(('localhost', place.port), timeout=1) as holder:
          verdict = _hello(holder, place, 1.0)
        if isinstance(verdict, str):
          raise UserError(verdict) from error
      if time.monotonic() > deadline:
        raise UserError(
          f'process 0 cannot open port {place.port} ({error.strerror}): end what holds it, or give '
          'all processes another --coordinator'
        ) from error
    time.sleep(0.2)


def _server(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    with contextlib.suppress(OSError):  # a machine that knows IPv6 may have no address of it
      return socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(('', port))


def _missing(place: Place, here: Mapping[int, str], timeout: float) -> str:
  lack = [i for i in range(place.count) if i not in here]
  some = ', '.join(map(str, lack[:8])) + (f' and {len(lack) - 8} more' if len(lack) > 8 else '')
  return (
    f'{len(lack)} of {place.count} processes have not come to {place.address} within '
    f'{timeout:g} s (missing: {some}): look at why they did not start, or wait longer with '
    '--join_timeout'
  )


def wait_seconds(given: float | None, variable: str, default: float) -> float:
  """A time by flag, by a variable of the environment, or the default; UserError below 1."""
  text = os.environ.get(variable)
  try:
    value = float(text) if given is None and text else given
  except ValueError:
    raise UserError(f"{variable} is '{text:.50}': it must be a number of seconds") from None
  value = default if value is None else value
  if not 1 <= value < 1e6:
    raise UserError(f'{variable} is {value:g}: it must be at least 1 second')
  return value
