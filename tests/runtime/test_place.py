import pytest

from exedit.runtime.errors import UserError
from exedit.runtime.place import Place, find_place, first_host


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
  with pytest.raises(UserError, match=words):
    find_place(env, **given)
