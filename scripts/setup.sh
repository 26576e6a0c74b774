#!/usr/bin/env bash
# Make a virtual environment (.venv, or $VENV) and install vistill from this folder.
#   scripts/setup.sh base   what captions pictures: no torch, under 300 MB
#   scripts/setup.sh dev    what trains, exports, lints and tests as well, about 2 GB
# Needs Python 3.11 or newer with venv; $PYTHON names another one. Running it again is safe.
set -euo pipefail
cd "$(dirname "$0")/.."
kind="${1:-base}"
VENV="${VENV:-.venv}"

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found; set PYTHON to one" >&2
    exit 2
}

if [ ! -x "$VENV/bin/python" ]; then
    python="$(find_python)"
    "$python" -m venv "$VENV"
fi
pip=("$VENV/bin/python" -m pip --disable-pip-version-check install --quiet -c constraints.txt)

case "$kind" in
    base)
        "${pip[@]}" -e .
        ;;
    dev)
        # torch comes first, so that nothing chooses another one; where the index has a CUDA build only of
        # torchvision, its dependencies must not be followed. vistill uses no operator of torchvision.
        "${pip[@]}" torch
        "${pip[@]}" --no-deps torchvision
        "${pip[@]}" -e '.[train,eval,parquet,dev]'
        ;;
    *)
        echo "error: scripts/setup.sh knows base and dev, not '$kind'" >&2
        exit 2
        ;;
esac
