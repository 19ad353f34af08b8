#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud: requests it, sets it up, starts the training, restarts it.
set -euo pipefail
USAGE='Trains on a TPU slice of Google Cloud (a queued resource). It requests the slice, waits for it, copies
this checkout to all hosts, installs the requirements, starts the training and watches it. The
training does not depend on this machine.

  launch/tpu_vm.sh --name=pbe --zone=us-west4-a --type=v5litepod-16 \
      --config=configs/pbe.py --workdir=gs://BUCKET/run [-- --config.batch_size=256 ...]

  --bucket=NAME      mount this Cloud Storage bucket at /gcs of every host; not needed if workdir
                     and data are gs://...
  --project=P        the Google Cloud project (default: as configured in gcloud)
  --runtime=VERSION  version of the TPU software (default: depends on --type)
  --spot             use a spot slice, and request another one when it is taken away
  --restarts=N       give up after N failures in a row on a host (20)
  --poll=SECONDS     time between two checks (60)
  --no-watch         end as soon as the training runs; the same command watches it again
  --dry-run          print the commands instead of running them

Each host restarts a training that fails, and it continues from the last checkpoint. The exit status
is that of the training: 0 done, 2 a mistake. The slice is kept. To delete it:
  gcloud compute tpus queued-resources delete NAME --zone=ZONE --force'
cd "$(dirname "$0")/.."
source launch/arguments.sh

name='' zone='' type='' config='' workdir='' project='' runtime='' spot='' bucket='' no_watch=''
restarts=20 poll=60 dry_run=''
read_arguments 'name zone type project runtime spot! bucket restarts poll no_watch!' "$@"
need name zone type config workdir
matches name '[a-z]([-a-z0-9]{0,60}[a-z0-9])?' 'lowercase letters, digits and hyphens'
matches zone '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone such as us-west4-a'
matches type '(v[2-4]|v5litepod|v5p|v6e)-[0-9]+' 'a type such as v5litepod-16, v5p-8, v6e-16 or v4-8'
matches restarts '[0-9]+' 'a number'
matches poll '[1-9][0-9]*' 'a number of seconds'
[ -z "$bucket" ] || matches bucket '[a-z0-9][-a-z0-9_.]*[a-z0-9]' 'the name of a bucket'
check_workdir /gcs
case $type in
  v5litepod-*) : "${runtime:=v2-alpha-tpuv5-lite}" ;;
  v5p-*) : "${runtime:=v2-alpha-tpuv5}" ;;
  v6e-*) : "${runtime:=v2-alpha-tpuv6e}" ;;
  *) : "${runtime:=tpu-ubuntu2204-base}" ;;
esac

where=("--zone=$zone" ${project:+"--project=$project"})
train=(python -m exedit.train "--config=$config" "--workdir=$workdir" --stopped_status=75)
train+=("${train_arguments[@]}")

queue() {
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$name" "${where[@]}" "$@"
}
on_hosts() { # WORKER COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

state() {
  [ -n "$dry_run" ] || queue describe '--format=value(state.state)' 2>/dev/null || echo ABSENT
}

create() {
  queue create --node-id="$name" "--accelerator-type=$type" "--runtime-version=$runtime" \
    ${spot:+--spot}
}

# Waits for the slice. A slice that was taken away or failed is deleted and requested again.
obtain() {
  local now
  if [ -n "$dry_run" ]; then
    queue describe '--format=value(state.state)'
    echo '# if there is none:'
    create
    echo '# if it is SUSPENDED or FAILED, it is deleted (--force --quiet) and created; until it is ACTIVE:'
    echo "sleep $poll"
    return
  fi
  while :; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      ABSENT) create ;;
      SUSPENDED | FAILED)
        echo "the slice is $now: requesting another one" >&2
        queue delete --force --quiet
        ;;
      *) sleep "$poll" ;;
    esac
  done
}

# The commands for every host; they are safe to repeat. The Python of the image may be older than 3.11.
# `setsid` keeps the training alive when this connection ends.
# shellcheck disable=SC2016
install='mkdir -p exedit && tar -xzf exedit.tar.gz -C exedit && cd exedit && python=python3 &&
{ python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" ||
{ python=python3.11 && sudo apt-get -qq update && sudo apt-get -qq -y install python3.11-venv; }; } &&
$python -m venv .venv-tpu && .venv-tpu/bin/pip install --quiet -r requirements.txt "jax[tpu]" gcsfs'
# shellcheck disable=SC2016
mount='command -v gcsfuse >/dev/null || {
keys=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
curl -fsS $packages/doc/apt-key.gpg | sudo tee $keys >/dev/null &&
echo "deb [signed-by=$keys] $packages gcsfuse-$(lsb_release -cs) main" |
sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null &&
sudo apt-get -qq update && sudo apt-get -qq -y install gcsfuse; } &&
sudo mkdir -p /gcs && sudo chown "$(id -u)" /gcs && { mountpoint -q /gcs ||'
mount+=" gcsfuse --implicit-dirs $bucket /gcs; }"
begin="cd exedit && [ -e train.pid ] && kill -0 \"\$(cat train.pid)\" 2>/dev/null || {
rm -f train.status; PATH=\$PWD/.venv-tpu/bin:\$PATH setsid nohup bash -c '
echo \$\$ >train.pid; source launch/again.sh; status=0
again $restarts \"\$@\" || status=\$?; echo \$status >train.status' train \\
$(quoted "${train[@]}") >>train.log 2>&1 </dev/null & }"
# shellcheck disable=SC2016
look='cat exedit/train.status 2>/dev/null || { kill -0 "$(cat exedit/train.pid)" && echo running; }'

start() {
  local archive
  archive=$(mktemp -d)/exedit.tar.gz
  [ -z "$dry_run" ] || archive=exedit.tar.gz
  run tar -czf "$archive" exedit input_pipeline configs launch requirements.txt
  run gcloud compute tpus tpu-vm scp "$archive" "$name:exedit.tar.gz" "${where[@]}" --worker=all
  on_hosts all "$install"
  [ -z "$bucket" ] || on_hosts all "$mount"
  on_hosts all "$begin"
  [ -n "$dry_run" ] || rm -r "$(dirname "$archive")"
}

if [ -n "$dry_run" ]; then
  obtain
  start
  [ -n "$no_watch" ] || {
    echo "# every $poll seconds until it prints a status; if the slice is gone, all of this again:"
    on_hosts 0 "$look"
  }
  exit 0
fi
command -v gcloud >/dev/null || fail 'gcloud was not found: install the Google Cloud CLI, and log in'
while :; do
  obtain
  start
  echo "the training runs; its log: gcloud compute tpus tpu-vm ssh $name ${where[*]} --worker=0 \\
  --command='tail -F exedit/train.log'"
  [ -z "$no_watch" ] || exit 0
  while status=$(on_hosts 0 "$look" 2>/dev/null) || [ "$(state)" = ACTIVE ]; do
    case $status in
      running | '') sleep "$poll" ;; # empty: the connection failed
      *)
        on_hosts 0 'tail -n 5 exedit/train.log' || :
        exit "$status"
        ;;
    esac
  done
done
