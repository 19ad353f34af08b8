#!/usr/bin/env bash
# Makes the small lineage from nothing: drawn scenes, an autoencoder, CLIP's two towers, Stable
# Diffusion from these, and Paint by Example from that, as the paper does at full size.
#
#   launch/tiny_world.sh                  hours on two CPU cores
#   SEED=3 OUT=/data/world launch/tiny_world.sh
#   SHARE=1 EDITS=16 SCENES=200 FLAGS=--config.batch_size=8 launch/tiny_world.sh
#
# It writes into OUT: data/, the workdirs autoencoder/, clip/, sd/ and pbe/, weights/ (tiny-sd and
# tiny, in half precision, with config, metrics, versions and commit), evaluation/, and log.txt with
# the time of every stage. SHARE is the percentage of the configs' steps to take, SCENES the number
# of scenes to draw; FLAGS are more flags for all trainings. The same command continues where it
# stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment .venv requirements.txt

OUT=${OUT:-world} SEED=${SEED:-0} SHARE=${SHARE:-100} EDITS=${EDITS:-256} SCENES=${SCENES:-50000}
read -ra flags <<<"${FLAGS:-}"
mkdir -p "$OUT/weights"
exec > >(tee -a "$OUT/log.txt") 2>&1
say() { printf '\n[%s] %s\n' "$(date -u '+%F %T')" "$*"; }

train() { # name of the workdir, module and variant of the config, more flags
  local name=$1 module=$2 variant=$3 steps
  shift 3
  steps=$(python -c "from configs import $module
print(max(1, $module.get_config('$variant').steps * $SHARE // 100))")
  say "$name: train up to step $steps"
  python -m exedit.train "--config=configs/$module.py:$variant" --workdir="$OUT/$name" \
    --config.data.root="$OUT/data" --config.seed="$SEED" --config.steps="$steps" \
    --config.synthetic.scenes="$SCENES" "${flags[@]}" "$@"
}

export_weights() { # name of the workdir, name of the weights
  local target="$OUT/weights/$2"
  say "$1: export $target"
  if grep -qs '"exported"' "$target/config.json"; then rm -r "$target"; fi # an earlier export
  python -m exedit.convert --from="$OUT/$1" --to="$target" --dtype=float16
}

say "seed $SEED, $SHARE % of the steps, commit $(git rev-parse HEAD 2>/dev/null || echo unknown)"
python -m input_pipeline.synthetic --output="$OUT/data" --version=2 --scenes="$SCENES" \
  --val_scenes=512 --shards=8
train autoencoder autoencoder tiny
train clip clip tiny
train sd sd tiny --config.init_from="$OUT/autoencoder" --config.init_clip="$OUT/clip" \
  '--config.init_parts=autoencoder|text'
train pbe pbe lineage --config.init_from="$OUT/sd" --config.init_clip="$OUT/clip"
export_weights sd tiny-sd
export_weights pbe tiny

score() { # name of the weights, kind of the benchmark
  say "$1: score $EDITS held-out edits, $2"
  python -m exedit.evaluate --config=configs/synthetic_bench.py --weights="$OUT/weights/$1" \
    --output="$OUT/evaluation/$2" --config.kind="$2" --config.edits="$EDITS"
}

for kind in look shape pattern; do score tiny "$kind"; done
score tiny-sd text
say "done: see $OUT/weights and $OUT/evaluation"
