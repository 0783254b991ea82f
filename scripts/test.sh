#!/usr/bin/env bash
# From a fresh clone: makes .venv if there is none, installs, and runs the test suite.
# Usage: ./scripts/test.sh [PYTEST ARGUMENTS]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_environment "[dev]"
.venv/bin/python -m pytest "$@"
