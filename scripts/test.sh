#!/usr/bin/env bash
# From a fresh clone: makes .venv if there is none, installs, and runs the test suite.
# Usage: ./scripts/test.sh [PYTEST ARGUMENTS], such as -n 0 for one process, which --pdb wants
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_environment "[dev]"
# Most tests compute too little for two threads, so two processes of one thread each share them. A
# file's tests stay together, as what they have in common is made once.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
.venv/bin/python -m pytest --numprocesses 2 --dist loadfile "$@"
