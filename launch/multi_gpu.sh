#!/usr/bin/env bash
# Trains on the GPUs of this machine and restarts a training that fails.
set -euo pipefail
USAGE='Trains on the GPUs of this machine. The same command continues a stopped training.

  launch/multi_gpu.sh --config=configs/pbe.py --workdir=/data/run [-- --config.batch_size=64 ...]

  --gpus=0,1,2,3   use only these GPUs (default: all)
  --processes=N    1: one process for all GPUs (default); N: one process for each of N GPUs
  --restarts=N     give up after N failures in a row (20)
  --python=PYTHON  the interpreter that has exedit (python)
  --dry-run        print the commands instead of running them

SIGTERM and Ctrl-C save a checkpoint and stop the training. The exit status is 0 for a finished
training, 2 for a mistake, and 75 for a training that was stopped before its end.'
cd "$(dirname "$0")/.."
source launch/arguments.sh
source launch/again.sh

config='' workdir='' gpus='' processes=1 restarts=20 python=python dry_run=''
read_arguments 'gpus processes restarts python' "$@"
need config workdir
matches processes '[1-9][0-9]*' 'a number from 1 on'
matches restarts '[0-9]+' 'a number'
if [ -n "$gpus" ]; then
  matches gpus '[0-9]+(,[0-9]+)*' 'the numbers that nvidia-smi shows, such as 0,1,2,3'
  export CUDA_VISIBLE_DEVICES=$gpus
  count=$(tr ',' '\n' <<<"$gpus" | sort -u | wc -l)
  if [ "$processes" -gt 1 ] && [ "$processes" -ne "$count" ]; then
    fail "--processes=$processes with $count GPUs: it must be 1, or one for each GPU"
  fi
fi

train=("$python" -m exedit.train "--config=$config" "--workdir=$workdir" --stopped_status=75)
train+=("${train_arguments[@]}")

# Starts one process for each GPU and waits for all of them. Returns the most severe status.
one_each() {
  local port i pid worst=0 status stopped='' pids=()
  trap 'stopped=1; kill -TERM "${pids[@]}" 2>/dev/null || :' TERM INT
  port=$((20000 + RANDOM % 20000))
  while (: <"/dev/tcp/localhost/$port") 2>/dev/null; do port=$((port + 1)); done # taken
  for ((i = 0; i < processes; i++)); do
    JAX_LOCAL_DEVICE_IDS=$i "${train[@]}" \
      "--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$i" &
    pids+=($!)
  done
  [ -z "$stopped" ] || kill -TERM "${pids[@]}" 2>/dev/null || :
  for pid in "${pids[@]}"; do
    while :; do
      status=0
      wait "$pid" || status=$?
      kill -0 "$pid" 2>/dev/null || break # otherwise a signal interrupted `wait`
    done
    # 2 (a mistake) is more severe than a failure, and a failure is more severe than 75 (stopped).
    case $worst/$status in
      */0 | 2/*) ;;
      */2 | 0/* | 75/*) worst=$status ;;
    esac
  done
  return "$worst"
}

if [ -n "$dry_run" ]; then
  [ -z "$gpus" ] || echo "export CUDA_VISIBLE_DEVICES=$gpus"
  if [ "$processes" = 1 ]; then
    run "${train[@]}"
  else
    for ((i = 0; i < processes; i++)); do
      run env "JAX_LOCAL_DEVICE_IDS=$i" "${train[@]}" --coordinator=localhost:PORT \
        "--num_processes=$processes" "--process_id=$i"
    done
  fi
  echo "# restarted after a failure, at most $restarts times in a row, but not after status 0 or 2"
  exit 0
fi
command -v "$python" >/dev/null || fail "$python was not found: give --python=..."
if [ "$processes" = 1 ]; then
  again "$restarts" "${train[@]}"
else
  again "$restarts" one_each
fi
