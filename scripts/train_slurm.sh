#!/usr/bin/env bash
#SBATCH --job-name=deformable-detr
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Slurm job for any number of nodes. Two minutes before its time limit, or when it is preempted, it
# saves, exits and is requeued, until the run has finished.
# Usage, in the checkout: sbatch --nodes=2 --time=4:00:00 scripts/train_slurm.sh RUN_DIR --config NAME [KEY=VALUE...]
# Set nodes, GPUs and time with options of sbatch; train_torchrun.sh lists the other variables.
set -euo pipefail
run_dir="${1:?usage: sbatch $0 RUN_DIR --config NAME [KEY=VALUE...]}"
cd "$SLURM_SUBMIT_DIR"
hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
export NNODES="$SLURM_JOB_NUM_NODES" RDZV_ID="$SLURM_JOB_ID" RDZV_ENDPOINT="${hosts%%$'\n'*}:29400"

before="$(cat "$run_dir/state.json" 2>/dev/null || true)"
srun --kill-on-bad-exit=0 scripts/train_torchrun.sh "$@" &
step=$!
trap 'kill -USR1 "$step"' USR1 TERM # srun forwards it to all nodes
code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do
  code=0
  wait "$step" || code=$?
done

after="$(cat "$run_dir/state.json" 2>/dev/null || true)"
if [ "$after" != "$before" ] && [[ $after == *'"preempted"'* ]]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
