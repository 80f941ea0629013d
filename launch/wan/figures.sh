#!/usr/bin/env bash
# Measure what docs/results says about WANs (root, some 45 minutes, on a machine that does nothing else):
#   PYTHON=.venv/bin/python launch/wan/figures.sh OUT [bytes|rounds|stock|utilisation|sweep ...]
#   python -m lowcomm.bench.wan OUT        gathers OUT into docs/results/wan.json and draws the sweep
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '3,4p' "$0" >&2; exit 2; }
mkdir -p "$1"; out=$(cd "$1" && pwd); shift
python=${PYTHON:-python}
[ $# -gt 0 ] || set -- bytes rounds stock utilisation sweep
bench() { echo "== $1"; "$here/bench.sh" "$out/$1" "${@:2}" >/dev/null; }
steps=(--step-s 0.1 --inner-steps 30)
streaming=(--mode streaming --codec int4 --num-fragments 4 --delay auto)
many=(--mode streaming --codec int4 --num-fragments 24 --delay 5)
for part in "$@"; do
  case $part in
  bytes)  # the quickstart's run, an island in each namespace; what crosses the interfaces, headers and all
    echo "== bytes"
    rm -rf "$out/bytes"; mkdir -p "$out/bytes"
    "$here/wan" up 2 50 100
    island() {
      OMP_NUM_THREADS=1 ip netns exec "lcw$1" "$python" -m lowcomm train "$here/../../recipes/quickstart.toml" \
        --out "$out/bytes/island-$1" --set exchange.expected_peers=2 --set data.shard="$1" \
        --set "exchange.listen=[\"/ip4/10.77.0.$(($1 + 1))/tcp/0\"]" "${@:2}" >"$out/bytes/$1.log" 2>&1
    }
    island 0 & first=$!
    for _ in $(seq 600); do [ -s "$out/bytes/island-0/address" ] && break; sleep 0.1; done
    island 1 --join "$(cat "$out/bytes/island-0/address")" || true
    wait "$first" || true
    for i in 0 1; do
      cp "$out/bytes/island-$i/summary.json" "$out/bytes/$i.json"
      echo "lcw$i wan0 sent $(ip netns exec "lcw$i" cat /sys/class/net/wan0/statistics/tx_bytes)"
    done >"$out/bytes/interfaces.txt"
    "$here/wan" down
    echo '{"part": "bytes", "islands": 2, "one_way_ms": 50, "mbit_s": 100, "options": ""}' >"$out/bytes/setup.json" ;;
  rounds)
    for n in 2 4; do bench "round-$n" "$n" 50 100 round --payload-mib 25 --rounds 20 --codec fp32; done ;;
  stock)  # stock hivemind and lowcomm in turn, each in namespaces of its own
    for n in 2 4; do
      echo "== stock-$n"
      "$here/wan" up "$n" 50 100
      OMP_NUM_THREADS=1 "$python" -m lowcomm bench round --peers "$n" --payload-mb 26.2144 --rounds 10 --stock \
        --prefix "ip netns exec lcw{number}" --listen /ip4/0.0.0.0/tcp/0 --json "$out/stock-$n.json" || true
      "$here/wan" down
    done ;;
  utilisation)
    for n in 2 4; do  # payloads for which rounds that are waited for take about half of the time
      payload=(--payload-mib "$((n == 2 ? 25 : 10))")
      bench "blocking-$n-100" "$n" 50 100 utilisation "${steps[@]}" "${payload[@]}" \
        --steps 150 --codec fp32 --mode blocking
      for rate in 100 20; do
        bench "streaming-$n-$rate" "$n" 50 "$rate" utilisation "${steps[@]}" "${payload[@]}" \
          --steps 300 "${streaming[@]}"
      done
    done ;;
  sweep)
    wide=(--step-s 0.2 --inner-steps 30 --payload-mib 25)
    for rate in 4.5 5 5.7 7 10 20 50; do
      bench "many-$rate" 2 50 "$rate" utilisation "${wide[@]}" --steps 150 "${many[@]}"
    done
    for rate in 5.7 10 20 50 100; do
      bench "four-$rate" 2 50 "$rate" utilisation "${wide[@]}" --steps 150 "${streaming[@]}"
    done
    for rate in 10 20 50 100 200; do
      bench "blocking-$rate" 2 50 "$rate" utilisation "${wide[@]}" --steps 60 --codec fp32 --mode blocking
    done ;;
  *) sed -n '3,4p' "$0" >&2; exit 2 ;;
  esac
done
