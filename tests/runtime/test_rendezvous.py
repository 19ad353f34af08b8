"""The roll call, between threads: what each of several processes hears."""

import socket
import threading
import time

import pytest

from exedit.runtime.errors import UserError
from exedit.runtime.rendezvous import Place, call_roll, find_place, first_host
from tests.runs import free_port


def meet(*places, timeout=10.0, later=0.0):
  """What each place heard: 'all here', or the line of its error; and the seconds it took."""
  heard = [None] * len(places)

  def go(i):
    time.sleep(later * i)
    try:
      call_roll(places[i], timeout)
      heard[i] = 'all here'
    except UserError as error:
      heard[i] = str(error)

  begin = time.monotonic()
  threads = [threading.Thread(target=go, args=(i,)) for i in range(len(places))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return heard, time.monotonic() - begin


def places(*indices, count):
  address = f'localhost:{free_port()}'
  return [Place(address, count, index) for index in indices]


def test_all_who_come_go_on_whoever_comes_first():
  for order in ((0, 1, 2), (2, 1, 0)):
    heard, _ = meet(*places(*order, count=3), later=0.1)
    assert heard == ['all here'] * 3


def test_the_port_is_free_for_jax_afterwards():
  together = places(0, 1, count=2)
  meet(*together)
  socket.create_server(('', together[0].port)).close()


def test_a_missing_peer_is_named_to_all_in_time():
  heard, seconds = meet(*places(0, 2, count=4), timeout=1.0)
  assert heard[0] == heard[1] and '\n' not in heard[0]
  assert '2 of 4 processes have not come to localhost:' in heard[0]
  assert 'within 1 s (missing: 1, 3)' in heard[0] and '--join_timeout' in heard[0]
  assert seconds < 8


def test_nobody_at_the_address_is_said_in_time():
  (lone,) = places(1, count=2)
  (heard,), seconds = meet(lone, timeout=1.0)
  assert heard.startswith(f'process 1 cannot reach process 0 at {lone.address} within 1 s (')
  assert 'Connection refused' in heard and seconds < 8
  (heard,), _ = meet(Place('no-such-host.invalid:1234', 2, 1), timeout=1.0)
  assert 'at no-such-host.invalid:1234 within 1 s' in heard


@pytest.mark.parametrize('twice', [0, 1])
def test_two_with_the_same_id_end_the_run_for_all(twice):
  heard, _ = meet(*places(0, 1, twice, count=4), later=0.2)
  assert set(heard) == {heard[0]} and '\n' not in heard[0]
  host = socket.gethostname()
  assert f'two processes have the id {twice}, on {host} and on {host}: give each its' in heard[0]


def test_another_number_of_processes_is_said_to_both():
  address = f'localhost:{free_port()}'
  heard, _ = meet(Place(address, 2, 0), Place(address, 3, 1))
  assert heard[0] == heard[1]
  assert 'was told of 3 processes, process 0 of 2' in heard[0]


def test_a_peer_that_was_restarted_while_waiting_may_come_again():
  zero, one, two = places(0, 1, 2, count=3)
  waits = threading.Thread(target=meet, args=(zero,))
  waits.start()
  gone = connect(zero)
  gone.sendall(b'{"exedit": {"index": 1, "count": 3, "host": "here"}}\n')
  time.sleep(0.3)
  gone.close()
  time.sleep(0.3)
  heard, _ = meet(one, two)
  waits.join()
  assert heard == ['all here', 'all here']


def test_strangers_at_the_port_change_nothing():
  zero, one = places(0, 1, count=2)
  waits = threading.Thread(target=meet, args=(zero,))
  waits.start()
  strangers = [connect(zero) for _ in range(4)]
  for stranger, words in zip(
    strangers, (b'GET / HTTP/1.1\r\n\r\n', b'{"exedit": 3}\n', b'x' * 9999)
  ):
    stranger.sendall(words)
  assert meet(one)[0] == ['all here']
  waits.join()
  for stranger in strangers:
    stranger.close()


def test_a_stranger_in_the_place_of_process_0_is_said():
  with socket.create_server(('', 0)) as server:
    answering = threading.Thread(target=answer_once, args=(server,))
    answering.start()
    heard, _ = meet(Place(f'localhost:{server.getsockname()[1]}', 2, 1), timeout=1.0)
    answering.join()
  assert 'cannot reach process 0' in heard[0]


def answer_once(server):
  peer, _ = server.accept()
  peer.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')
  peer.close()
  server.close()


def connect(place):
  deadline = time.monotonic() + 10
  while True:
    try:
      return socket.create_connection((place.host, place.port))
    except OSError:
      assert time.monotonic() < deadline
      time.sleep(0.02)


# The place


def test_a_lone_process_has_no_place():
  assert find_place({}) is None
  assert find_place(dict(JAX_NUM_PROCESSES='1', JAX_COORDINATOR_ADDRESS='h:1')) is None
  assert find_place(dict(SLURM_STEP_NUM_TASKS='1', SLURM_PROCID='0', SLURM_JOB_ID='9')) is None
  assert find_place({}, 'localhost:1234', 1, 0) == Place('localhost:1234', 1, 0)  # asked for


def test_flags_go_before_variables_and_each_by_itself():
  env = dict(JAX_COORDINATOR_ADDRESS='a:1', JAX_NUM_PROCESSES='4', JAX_PROCESS_ID='2')
  assert find_place(env) == Place('a:1', 4, 2)
  assert find_place(env, process_id=3) == Place('a:1', 4, 3)
  assert find_place(env, coordinator='b:2', num_processes=8) == Place('b:2', 8, 2)


def test_an_indexed_job_of_kubernetes_numbers_its_pods():
  env = dict(JAX_COORDINATOR_ADDRESS='run-node-0-0.run:1', JAX_NUM_PROCESSES='4')
  assert find_place({**env, 'JOB_COMPLETION_INDEX': '3'}) == Place('run-node-0-0.run:1', 4, 3)


SLURM = dict(
  SLURM_JOB_ID='5000', SLURM_STEP_ID='0', SLURM_STEP_NODELIST='gpu[03-04]', SLURM_PROCID='3'
)


def test_slurm_one_task_for_each_node_takes_all_its_devices():
  env = dict(SLURM, SLURM_STEP_NUM_TASKS='2', SLURM_STEP_TASKS_PER_NODE='1(x2)', SLURM_LOCALID='0')
  assert find_place({**env, 'SLURM_PROCID': '1'}) == Place('gpu03:62344', 2, 1)
  assert find_place({**env, 'SLURM_PROCID': '1', 'JAX_COORDINATOR_PORT': '99'}) == Place(
    'gpu03:99', 2, 1
  )


def test_slurm_one_task_for_each_device_takes_its_own():
  env = dict(SLURM, SLURM_STEP_NUM_TASKS='4', SLURM_STEP_TASKS_PER_NODE='2(x2)')
  env |= dict(SLURM_LOCALID='1', SLURM_NODEID='1')
  assert find_place(env) == Place('gpu03:62344', 4, 3, (1,))
  assert find_place({**env, 'CUDA_VISIBLE_DEVICES': '4,5'}) == Place('gpu03:62344', 4, 3, (1,))
  # --gpus-per-task: each task sees its own alone, as number 0
  assert find_place({**env, 'CUDA_VISIBLE_DEVICES': '1'}) == Place('gpu03:62344', 4, 3)
  assert find_place({**env, 'JAX_LOCAL_DEVICE_IDS': '0,1'}) == Place('gpu03:62344', 4, 3, (0, 1))


@pytest.mark.parametrize(
  'nodes, first',
  [
    ('node1', 'node1'),
    ('node1,other2', 'node1'),
    ('gpu[007-9,12],cpu1', 'gpu007'),
    ('gpu[12,14]', 'gpu12'),
    ('rack[3-4]-eth', 'rack3-eth'),
    ('a-b-001', 'a-b-001'),
  ],
)
def test_the_first_host_of_slurms_list(nodes, first):
  assert first_host(nodes) == first


@pytest.mark.parametrize(
  'env, given, words',
  [
    ({}, dict(coordinator='h:1'), 'without --num_processes .or JAX_NUM_PROCESSES.: give it'),
    ({}, dict(num_processes=2), 'without --coordinator .or JAX_COORDINATOR_ADDRESS.'),
    ({}, dict(coordinator='h:1', num_processes=2), 'without --process_id .or JAX_PROCESS_ID.'),
    ({}, dict(coordinator='h', num_processes=2, process_id=0), "is 'h': it must be HOST:PORT"),
    ({}, dict(coordinator='h:99999', num_processes=2, process_id=0), 'must be HOST:PORT'),
    ({}, dict(coordinator='h:1', num_processes=2, process_id=2), 'process_id 2 of 2 processes: it'),
    (dict(JAX_NUM_PROCESSES='two'), {}, "JAX_NUM_PROCESSES is 'two': it must be a whole number"),
    ({**SLURM, 'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NODELIST': ''}, {}, 'start .* with srun'),
  ],
)
def test_half_a_place_is_one_line(env, given, words):
  with pytest.raises(UserError, match=words) as caught:
    find_place(env, **given)
  assert '\n' not in str(caught.value)
