#!/usr/bin/env bash
# Submits a training to Slurm, with one process on each node that uses all GPUs of the node.
set -euo pipefail
USAGE='Submits a training to Slurm, with one process on each node that uses all GPUs of the node.

  launch/slurm.sh --nodes=4 --gpus=8 --config=configs/pbe.py --workdir=/shared/run \
      [--partition=P] [--account=A] [--time=24:00:00] [-- --config.batch_size=256 ...]

  --nodes, --gpus    number of nodes, and of GPUs on each node
  --cpus=N           CPU cores on each node (default: all cores of an --exclusive node)
  --setup=FILE       file to source on each node first, for modules and the environment
  --python=PYTHON    the interpreter that has exedit (python)
  --name=NAME        of the job (exedit)
  --restarts=N       queue the job again after a failure at most N times (100)
  --grace=SECONDS    time to save before the time limit (300)
  --dry-run          print the job script instead of submitting it

The job returns to the queue at the time limit, after a preemption and after a failure, and continues
from its last checkpoint. A mistake (status 2) ends it.'
cd "$(dirname "$0")/.."
source launch/arguments.sh

config='' workdir='' nodes='' gpus='' partition='' account='' time=24:00:00
cpus='' setup='' python=python name=exedit restarts=100 grace=300 dry_run=''
read_arguments 'nodes gpus cpus setup python name restarts grace partition account time' "$@"
need config workdir nodes gpus
for number in nodes gpus; do
  matches $number '[1-9][0-9]*' 'a number from 1 on'
done
matches restarts '[0-9]+' 'a number'
matches grace '[1-9][0-9]*' 'a number of seconds'
matches time '([0-9]+-)?[0-9]+(:[0-9]+){0,2}' 'a time in the format of Slurm, such as 24:00:00'
[ -z "$cpus" ] || matches cpus '[1-9][0-9]*' 'a number from 1 on'
[ -z "$setup" ] || [ -r "$setup" ] || fail "--setup is '$setup': the file was not found"
check_workdir ''

train=("$python" -m exedit.train "--config=$config" "--workdir=$workdir" --stopped_status=75)
train+=("${train_arguments[@]}")

job() {
  echo '#!/usr/bin/env bash'
  echo "#SBATCH --job-name=$name"
  echo "#SBATCH --nodes=$nodes"
  echo '#SBATCH --ntasks-per-node=1'
  echo "#SBATCH --gpus-per-node=$gpus"
  if [ -n "$cpus" ]; then echo "#SBATCH --cpus-per-task=$cpus"; else echo '#SBATCH --exclusive'; fi
  echo "#SBATCH --time=$time"
  [ -z "$partition" ] || echo "#SBATCH --partition=$partition"
  [ -z "$account" ] || echo "#SBATCH --account=$account"
  cat <<JOB
#SBATCH --output=$name-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@$grace
set -uo pipefail
cd $(quoted "$PWD") || exit 2
JOB
  [ -z "$setup" ] || echo "source $(quoted "$(realpath "$setup")")"
  cat <<JOB
status=0
srun --kill-on-bad-exit=0 $(quoted "${train[@]}") || status=\$?
case \$status in
  0 | 2) exit "\$status" ;; # done, or a mistake that a restart cannot fix
  75) ;;                   # stopped on request, and saved
  *) echo "status \$status, after \${SLURM_RESTART_COUNT:-0} restarts" ;;
esac
if [ "\${SLURM_RESTART_COUNT:-0}" -ge $restarts ]; then
  echo 'error: gave up after $restarts restarts' >&2
  exit "\$status"
fi
scontrol requeue "\$SLURM_JOB_ID"
JOB
}

if [ -n "$dry_run" ]; then
  job
  exit 0
fi
command -v sbatch >/dev/null || fail 'sbatch was not found: run this on a login node of the cluster'
job | sbatch
