#!/usr/bin/env bash
# Trains on Kubernetes (GKE) as one JobSet, on TPU slices or on nodes with GPUs.
set -euo pipefail
USAGE='Trains on Kubernetes (GKE) as one JobSet. This needs kubectl and the JobSet controller.

  launch/gke.sh --name=pbe --image=REGISTRY/exedit:TAG --config=configs/pbe.py \
      --workdir=gs://BUCKET/run --tpu=tpu-v5-lite-podslice --topology=4x4 [-- ...]
  launch/gke.sh ... --gpu=nvidia-h100-80gb --gpus=8 --nodes=2

  --bucket=NAME      mount this Cloud Storage bucket at /gcs; not needed if workdir and data are
                     gs://...
  --image            built from launch/Dockerfile, or any image with exedit in its working folder
  --tpu, --topology  kind and shape of the TPU slices, as in the labels of GKE nodes
  --chips=N          TPU chips on each node (4)
  --slices=N         number of slices that train together (1)
  --gpu, --gpus, --nodes  kind of GPU, GPUs on each node, and number of nodes
  --spot             use spot nodes
  --service-account=NAME  the Kubernetes service account that may use the bucket
  --namespace=NAME   the Kubernetes namespace (default)
  --queue=NAME       the LocalQueue of Kueue that admits the job
  --restarts=N       restart the whole set at most N times (100)
  --grace=SECONDS    time to save between SIGTERM and SIGKILL (300; spot nodes allow less)
  --dry-run          print the manifest instead of applying it

If a pod or its node fails, all pods restart and continue from the last checkpoint. A mistake
(status 2) ends the set at once.'
cd "$(dirname "$0")/.."
source launch/arguments.sh

name='' image='' config='' workdir='' tpu='' topology='' chips=4 slices=1 gpu='' gpus='' nodes=''
spot='' service_account='' bucket='' queue='' namespace=default restarts=100 grace=300 dry_run=''
read_arguments 'name image tpu topology chips slices gpu gpus nodes spot! service_account bucket
 namespace queue restarts grace' "$@"
need name image config workdir
matches name '[a-z]([-a-z0-9]{0,30}[a-z0-9])?' 'lowercase letters, digits and hyphens, at most 32'
matches restarts '[0-9]+' 'a number'
matches grace '[1-9][0-9]*' 'a number of seconds'
matches slices '[1-9][0-9]*' 'a number from 1 on'
label='[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?'
for word in tpu gpu service_account bucket namespace queue; do
  [ -z "${!word}" ] || matches "$word" "$label" 'a name'
done
check_workdir /gcs
if [ -n "$tpu" ]; then
  [ -z "$gpu$gpus$nodes" ] || fail 'give either --tpu and --topology, or --gpu, --gpus and --nodes'
  need topology
  matches topology '[1-9][0-9]*(x[1-9][0-9]*){1,2}' 'a shape such as 4x4 or 2x2x4'
  matches chips '1|2|4|8' '1, 2, 4 or 8'
  all=$((${topology//x/ * }))
  [ $((all % chips)) = 0 ] || fail "$topology has $all chips, which is not a multiple of --chips=$chips for each node"
  nodes=$((all / chips))
else
  need gpu gpus nodes
  matches gpus '[1-9][0-9]*' 'a number from 1 on'
  matches nodes '[1-9][0-9]*' 'a number from 1 on'
  [ "$slices" = 1 ] || fail '--slices is for TPUs: give --nodes instead'
fi

# Prints a string as JSON, which is also YAML.
json() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//$'\n'/\\n}"
}

manifest() {
  local word
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  namespace: $namespace
YAML
  [ -z "$queue" ] || printf '  labels:\n    kueue.x-k8s.io/queue-name: %s\n' "$queue"
  [ -z "$tpu" ] || cat <<YAML
  annotations:
    # puts each slice on one node pool, because its chips are connected only there
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
YAML
  cat <<YAML
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: node
      replicas: $slices
      template:
        spec:
          parallelism: $nodes
          completions: $nodes
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2]
          template:
YAML
  # GKE adds the container that mounts the bucket to pods with this annotation.
  [ -z "$bucket" ] || printf '%s\n' '            metadata:' '              annotations:' \
    '                gke-gcsfuse/volumes: "true"'
  cat <<YAML
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $grace
YAML
  [ -z "$service_account" ] || echo "              serviceAccountName: $service_account"
  echo '              nodeSelector:'
  if [ -n "$tpu" ]; then
    echo "                cloud.google.com/gke-tpu-accelerator: $tpu"
    echo "                cloud.google.com/gke-tpu-topology: $topology"
  else
    echo "                cloud.google.com/gke-accelerator: $gpu"
  fi
  [ -z "$spot" ] || echo '                cloud.google.com/gke-spot: "true"'
  echo '              tolerations:'
  [ -z "$gpu" ] || echo '                - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}'
  [ -z "$tpu" ] || echo '                - {key: google.com/tpu, operator: Exists, effect: NoSchedule}'
  [ -z "$spot" ] || echo '                - {key: cloud.google.com/gke-spot, operator: Exists, effect: NoSchedule}'
  cat <<YAML
              volumes:
                - name: shm
                  emptyDir: {medium: Memory}
YAML
  [ -z "$bucket" ] || cat <<YAML
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes: {bucketName: $bucket, mountOptions: implicit-dirs}
YAML
  cat <<YAML
              containers:
                - name: train
                  image: $(json "$image")
                  command:
YAML
  for word in python -m exedit.train "--config=$config" "--workdir=$workdir" --stopped_status=75 \
    "${train_arguments[@]}"; do
    echo "                    - $(json "$word")"
  done
  cat <<YAML
                  env:
                    - name: EXEDIT_JOIN_TIMEOUT # restarted nodes do not come back at the same time
                      value: "1800"
                    - name: PYTHONUNBUFFERED
                      value: "1"
YAML
  # On TPUs, GKE tells every pod its index, and JAX reads it.
  [ -z "$gpu" ] || cat <<YAML
                    - name: JAX_COORDINATOR_ADDRESS
                      value: $name-node-0-0.$name:12345
                    - name: JAX_NUM_PROCESSES # the process index is JOB_COMPLETION_INDEX
                      value: "$nodes"
YAML
  cat <<YAML
                  volumeMounts:
                    - name: shm # batches from the data workers
                      mountPath: /dev/shm
YAML
  [ -z "$bucket" ] || printf '%s\n' '                    - name: bucket' '                      mountPath: /gcs'
  cat <<YAML
                  resources:
                    limits:
YAML
  if [ -n "$tpu" ]; then
    echo "                      google.com/tpu: $chips"
  else
    echo "                      nvidia.com/gpu: $gpus"
  fi
}

if [ -n "$dry_run" ]; then
  manifest
  exit 0
fi
command -v kubectl >/dev/null || fail 'kubectl was not found: install it, and log in to the cluster'
manifest | kubectl apply -f -
echo "follow it with: kubectl --namespace=$namespace logs -f -l jobset.sigs.k8s.io/jobset-name=$name"
