#!/usr/bin/env bash
# Lint, types and tests, on a fresh machine as well as at the desk. Other arguments go to pytest:
#
#   bash launch/test.sh              the default run: some four minutes after the setup
#   bash launch/test.sh --all        also what starts islands as processes, as CI does
#   bash launch/test.sh tests/data -k resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
lowcomm_setup dev,hf

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # small models: more threads only fight over the cores
step() {
    echo "== $*"
    "$@"
}
step ruff check .
step ruff format --check .
step mypy
if [ $# -gt 0 ] && [ "$1" != --all ]; then
    step python -m pytest -q "$@"
else
    step python -m pytest -q -n 3 --dist loadfile
fi
if [ "${1:-}" = --all ]; then # two at a time: they wait more than they work
    step python -m pytest -q -n 2 --dist loadfile -m "processes and not gpu and not slow"
fi
