#!/usr/bin/env bash
# One island: all GPUs (or CPU ranks) of this site train together under torchrun, and join the swarm.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: [VARIABLE=VALUE ...] bash launch/island.sh RECIPE.toml [lowcomm train's options ...]
       bash launch/island.sh --setup

  NPROC         ranks on this machine, usually its GPUs (default 1)
  PROFILE       name or file of a profile: engine, batches, device (recipes/profiles/)
  JOIN          the shared string RUN_ID@/ip4/.../p2p/... of any live peer; without it this island
                founds the run, prints its own string and writes it into OUT/address
  OUT           run folder (default runs/<recipe>); one that holds this run already is resumed
  PORT          TCP and UDP port to listen on (default: as the recipe says)
  PUBLIC_IP     the address that others reach this island at, behind a router (with PORT, default 31337)
  MAX_RESTARTS  how often torchrun starts all ranks again when one has died (default 3)
  NNODES, RDZV  machines of this island, and HOST:PORT of the first of them; run the same on each,
                with OUT on a file system that all see
  NODE_RANK     0 on that first machine (default: as SLURM, Kubernetes or SkyPilot say)
  RDZV_ID       tells apart islands that meet at the same HOST:PORT (default lowcomm)
  SETUP         off: use the python on the PATH instead of the checkout's own environment

launch/slurm.sbatch, launch/kubernetes.yaml and launch/skypilot.yaml set these for a cluster.

example: NPROC=8 PROFILE=8xa100-fsdp2 JOIN='150m@/ip4/203.0.113.5/tcp/31337/p2p/12D3Koo...' \
           bash launch/island.sh recipes/150m.toml
USAGE
}

fail() {
    echo "island.sh: $1" >&2
    exit 2
}

number() { # NAME VALUE: refuse what is not a number of at least $3
    if ! [[ "$2" =~ ^[0-9]{1,5}$ ]] || [ "$2" -lt "$3" ]; then
        fail "$1: expected a number of at least $3, got $2"
    fi
}

set_up() {
    # shellcheck source=launch/setup.sh
    source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
    lowcomm_setup
}

case "${1:-}" in
    -h | --help | help)
        usage
        exit 0
        ;;
    --setup)
        set_up
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
nnodes="${NNODES:-1}"
restarts="${MAX_RESTARTS:-3}"
node_rank="${NODE_RANK:-${SLURM_NODEID:-${JOB_COMPLETION_INDEX:-${SKYPILOT_NODE_RANK:-}}}}"
if [ ! -f "$recipe" ]; then
    fail "expected a recipe, but there is no file $recipe"
fi
number NPROC "$nproc" 1
number NNODES "$nnodes" 1
number MAX_RESTARTS "$restarts" 0
number PORT "${PORT:-31337}" 1
if [ -n "${JOIN:-}" ] && ! [[ "$JOIN" =~ ^[^@]+@/.+ ]]; then
    fail "JOIN: expected RUN_ID@/ip4/.../p2p/..., got $JOIN"
fi
if [ "$nnodes" -gt 1 ] && ! [[ "${RDZV:-}" =~ ^.+:[0-9]+$ ]]; then
    fail "RDZV: expected HOST:PORT of the first of the $nnodes machines, got ${RDZV:-nothing}"
fi

set_up

options=(--out "${OUT:-runs/$(basename "$recipe" .toml)}")
if [ -n "${JOIN:-}" ]; then
    options+=(--join "$JOIN")
fi
if [ -n "${PROFILE:-}" ]; then
    options+=(--profile "$PROFILE")
fi
if [ -n "${PORT:-}" ]; then
    options+=(--set "exchange.listen=[\"/ip4/0.0.0.0/tcp/$PORT\", \"/ip4/0.0.0.0/udp/$PORT/quic-v1\"]")
fi
if [ -n "${PUBLIC_IP:-}" ]; then
    port="${PORT:-31337}"
    options+=(--set "exchange.announce=[\"/ip4/$PUBLIC_IP/tcp/$port\", \"/ip4/$PUBLIC_IP/udp/$port/quic-v1\"]")
fi
if [ "$nproc" = 1 ] && [ "$nnodes" = 1 ]; then
    exec lowcomm train "$recipe" "${options[@]}" "$@"
fi
# torchrun would start ranks that a wrong setting ends again and again
lowcomm train "$recipe" "${options[@]}" "$@" --dry-run >/dev/null
ranks=(--nproc-per-node "$nproc" --max-restarts "$restarts")
if [ "$nnodes" = 1 ]; then
    ranks+=(--standalone --local-addr 127.0.0.1) # this machine's own name need not resolve
else
    ranks+=(--nnodes "$nnodes" --rdzv-backend c10d --rdzv-endpoint "$RDZV" --rdzv-id "${RDZV_ID:-lowcomm}")
    if [ -n "$node_rank" ]; then
        ranks+=(--rdzv-conf "is_host=$([ "$node_rank" = 0 ] && echo 1 || echo 0)")
    fi
fi
# else ranks that are started again find the addresses of those that have died (torch 2.13)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# options of torchrun that versions before 2.13 don't know and pass over, as variables of the environment:
# ranks that save may take longer than 30 s, and nohup's SIGHUP stays ignored
export PET_SHUTDOWN_TIMEOUT="${PET_SHUTDOWN_TIMEOUT:-120}"
if [ "$(trap -p HUP)" ]; then
    export PET_SIGNALS_TO_HANDLE="${PET_SIGNALS_TO_HANDLE:-SIGINT,SIGTERM,SIGQUIT}"
fi
exec torchrun "${ranks[@]}" -m lowcomm train "$recipe" "${options[@]}" "$@"
