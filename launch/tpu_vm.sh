#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud: asks for it, sets it up, starts, and begins again.
set -euo pipefail
USAGE='Trains on a TPU slice of Google Cloud (a queued resource): asks for it, waits until it is there, copies
this checkout to all its hosts, installs, starts there what goes on without this machine, and watches.

  launch/tpu_vm.sh --name=pbe --zone=us-west4-a --type=v5litepod-16 \
      --config=configs/pbe.py --workdir=gs://BUCKET/run [-- --config.batch_size=256 ...]

  --bucket=NAME      of Cloud Storage, mounted at /gcs of every host; not needed where workdir and
                     data are gs://...
  --project=P        (default: that of gcloud)
  --runtime=VERSION  of the TPU software (default: by --type)
  --spot             a spot slice: when it is taken away, another one is asked for
  --restarts=N       failures in a row on a host until it gives up (20)
  --poll=SECONDS     between two looks (60)
  --no-watch         end when the training runs; the same command watches again
  --dry-run          print what would be done, and do nothing

Each host starts a failed training again, and it goes on from the last checkpoint. Ends with the
status of the training: 0 done, 2 a mistake. The slice stays; delete it with
  gcloud compute tpus queued-resources delete NAME --zone=ZONE --force'
cd "$(dirname "$0")/.."
source launch/arguments.sh

name='' zone='' type='' config='' workdir='' project='' runtime='' spot='' bucket='' no_watch='' dry_run=''
restarts=20 poll=60
read_arguments 'name zone type project runtime spot! bucket restarts poll no_watch!' "$@"
need name zone type config workdir
matches name '[a-z]([-a-z0-9]{0,60}[a-z0-9])?' 'small letters, digits and hyphens'
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

# Until the slice is there. One that was taken away or failed is deleted and asked for again.
obtain() {
  local now
  if [ -n "$dry_run" ]; then
    queue describe '--format=value(state.state)'
    echo '# where there is none:'
    create
    echo '# where it was SUSPENDED or FAILED: deleted (--force --quiet) and created; and until it is ACTIVE:'
    echo "sleep $poll"
    return
  fi
  while :; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      ABSENT) create ;;
      SUSPENDED | FAILED)
        echo "the slice is $now: asking for another" >&2
        queue delete --force --quiet
        ;;
      *) sleep "$poll" ;;
    esac
  done
}

# What every host does; safe to repeat. The images' own Python may be older than 3.11. `setsid`: the
# training stays when this connection ends.
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
    echo "# every $poll seconds, until that says a status; all of the above again where the slice is gone:"
    on_hosts 0 "$look"
  }
  exit 0
fi
command -v gcloud >/dev/null || fail 'there is no gcloud: install the Google Cloud CLI, and log in'
while :; do
  obtain
  start
  echo "training; its words: gcloud compute tpus tpu-vm ssh $name ${where[*]} --worker=0 --command='tail -F exedit/train.log'"
  [ -z "$no_watch" ] || exit 0
  while status=$(on_hosts 0 "$look" 2>/dev/null) || [ "$(state)" = ACTIVE ]; do
    case $status in
      running | '') sleep "$poll" ;; # nothing: a connection that failed
      *)
        on_hosts 0 'tail -n 5 exedit/train.log' || :
        exit "$status"
        ;;
    esac
  done
done
