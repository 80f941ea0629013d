#!/usr/bin/env bash
# A bootstrap peer: trains nothing, has a fixed address, and prints the string that islands join with.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: RUN_ID=NAME [PORT=31337] [PUBLIC_IP=A.B.C.D] [IDENTITY=FILE] bash launch/seed.sh

  RUN_ID      the run's name; the same as shared.run_id in the recipe
  PORT        TCP and UDP port to listen on (default 31337); open it in the firewall
  PUBLIC_IP   the address that others reach this machine at, where it is behind a router
  IDENTITY    file of the private key (default runs/seed-NAME.key); as long as it is kept, the
              shared string stays the same over restarts

example: RUN_ID=150m PUBLIC_IP=203.0.113.5 bash launch/seed.sh
USAGE
}

case "${1:-}" in
    -h | --help | help)
        usage
        exit 0
        ;;
esac

if [ -z "${RUN_ID:-}" ]; then
    echo "seed.sh: expected RUN_ID=NAME, the run's name in the recipe (shared.run_id)" >&2
    usage >&2
    exit 2
fi
port="${PORT:-31337}"
if ! [[ "$port" =~ ^[0-9]+$ ]] || [ "$port" -lt 1 ] || [ "$port" -gt 65535 ]; then
    echo "seed.sh: PORT: expected 1 to 65535, got $port" >&2
    exit 2
fi

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
lowcomm_setup

identity="${IDENTITY:-runs/seed-$RUN_ID.key}"
mkdir -p "$(dirname "$identity")"
options=(--run-id "$RUN_ID" --identity "$identity")
options+=(--listen "/ip4/0.0.0.0/tcp/$port" --listen "/ip4/0.0.0.0/udp/$port/quic-v1")
if [ -n "${PUBLIC_IP:-}" ]; then
    options+=(--announce "/ip4/$PUBLIC_IP/tcp/$port" --announce "/ip4/$PUBLIC_IP/udp/$port/quic-v1")
fi
exec lowcomm seed "${options[@]}" "$@"
