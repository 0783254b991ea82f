# Sourced by the other scripts: creates .venv if needed and installs the checkout into it.
# Reinstalls, which compiles, only if sources of the operators or requirements have changed.
# Usage: install_environment [EXTRA]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install_environment() {
  local python="${PYTHON:-python3}"
  if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
      echo "error: Python must be 3.10 or newer, got $("$python" --version 2>&1);" \
        "name another with PYTHON=..." >&2
      exit 2
    }
    "$python" -m venv .venv
  fi
  local native="${DEFORMABLE_DETR_NATIVE:-auto}"
  local stamp=".venv/installed${1:-}-$native"
  if [ -e "$stamp" ] &&
    [ -z "$(find setup.py pyproject.toml ops/src -newer "$stamp" -print -quit)" ]; then
    return
  fi
  .venv/bin/python -m pip install --quiet torch torchvision 'setuptools>=77'
  .venv/bin/python -m pip install --quiet --no-build-isolation --editable ".${1:-}"
  find .venv -maxdepth 1 -name 'installed*' ! -name "*-$native" -delete
  touch "$stamp"
}
