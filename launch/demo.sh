#!/usr/bin/env bash
# From nothing to edited pictures and a table: draws data, trains, edits, scores.
#
#   launch/demo.sh                  about a quarter of an hour on two CPU cores, packages installed
#   SEED=3 STEPS=9000 OUT=/tmp/d launch/demo.sh
#
# Leaves in OUT (demo/, or demo-SEED/): data/ (TFRecord shards), sheet.png (what the network sees),
# run/ (the workdir), edit/ (one edit from files to file), evaluation/ (table, JSON, picture grid).
# Run again, it goes on from where it stopped.
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

say "training on scenes drawn into $OUT/data"
python -m exedit.train "${config[@]}" --workdir="$OUT/run"

say 'what the network sees'
python -m input_pipeline.show "${config[@]}" --output="$OUT/sheet.png"

say 'one edit, from files to a file'
python -m input_pipeline.synthetic --output="$OUT/edit" --example=0 --size=32
python -m exedit.sample --weights="$OUT/run" --image="$OUT/edit/image.png" \
  --mask="$OUT/edit/mask.png" --exemplar="$OUT/edit/exemplar.png" --output="$OUT/edit/result.png"

say 'does an edit show its exemplar? 256 held-out edits'
python -m exedit.evaluate --config=configs/synthetic_bench.py --weights="$OUT/run" \
  --output="$OUT/evaluation"

say "done: look at $OUT/evaluation/grid.png, $OUT/sheet.png and $OUT/edit/"
