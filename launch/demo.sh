#!/usr/bin/env bash
# Sets up an environment, draws data, trains a small model, edits a picture and scores the model.
#
#   launch/demo.sh                  about 15 minutes on two CPU cores, after the installation
#   SEED=3 STEPS=9000 OUT=/tmp/d launch/demo.sh
#
# It writes into OUT (demo/ or demo-SEED/): data/ (TFRecord shards), sheet.png (the network's inputs),
# run/ (the workdir), edit/ (one edit), evaluation/ (table, JSON and a grid of pictures). The same
# command continues where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment .venv requirements.txt

SEED=${SEED:-0}
OUT=${OUT:-demo$([ "$SEED" = 0 ] || echo "-$SEED")}
config=(--config=configs/pbe.py:tiny "--config.seed=$SEED" "--config.data.root=$OUT/data"
  "--config.synthetic.seed=$SEED")
[ -n "${STEPS:-}" ] && config+=("--config.steps=$STEPS")
begin=$SECONDS
say() { printf '\n[%d:%02d] %s\n' $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60)) "$*"; }

say "train on drawn scenes in $OUT/data"
python -m exedit.train "${config[@]}" --workdir="$OUT/run"

say "draw the network's inputs"
python -m input_pipeline.show "${config[@]}" --output="$OUT/sheet.png"

say 'edit a picture'
python -m input_pipeline.synthetic --output="$OUT/edit" --example=0 --size=32
python -m exedit.sample --weights="$OUT/run" --image="$OUT/edit/image.png" \
  --mask="$OUT/edit/mask.png" --exemplar="$OUT/edit/exemplar.png" --output="$OUT/edit/result.png"

say 'score 256 held-out edits: do they show their exemplars?'
python -m exedit.evaluate --config=configs/synthetic_bench.py --weights="$OUT/run" \
  --output="$OUT/evaluation"

say "done: see $OUT/evaluation/grid.png, $OUT/sheet.png and $OUT/edit/"
