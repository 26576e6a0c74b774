#!/usr/bin/env bash
# Install vistill with everything its tests need into .venv (or $VENV) and run the tests.
# Words are handed to pytest: scripts/test.sh -m 'not slow' tests/runtime
# The data sets of VISTILL_DATA are used if it is set; without it their tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
exec "${VENV:-.venv}/bin/python" -m pytest "$@"
