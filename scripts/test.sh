#!/usr/bin/env bash
# Install vistill with everything its tests need into .venv (or $VENV) and run the tests.
# Words are handed to pytest: scripts/test.sh -m 'not slow' tests/runtime
# One process for each core, at most four, with one thread each; the tests of a file share what the file prepares.
# The data sets of VISTILL_DATA are used if it is set; without it their tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${VENV:-.venv}/bin/python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
