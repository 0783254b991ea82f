#!/usr/bin/env bash
# From a fresh clone: installs, fetches images and weights, trains a detector of trees, evaluates it
# and draws its detections. About ten minutes on two cores. Steps that are done are not repeated.
# Usage: ./scripts/quickstart.sh      (QUICKSTART_STEPS=30 trains only that many steps, as a trial)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

images=data/trees
run=runs/quickstart
overrides=()
if [ -n "${QUICKSTART_STEPS:-}" ]; then
  run="runs/quickstart_$QUICKSTART_STEPS"
  overrides=("train.max_steps=$QUICKSTART_STEPS" train.schedule.warmup_steps=0)
fi

# Without a GPU, do not spend minutes on compiling CUDA kernels.
command -v nvidia-smi >/dev/null || export DEFORMABLE_DETR_NATIVE="${DEFORMABLE_DETR_NATIVE:-cpu}"
install_environment
deformable_detr=.venv/bin/deformable-detr
"$deformable_detr" data trees --out "$images"
"$deformable_detr" data weights mobilenet_v2 --out data/weights

"$deformable_detr" train --config quickstart --run-dir "$run" --resume auto \
  ${overrides[@]+"${overrides[@]}"}

for set in val ood; do
  "$deformable_detr" evaluate --checkpoint "$run/last.pth" --images "$images/$set" \
    --annotations "$images/$set.json" --pictures "$run/$set"
done
"$deformable_detr" predict --checkpoint "$run/last.pth" --out "$run/predictions" "$images/ood"

echo
echo "Checkpoint:                   $run/last.pth"
echo "Report:                       $run/report.html"
echo "Annotations and detections:   $run/val (same site), $run/ood (other sites)"
echo "Pictures of detections:       $run/predictions"
