#!/usr/bin/env bash
# Lint, types and tests, on a fresh machine as well as at the desk. Arguments go to pytest:
#
#   bash launch/test.sh              bash launch/test.sh tests/data -k resume
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
if [ $# -gt 0 ]; then
    step python -m pytest -q "$@"
else # those that start islands as processes have the cores to themselves
    processes=(tests/attacks tests/bench tests/docs tests/e2e tests/islands)
    step python -m pytest -q -n 2 --dist loadfile "${processes[@]/#/--ignore=}"
    step python -m pytest -q "${processes[@]}"
fi
