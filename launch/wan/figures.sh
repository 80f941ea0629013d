#!/usr/bin/env bash
# Measure what docs/results says about WANs (root, about an hour, on a machine that does nothing else):
#   PYTHON=.venv/bin/python launch/wan/figures.sh OUT [bytes|few-bytes|rounds|heartbeats|stock|utilisation|sweep ...]
#   python docs/results/wan.py OUT        gathers OUT into docs/results/wan.json and draws the sweep
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '3,4p' "$0" >&2; exit 2; }
mkdir -p "$1"; out=$(cd "$1" && pwd); shift
python=${PYTHON:-python}
[ $# -gt 0 ] || set -- bytes few-bytes rounds heartbeats stock utilisation sweep
export WAN_OWNER=$$
bench() { echo "== $1"; "$here/bench.sh" "$out/$1" "${@:2}" >/dev/null; }
steps=(--step-s 0.1 --inner-steps 30)
streaming=(--mode streaming --codec int4 --num-fragments 4 --delay auto)
many=(--mode streaming --codec int4 --num-fragments 24 --delay 5)
recipes="$here/../../recipes"
# NAME RECIPE SETTINGS: train with an island in each of two namespaces; what crosses the interfaces, headers and all
counted() {
  local folder="$out/$1" first
  echo "== $1"
  rm -rf "$folder"; mkdir -p "$folder"
  "$here/wan" up 2 50 100
  island() {
    OMP_NUM_THREADS=1 ip netns exec "lcw$1" "$python" -m lowcomm train "$2" --out "$folder/island-$1" \
      --set exchange.expected_peers=2 --set data.shard="$1" \
      --set "exchange.listen=[\"/ip4/10.77.0.$(($1 + 1))/tcp/0\"]" "${@:3}" >"$folder/$1.log" 2>&1
  }
  island 0 "${@:2}" & first=$!
  for _ in $(seq 600); do [ -s "$folder/island-0/address" ] && break; sleep 0.1; done
  island 1 "${@:2}" --join "$(cat "$folder/island-0/address")" || true
  wait "$first" || true
  for i in 0 1; do
    cp "$folder/island-$i/summary.json" "$folder/$i.json"
    echo "lcw$i wan0 sent $(ip netns exec "lcw$i" cat /sys/class/net/wan0/statistics/tx_bytes)"
  done >"$folder/interfaces.txt"
  "$here/wan" down
  printf '{"part": "%s", "islands": 2, "one_way_ms": 50, "mbit_s": 100, "options": ""}\n' "$1" \
    >"$folder/setup.json"
}
for part in "$@"; do
  case $part in
  bytes) counted bytes "$recipes/quickstart.toml" ;;
  few-bytes)  # the first run of the study, its first seed
    first='import sys, tomllib; print(*tomllib.load(sys.stdin.buffer)["runs"][0]["set"], sep="\n")'
    mapfile -t settings < <("$python" -c "$first" <"$recipes/studies/few_bytes.toml")
    counted few-bytes "$recipes/studies/base.toml" "${settings[@]/#/--set=}" ;;
  rounds)
    for n in 2 4; do bench "round-$n" "$n" 50 100 round --payload-mib 25 --rounds 20 --codec fp32; done
    # and where the two cores that all share are not the limit
    bench round-4-50 4 50 50 round --payload-mib 25 --rounds 20 --codec fp32 ;;
  heartbeats)  # what control messages wait for bulk data, over either transport
    for transport in tcp/0 udp/0/quic-v1; do
      TRANSPORT=$transport bench "heartbeat-${transport%%/*}" 2 50 100 round --payload-mib 25 --rounds 20 --codec fp32
    done ;;
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
      payload=(--payload-mib "$((n == 2 ? 25 : 12))")
      bench "blocking-$n-100" "$n" 50 100 utilisation "${steps[@]}" "${payload[@]}" \
        --steps 150 --codec fp32 --mode blocking
      for rate in 100 20; do
        bench "streaming-$n-$rate" "$n" 50 "$rate" utilisation "${steps[@]}" "${payload[@]}" \
          --steps 300 "${streaming[@]}"
      done
    done ;;
  sweep)
    wide=(--step-s 0.5 --inner-steps 24 --payload-mib 25)
    for rate in 2.2 2.6 3 4 12; do
      bench "many-$rate" 2 50 "$rate" utilisation "${wide[@]}" --steps 120 "${many[@]}"
    done
    for rate in 3 12 50; do
      bench "four-$rate" 2 50 "$rate" utilisation "${wide[@]}" --steps 120 "${streaming[@]}"
    done
    for rate in 12 50 100; do
      bench "blocking-$rate" 2 50 "$rate" utilisation "${wide[@]}" --steps 48 --codec fp32 --mode blocking
    done ;;
  *) sed -n '3,4p' "$0" >&2; exit 2 ;;
  esac
done
