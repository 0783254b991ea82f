#!/usr/bin/env bash
# Trains under torchrun on one or several machines, and continues the run in RUN_DIR if there is
# one. If a worker dies, torchrun restarts all of them; after any other failure, run this again.
# Usage: ./scripts/train_torchrun.sh RUN_DIR --config NAME [KEY=VALUE...]
#   NPROC_PER_NODE=8          processes per machine; default: one per GPU
#   NNODES=2:4                number of machines, or MIN:MAX; default: 1
#   RDZV_ENDPOINT=HOST:29400  rendezvous, the same on all machines, which must share RUN_DIR
#   RDZV_ID=NAME              name of the rendezvous; default: deformable-detr
#   MAX_RESTARTS=3            number of times that torchrun restarts the workers; default: 3
#   PYTHON=...                Python to run; default: that of .venv, else python3
# The exit code is 0 if the run has finished, 75 if SIGTERM or SIGUSR1 has stopped it after a step
# and it is saved, and torchrun's exit code otherwise.
set -euo pipefail
run_dir="${1:?usage: $0 RUN_DIR --config NAME [KEY=VALUE...]}"
shift
python="${PYTHON:-$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python}"
[ -x "$(command -v "$python")" ] || python=python3

# torchrun exits at once, without stopping its workers, on a signal that is not listed here.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCHELASTIC_SIGNALS_TO_HANDLE="$PET_SIGNALS_TO_HANDLE" # the name in older versions
# Use a new store per start of the workers: a shared one keeps the addresses of dead workers.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
rendezvous=(--standalone)
if [ -n "${RDZV_ENDPOINT:-}" ]; then
  rendezvous=(--nnodes="${NNODES:-1}" --rdzv-backend=c10d --rdzv-endpoint="$RDZV_ENDPOINT"
    --rdzv-id="${RDZV_ID:-deformable-detr}")
fi

before="$(cat "$run_dir/state.json" 2>/dev/null || true)"
"$python" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node="${NPROC_PER_NODE:-gpu}" \
  --max-restarts="${MAX_RESTARTS:-3}" -m deformable_detr train --run-dir "$run_dir" \
  --resume auto "$@" &
launcher=$!
trap 'kill -TERM "$launcher"' TERM
trap 'kill -USR1 "$launcher"' USR1
code=0
wait "$launcher" || code=$?
while kill -0 "$launcher" 2>/dev/null; do # a signal interrupts `wait` before the launcher has exited
  code=0
  wait "$launcher" || code=$?
done

after="$(cat "$run_dir/state.json" 2>/dev/null || true)"
[ "$after" != "$before" ] || exit "$((code ? code : 1))" # the run has not started
case "$after" in
*'"finished"'*) exit 0 ;;
*'"preempted"'*) exit 75 ;;
*) exit "$((code ? code : 1))" ;;
esac
