#!/usr/bin/env bash
# Several islands on this machine train one model on real text, over a real swarm.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: bash launch/quickstart.sh [--islands N] [--steps S] [--seed K] [--out DIR] [--json FILE]
                                 [--baseline] [--set KEY=VALUE ...]

Sets up a virtual environment inside the checkout (the first time only), then runs
`lowcomm quickstart` with these options; `--help` after the set-up explains each.

example: bash launch/quickstart.sh
USAGE
}

case "${1:-}" in
    -h | --help | help)
        usage
        exit 0
        ;;
esac

# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
lowcomm_setup
exec lowcomm quickstart "$@"
