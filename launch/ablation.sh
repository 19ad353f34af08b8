#!/usr/bin/env bash
# The paper's ablation in small: trains its five rows on drawn scenes, scores them, makes the table.
#
#   launch/ablation.sh              three seeds; takes some hours on two CPU cores
#   SEEDS="0 1 2 3 4" STEPS=3000 JOBS=4 OUT=/data/ablation launch/ablation.sh
#   STEPS=600 BATCH=32 EDITS=96 FLAGS=--config.model.unet.channels=24 launch/ablation.sh
#
# It writes into OUT: data/, bench/ (held-out edits in the layout of COCOEE) with truths.npz,
# references/, seed-N/ROW/ (workdirs with evaluation/; `generator` is the tiny prior), and report/
# (table.md, table.json, bars.png, sheet.png). The same command continues where it stopped. Other
# settings need another OUT.
set -euo pipefail

main() {
  cd "$(dirname "$0")/.."
  source launch/environment.sh
  make_environment .venv requirements.txt
  # shellcheck disable=SC2318
  export OUT=${OUT:-ablation} STEPS=${STEPS:-1800} GENERATOR_STEPS=${GENERATOR_STEPS:-${STEPS:-1800}}
  export BATCH=${BATCH:-64} SCENES=${SCENES:-20000} EDITS=${EDITS:-256} SCALES=${SCALES:-1 5}
  export FLAGS=${FLAGS:-} # more flags for the trainings
  export -f train rate row reference
  local seeds=${SEEDS:-0 1 2} jobs=${JOBS:-1} seed rows=() name

  python -m input_pipeline.synthetic --output="$OUT/data" --scenes="$SCENES" --val_scenes=512
  python -m launch.ablation bench --output="$OUT" --edits="$EDITS"
  # After a failure, xargs waits for the other running jobs and fails.
  tr ' ' '\n' <<<"$seeds" | xargs -P "$jobs" -I{} bash -euc 'train {} generator'
  # All seeds of a row before the next row, because the first three rows share a compiled step.
  for name in baseline prior augmentation bottleneck guidance; do
    for seed in $seeds; do rows+=("$seed $name"); done
  done
  # shellcheck disable=SC2016
  printf '%s\n' "${rows[@]}" | xargs -P "$jobs" -L1 bash -euc 'row "$1" "$2"' _
  printf '%s\n' source copy_paste harmonised truth |
    xargs -P "$jobs" -I{} bash -euc 'reference {}'
  python -m launch.ablation report --root="$OUT" --output="$OUT/report"
}

train() { # seed, variant, more flags
  local seed=$1 name=$2 steps=$STEPS flags=()
  shift 2
  read -ra flags <<<"$FLAGS"
  [ "$name" != generator ] || steps=$GENERATOR_STEPS
  python -m exedit.train "--config=configs/pbe.py:$name:tiny" --workdir="$OUT/seed-$seed/$name" \
    --config.data.root="$OUT/data" --config.synthetic.scenes="$SCENES" --config.seed="$seed" \
    --config.steps="$steps" --config.batch_size="$BATCH" --config.edit_every=0 "${flags[@]}" "$@"
}

rate() { # output, more flags: scores the raw edits, without pasting the source's background
  local output=$1
  shift
  python -m exedit.evaluate --config=configs/coco_ee.py --output="$output" \
    --config.data.root="$OUT/bench" --config.cache="$OUT/cache" --config.paste=False "$@"
}

row() { # seed, name: trains a row and scores it
  local run="$OUT/seed-$1/$2" prior=() scale
  [ "$2" = baseline ] || prior=("--config.init_from=$OUT/seed-$1/generator")
  train "$1" "$2" "${prior[@]}"
  rate "$run/evaluation" --weights="$run"
  python -m launch.ablation score --root="$OUT" --folder="$run/evaluation"
  [ "$2" = guidance ] || return 0
  for scale in $SCALES; do
    rate "$run/scale-$scale" --weights="$run" --config.scale="$scale"
    python -m launch.ablation score --root="$OUT" --folder="$run/scale-$scale"
  done
}

reference() { # kind: scores pictures that need no training
  local pictures="$OUT/references/$1"
  if [ "$1" != truth ]; then # `bench` has drawn the truths
    python -m input_pipeline.references --bench="$OUT/bench" --kind="$1" --output="$pictures"
  fi
  rate "$pictures-evaluation" --images="$pictures"
  python -m launch.ablation score --root="$OUT" --folder="$pictures-evaluation" \
    --pictures="$pictures"
}

main
