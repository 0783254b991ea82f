# Sourced by the other scripts: makes .venv if there is none and installs the checkout into it.
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
  .venv/bin/python -m pip install --quiet torch torchvision 'setuptools>=77'
  .venv/bin/python -m pip install --quiet --no-build-isolation --editable ".${1:-}"
}
