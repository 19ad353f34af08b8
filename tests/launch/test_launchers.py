"""The launchers: their dry runs, and their runs with stand-ins for the clouds' programs."""

import glob
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import kubernetes_validate
import pytest
import yaml

from tests.runs import ROOT

RUN = ('--config=configs/pbe.py', '--workdir=/shared/run')
TPU_VM = ('tpu_vm', '--name=pbe', '--zone=us-west4-a', '--type=v5litepod-16', *RUN)
SLURM = ('slurm', '--nodes=4', '--gpus=8', *RUN)
GKE = ('gke', '--name=pbe', '--image=registry/exedit:1', *RUN)
GKE_TPU = (*GKE, '--tpu=tpu-v5-lite-podslice', '--topology=4x4')
GKE_GPU = (*GKE, '--gpu=nvidia-h100-80gb', '--gpus=8', '--nodes=2')
TRAIN = 'python -m exedit.train --config=configs/pbe.py --workdir=/shared/run --stopped_status=75'
AWKWARD = ('--config.trainable=unet|conditioner', '--config.data.root=/a b/\'c\'"$HOME"')


def launch(name, *flags, path=None, **variables):
  env = {**os.environ, **({'PATH': f'{path}:{os.environ["PATH"]}'} if path else {}), **variables}
  command = ['bash', f'launch/{name}.sh', *flags]
  return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def dry(name, *flags, extra=()):
  result = launch(name, *flags, '--dry-run', *(('--', *extra) if extra else ()))
  assert result.returncode == 0 and not result.stderr, result.stderr
  return result.stdout


def stand_in(folder, name, text):
  """Writes a bash script under the name of a real program."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / name
  path.write_text(f'#!/usr/bin/env bash\n{text}\n')
  path.chmod(0o755)
  return path


def shellcheck(*arguments, **how):
  beside = os.path.join(os.path.dirname(sys.executable), 'shellcheck')
  program = beside if os.path.exists(beside) else shutil.which('shellcheck')
  assert program, 'shellcheck is not installed: pip install -r requirements-test.txt'
  result = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, **how)
  assert result.returncode == 0, result.stdout


def test_every_shell_script_passes_shellcheck():
  scripts = sorted(glob.glob('launch/*.sh', root_dir=ROOT))
  assert len(scripts) > 6
  shellcheck('--external-sources', *scripts, '.ci/run')


# Dry runs


def test_a_slice_of_tpus():
  text = dry(*TPU_VM, '--spot', '--project=p', '--bucket=bkt', extra=AWKWARD)
  where = '--zone=us-west4-a --project=p'
  assert (
    f'gcloud compute tpus queued-resources create pbe {where} --node-id=pbe '
    '--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot\n'
  ) in text
  assert f'tpu-vm scp exedit.tar.gz pbe:exedit.tar.gz {where} --worker=all\n' in text
  command = next(w for w in shlex.split(text, comments=True) if w.startswith('--command=cd exedit'))
  begin = command.removeprefix('--command=')
  shellcheck('--shell=bash', '--exclude=SC1091,SC2015,SC2016', '-', input=begin)
  assert 'gcsfuse --implicit-dirs bkt /gcs; }' in text and 'gcsfuse' not in dry(*TPU_VM)
  words = shlex.split(begin[begin.index('train \\') :])
  assert [w for w in words if w.startswith('--')] == [*TRAIN.split()[3:], *AWKWARD]
  assert 'again 20 "$@"' in begin


@pytest.mark.parametrize(
  'flags, version',
  [
    (['--type=v4-8'], 'tpu-ubuntu2204-base'),
    (['--type=v5p-8'], 'v2-alpha-tpuv5'),
    (['--type=v6e-16'], 'v2-alpha-tpuv6e'),
    (['--runtime=mine'], 'mine'),
  ],
)
def test_the_software_of_a_kind_of_tpu(flags, version):
  assert f' --runtime-version={version}\n' in dry(*TPU_VM, *flags)


def test_a_job_of_slurm():
  job = dry(*SLURM, '--partition=p', '--account=a', '--cpus=96', '--grace=120', extra=AWKWARD)
  options = [line.removeprefix('#SBATCH ') for line in job.splitlines() if '#SBATCH' in line]
  assert (
    options
    == (
      '--job-name=exedit --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=96 '
      '--time=24:00:00 --partition=p --account=a --output=exedit-%j.log --open-mode=append '
      '--requeue --signal=TERM@120'
    ).split()
  )
  (srun,) = [line for line in job.splitlines() if line.startswith('srun')]
  words = shlex.split(srun.split(' || ')[0])
  assert words == ['srun', '--kill-on-bad-exit=0', *TRAIN.split(), *AWKWARD]
  shellcheck('--shell=bash', '--exclude=SC2016', '-', input=job)
  assert '--exclusive' in dry(*SLURM)


def test_gpus_of_one_host():
  assert dry('multi_gpu', *RUN).splitlines()[0] == TRAIN
  lines = dry('multi_gpu', *RUN, '--gpus=2,3', '--processes=2', extra=AWKWARD).splitlines()
  assert lines[0] == 'export CUDA_VISIBLE_DEVICES=2,3'
  for i in range(2):
    place = ['--coordinator=localhost:PORT', '--num_processes=2', f'--process_id={i}']
    words = ['env', f'JAX_LOCAL_DEVICE_IDS={i}', *TRAIN.split(), *AWKWARD, *place]
    assert shlex.split(lines[1 + i]) == words


def manifest(*flags, extra=()):
  """The JobSet, the spec of its one Job, checked against Kubernetes' schema, and the container."""
  jobset = yaml.safe_load(dry(*flags, extra=extra))
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  # No package has JobSet's schema, so the fields of its version v1alpha2 stand here.
  assert set(jobset) == {'apiVersion', 'kind', 'metadata', 'spec'}
  assert set(jobset['spec']) == {'failurePolicy', 'replicatedJobs'}
  policy = jobset['spec']['failurePolicy']
  assert set(policy) == {'maxRestarts', 'rules'} and type(policy['maxRestarts']) is int
  (rule,) = policy['rules']
  assert rule == dict(name='mistake', action='FailJobSet', onJobFailureReasons=['PodFailurePolicy'])
  (replicated,) = jobset['spec']['replicatedJobs']
  assert set(replicated) == {'name', 'replicas', 'template'}
  job = dict(apiVersion='batch/v1', kind='Job', metadata=dict(name='one'), **replicated['template'])
  kubernetes_validate.validate(job, '1.31', strict=True)
  (container,) = job['spec']['template']['spec']['containers']
  return jobset, job['spec'], container


def test_a_jobset_on_tpus():
  more = '--slices=2 --spot --bucket=b --queue=q --service-account=s --grace=60'.split()
  jobset, job, container = manifest(*GKE_TPU, *more, extra=AWKWARD)
  assert jobset['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'q'}
  (annotation,) = jobset['metadata']['annotations'].items()
  topology = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
  assert annotation == (topology, 'cloud.google.com/gke-nodepool')
  assert jobset['spec']['replicatedJobs'][0]['replicas'] == 2
  counts = job['parallelism'], job['completions'], job['backoffLimit']
  assert counts == (4, 4, 0)  # 16 chips, 4 on each node
  assert job['completionMode'] == 'Indexed'
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob' and rule['onExitCodes']['values'] == [2]
  pod = job['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x4',
    'cloud.google.com/gke-spot': 'true',
  }
  assert pod['terminationGracePeriodSeconds'] == 60 and pod['serviceAccountName'] == 's'
  assert job['template']['metadata']['annotations'] == {'gke-gcsfuse/volumes': 'true'}
  volume = next(v for v in pod['volumes'] if v['name'] == 'bucket')
  assert volume['csi']['volumeAttributes']['bucketName'] == 'b'
  assert dict(name='bucket', mountPath='/gcs') in container['volumeMounts']
  assert container['command'] == [*TRAIN.split(), *AWKWARD]
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert 'JAX_NUM_PROCESSES' not in [e['name'] for e in container['env']]  # JAX gets it from GKE


def test_a_jobset_on_gpus():
  jobset, job, container = manifest(*GKE_GPU)
  env = {e['name']: e['value'] for e in container['env']}
  assert env['JAX_COORDINATOR_ADDRESS'] == 'pbe-node-0-0.pbe:12345'
  assert env['JAX_NUM_PROCESSES'] == '2' == str(job['completions'])
  assert container['resources']['limits'] == {'nvidia.com/gpu': 8}
  selector = job['template']['spec']['nodeSelector']
  assert selector == {'cloud.google.com/gke-accelerator': 'nvidia-h100-80gb'}
  assert 'annotations' not in jobset['metadata']


@pytest.mark.parametrize(
  'flags, words',
  [
    (('tpu_vm', *RUN), '--name is missing: see --help'),
    ((*TPU_VM, '--type=h100'), "--type is 'h100': it must be a type such as v5litepod-16"),
    ((*TPU_VM, '--workdir=run'), "--workdir is 'run': give the absolute path of a folder that"),
    (
      (*TPU_VM, '--workdir=s3://b/run'),
      'give gs:.* or the absolute .* --bucket=NAME this is /gcs/',
    ),
    ((*SLURM, '--workdir=run'), "--workdir is 'run': give the absolute path of a folder that all"),
    ((*TPU_VM, '--spot=1'), '--spot takes no value'),
    ((*SLURM, '--nodes=many'), "--nodes is 'many': it must be a number from 1 on"),
    ((*SLURM, '--setup=/no/such'), "--setup is '/no/such': the file was not found"),
    (GKE, '--gpu is missing'),
    ((*GKE_TPU, '--gpus=8'), 'give either --tpu and --topology, or --gpu, --gpus and --nodes'),
    ((*GKE_TPU, '--topology=1x1'), '1x1 has 1 chips, which is not a multiple of --chips=4'),
    ((*GKE_TPU, '--name=Big'), "--name is 'Big': it must be lowercase letters"),
    (('multi_gpu', *RUN, '--gpus=0,1', '--processes=4'), '--processes=4 with 2 GPUs'),
    (('multi_gpu', *RUN, '--gpu=1'), 'there is no flag --gpu; see --help'),
    (('multi_gpu', 'go'), "'go' is not a flag: flags are written --name=value"),
    (('multi_gpu', *RUN, '--python=/no/python'), '/no/python was not found: give --python=...'),
  ],
)
def test_a_mistake_is_one_line(flags, words):
  result = launch(*flags)
  assert result.returncode == 2 and not result.stdout
  assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1
  assert words in result.stderr or re.search(words, result.stderr)


@pytest.mark.parametrize('name', ['tpu_vm', 'slurm', 'gke', 'multi_gpu'])
def test_help_names_every_flag(name):
  result = launch(name, '--help')
  assert result.returncode == 0 and '--dry-run' in result.stdout and f'{name}.sh' in result.stdout


# Runs


def again(tmp_path, script, limit=3):
  """Starts `again` with a training that is this script; tmp_path/log records its starts."""
  command = stand_in(tmp_path, 'train', f'echo started >>{tmp_path}/log; {script}')
  text = f'source launch/again.sh; again {limit} {command}; exit $?'
  return subprocess.Popen(
    ['bash', '-c', text], cwd=ROOT, env={**os.environ, 'RESTART_PAUSE': '0.05'}, text=True,
    stderr=subprocess.PIPE,
  )  # fmt: skip


def count(tmp_path):
  log = tmp_path / 'log'
  return log.read_text().count('started') if log.exists() else 0


@pytest.mark.parametrize(
  'script, status, starts',
  [
    ('exit 0', 0, 1),
    ('exit 2', 2, 1),
    ('exit 134', 134, 4),
    ('[ $(wc -l <LOG) -ge 3 ] || exit 1', 0, 3),
    ('[ $(wc -l <LOG) -ge 9 ] || exit 75', 0, 9),  # stopped by others: no failure
  ],
)
def test_what_fails_is_started_again(tmp_path, script, status, starts):
  process = again(tmp_path, script.replace('LOG', f'{tmp_path}/log'))
  assert process.wait(timeout=200) == status and count(tmp_path) == starts
  assert ('gave up after 4 failures in a row' in process.stderr.read()) == (status == 134)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_training_to_save(tmp_path, number):
  save = f'trap "sleep 0.3; echo saved >>{tmp_path}/log; exit 75" TERM; echo ready >>{tmp_path}/log'
  process = again(tmp_path, f'{save}; while :; do sleep 0.05; done')
  wait_for(lambda: 'ready' in read(tmp_path / 'log'))
  process.send_signal(number)
  assert process.wait(timeout=200) == 75
  assert read(tmp_path / 'log').split() == ['started', 'ready', 'saved']


def read(path):
  return path.read_text() if path.exists() else ''


def wait_for(condition):
  deadline = time.monotonic() + 200
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_processes_of_one_host_are_started_together_and_again(tmp_path):
  """The first start fails in the second process; the second start succeeds."""
  log = tmp_path / 'log'
  python = stand_in(
    tmp_path,
    'python',
    f'echo "$JAX_LOCAL_DEVICE_IDS $CUDA_VISIBLE_DEVICES $*" >>{log}\n'
    f'[ $(wc -l <{log}) -gt 2 ] || exit 1',
  )
  flags = ('--gpus=4,5', '--processes=2', f'--python={python}')
  result = launch('multi_gpu', *RUN, *flags, RESTART_PAUSE='0.05')
  assert result.returncode == 0 and 'status 1: starting again (1 of 20)' in result.stderr
  lines = sorted(line.split() for line in log.read_text().splitlines())
  assert [line[0] for line in lines] == ['0', '0', '1', '1']
  assert {line[1] for line in lines} == {'4,5'}
  ports = {word for line in lines for word in line if word.startswith('--coordinator=localhost:')}
  assert 1 <= len(ports) <= 2 and all('--num_processes=2' in line for line in lines)
  mistaken = stand_in(tmp_path, 'mistaken', '[ $JAX_LOCAL_DEVICE_IDS = 0 ] && exit 1 || exit 2')
  assert launch('multi_gpu', *RUN, *flags, f'--python={mistaken}').returncode == 2


@pytest.mark.parametrize(
  'status, restarts, expected, queued',
  [(0, 0, 0, False), (2, 0, 2, False), (75, 3, 0, True), (134, 0, 0, True), (134, 100, 134, False)],
)
def test_a_job_of_slurm_goes_back_into_the_queue(tmp_path, status, restarts, expected, queued):
  path = tmp_path / 'bin'
  stand_in(path, 'srun', f'exit {status}')
  stand_in(path, 'scontrol', f'echo "$@" >{tmp_path}/queued')
  stand_in(path, 'sbatch', f'SLURM_JOB_ID=7 SLURM_RESTART_COUNT={restarts} bash -s')
  result = launch(*SLURM, path=path)
  assert result.returncode == expected, result.stderr
  assert read(tmp_path / 'queued') == ('requeue 7\n' if queued else '')


def test_a_jobset_is_applied(tmp_path):
  stand_in(tmp_path / 'bin', 'kubectl', f'echo "$@"; cat >{tmp_path}/applied')
  result = launch(*GKE_TPU, path=tmp_path / 'bin')
  assert result.returncode == 0 and result.stdout.startswith('apply -f -\n')
  assert (tmp_path / 'applied').read_text() == dry(*GKE_TPU)


# The slice is created, taken away before the training is checked, and created again.
GCLOUD = """
all=$*
echo "$all" | head -n 1 >>HOME/calls
case "$all" in
  *describe*)
    n=$(cat HOME/looks 2>/dev/null || echo 0); echo $((n + 1)) >HOME/looks
    states=(none WAITING_FOR_RESOURCES ACTIVE SUSPENDED SUSPENDED none ACTIVE ACTIVE ACTIVE)
    [ ${states[n]} != none ] && echo ${states[n]} ;;
  *scp*) cp "$5" HOME/exedit.tar.gz ;;
  *"pip install"*)
    mkdir -p HOME/exedit/.venv-tpu/bin; tar -xzf HOME/exedit.tar.gz -C HOME/exedit
    printf '#!/bin/sh\\necho "$@" >>HOME/trained\\n' >HOME/exedit/.venv-tpu/bin/python
    chmod +x HOME/exedit/.venv-tpu/bin/python ;;
  *'cat exedit/train.status'*)
    [ -e HOME/lost ] || { touch HOME/lost; rm -rf HOME/exedit; exit 1; }
    cd HOME; bash -c "${all#*--command=}" ;;
  *--command=*) cd HOME; bash -c "${all#*--command=}" ;;
esac
"""


def test_a_slice_is_requested_set_up_and_requested_again(tmp_path):
  """gcloud is a stand-in; the archive and the commands of the hosts are real."""
  home = tmp_path / 'home'
  home.mkdir()
  stand_in(tmp_path / 'bin', 'gcloud', GCLOUD.replace('HOME', str(home)))
  result = launch(*TPU_VM, '--spot', '--poll=1', path=tmp_path / 'bin')
  calls = read(home / 'calls').splitlines()
  assert result.returncode == 0, (result.stderr, calls)
  assert 'the slice is SUSPENDED: requesting another one' in result.stderr
  verbs = [call.split()[3] for call in calls if 'queued-resources' in call]
  assert [verb for verb in verbs if verb != 'describe'] == ['create', 'delete', 'create']
  assert all(line == TRAIN.split(maxsplit=1)[1] for line in read(home / 'trained').splitlines())
  assert read(home / 'exedit' / 'train.status') == '0\n'
  assert (home / 'exedit' / 'exedit' / 'train.py').exists()
