#!/usr/bin/env bash
# Trains under torchrun on one machine or several, and goes on with the run in RUN_DIR if there is
# one. When a worker dies, torchrun starts all of them again; after anything else, run this again.
# Usage: ./scripts/train_torchrun.sh RUN_DIR --config NAME [KEY=VALUE...]
#   NPROC_PER_NODE=8              processes of each machine; by default one for each GPU
#   NNODES=2:4                    machines, from how few to how many; by default one
#   RDZV_ENDPOINT=HOST:29400      where they meet, the same on all; RUN_DIR must be shared
#   RDZV_ID=NAME  MAX_RESTARTS=3  of the run; how often torchrun starts its workers again
#   PYTHON=...                    by default that of .venv, or python3
# Ends with 0 if the run has finished, with 75 if SIGTERM or SIGUSR1 has stopped it after a step and
# it is saved, and else with torchrun's code.
set -euo pipefail
run_dir="${1:?usage: $0 RUN_DIR --config NAME [KEY=VALUE...]}"
shift
python="${PYTHON:-$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python}"
[ -x "$(command -v "$python")" ] || python=python3

# torchrun ends at once, without its workers, on a signal that it is not told of.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCHELASTIC_SIGNALS_TO_HANDLE="$PET_SIGNALS_TO_HANDLE" # its name in older versions
# A new store for each start of the workers: the shared one remembers the dead ones' addresses.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
meeting=(--standalone)
if [ -n "${RDZV_ENDPOINT:-}" ]; then
  meeting=(--nnodes="${NNODES:-1}" --rdzv-backend=c10d --rdzv-endpoint="$RDZV_ENDPOINT"
    --rdzv-id="${RDZV_ID:-deformable-detr}")
fi

before="$(cat "$run_dir/state.json" 2>/dev/null || true)"
"$python" -m torch.distributed.run "${meeting[@]}" --nproc-per-node="${NPROC_PER_NODE:-gpu}" \
  --max-restarts="${MAX_RESTARTS:-3}" -m deformable_detr train --run-dir "$run_dir" \
  --resume auto "$@" &
launcher=$!
trap 'kill -TERM "$launcher"' TERM
trap 'kill -USR1 "$launcher"' USR1
code=0
wait "$launcher" || code=$?
while kill -0 "$launcher" 2>/dev/null; do # a signal ends `wait` before the launcher has ended
  code=0
  wait "$launcher" || code=$?
done

after="$(cat "$run_dir/state.json" 2>/dev/null || true)"
[ "$after" != "$before" ] || exit "$((code ? code : 1))" # the run has not even begun
case "$after" in
*'"finished"'*) exit 0 ;;
*'"preempted"'*) exit 75 ;;
*) exit "$((code ? code : 1))" ;;
esac
