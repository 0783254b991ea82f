#!/usr/bin/env bash
# From a fresh clone: creates .venv if needed, installs, and runs the test suite.
# Usage: ./scripts/test.sh [PYTEST ARGUMENTS], such as -n 0 for one process, which --pdb needs
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_environment "[dev]"
# Most tests are too small for two threads, so they run in two processes of one thread each. The
# tests of a file run in the same process, since they share fixtures.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
.venv/bin/python -m pytest --numprocesses 2 --dist loadfile "$@"
