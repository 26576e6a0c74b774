#!/usr/bin/env bash
# Install vistill into .venv (or $VENV) and caption a sample photo, or the pictures given.
set -euo pipefail
VENV="${VENV:-.venv}"
root="$(dirname "$0")/.."
"$root/scripts/setup.sh" base
[[ "$VENV" = /* ]] || VENV="$root/$VENV"
if [ "$#" -eq 0 ]; then
    set -- "$root/samples/temple.jpg"
fi
exec "$VENV/bin/vistill" caption "$@"
