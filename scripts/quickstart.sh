#!/usr/bin/env bash
# From a fresh clone: installs, fetches photos and weights, trains a detector of trees, measures it
# and draws what it finds. About ten minutes on two cores. What is there already is not done again.
# Usage: ./scripts/quickstart.sh      (QUICKSTART_STEPS=30 trains that many steps only, for a look)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

photos=data/trees
run=runs/quickstart
overrides=()
if [ -n "${QUICKSTART_STEPS:-}" ]; then
  run="runs/quickstart_$QUICKSTART_STEPS"
  overrides=("train.max_steps=$QUICKSTART_STEPS" train.schedule.warmup_steps=0)
fi

# Without a GPU here, kernels for GPUs would only take minutes to compile.
command -v nvidia-smi >/dev/null || export DEFORMABLE_DETR_NATIVE="${DEFORMABLE_DETR_NATIVE:-cpu}"
install_environment
deformable_detr=.venv/bin/deformable-detr
"$deformable_detr" data trees --out "$photos"
"$deformable_detr" data weights mobilenet_v2 --out data/weights

"$deformable_detr" train --config quickstart --run-dir "$run" --resume auto \
  ${overrides[@]+"${overrides[@]}"}

for set in val ood; do
  "$deformable_detr" evaluate --checkpoint "$run/last.pth" --images "$photos/$set" \
    --annotations "$photos/$set.json" --pictures "$run/$set"
done
"$deformable_detr" predict --checkpoint "$run/last.pth" --out "$run/predictions" "$photos/ood"

echo
echo "The detector:        $run/last.pth"
echo "How it went:         $run/report.html"
echo "Annotated, detected: $run/val (the same site), $run/ood (other sites)"
echo "Detections, drawn:   $run/predictions"
