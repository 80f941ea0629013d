#!/usr/bin/env bash
# One island: all GPUs (or CPU ranks) of this site train together, and join the swarm.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: [NPROC=N] [JOIN=STRING] [OUT=DIR] bash launch/island.sh RECIPE.toml [lowcomm train's options ...]

  NPROC   ranks on this machine, usually its GPUs (default 1)
  JOIN    the shared string RUN_ID@/ip4/.../p2p/... of any live peer; without it this island
          founds the run, prints its own string and writes it into OUT/address
  OUT     run folder (default runs/<recipe>); one that holds this run already is resumed

For an island of several machines, start torchrun yourself on each of them:
  torchrun --nnodes M --nproc-per-node N --rdzv-backend c10d --rdzv-endpoint HOST:PORT \
    -m lowcomm train RECIPE.toml --join STRING

example: NPROC=8 JOIN='150m@/ip4/203.0.113.5/tcp/31337/p2p/12D3Koo...' bash launch/island.sh recipes/150m.toml
USAGE
}

case "${1:-}" in
    -h | --help | help)
        usage
        exit 0
        ;;
    "")
        usage >&2
        exit 2
        ;;
esac

recipe="$1"
shift
nproc="${NPROC:-1}"
if [ ! -f "$recipe" ]; then
    echo "island.sh: expected a recipe, but there is no file $recipe" >&2
    exit 2
fi
if ! [[ "$nproc" =~ ^[1-9][0-9]*$ ]]; then
    echo "island.sh: NPROC: expected a number of at least 1, got $nproc" >&2
    exit 2
fi
if [ -n "${JOIN:-}" ] && ! [[ "$JOIN" =~ ^[^@]+@/.+ ]]; then
    echo "island.sh: JOIN: expected RUN_ID@/ip4/.../p2p/..., got $JOIN" >&2
    exit 2
fi

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
lowcomm_setup

options=(--out "${OUT:-runs/$(basename "$recipe" .toml)}")
if [ -n "${JOIN:-}" ]; then
    options+=(--join "$JOIN")
fi
if [ "$nproc" = 1 ]; then
    exec lowcomm train "$recipe" "${options[@]}" "$@"
fi
exec torchrun --standalone --nproc-per-node "$nproc" -m lowcomm train "$recipe" "${options[@]}" "$@"
