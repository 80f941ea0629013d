#!/usr/bin/env bash
# Run one part of `lowcomm bench` on N namespaces with a WAN between them, and gather each island's JSON
# and the bytes on each wan0 interface (root):
# TRANSPORT (tcp/0 or udp/0/quic-v1) and PYTHON may be set:
#   launch/wan/bench.sh OUT N ONE_WAY_MS MBIT round --payload-mib 25 --rounds 20 --codec fp32
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 5 ] || { sed -n '5p' "$0" >&2; exit 2; }
out=$1 n=$2 delay=$3 rate=$4 part=$5; shift 5
python=${PYTHON:-python} transport=${TRANSPORT:-tcp/0}
mkdir -p "$out"; out=$(cd "$out" && pwd)
rm -f "$out/address"
printf '{"part": "%s", "islands": %s, "one_way_ms": %s, "mbit_s": %s, "options": "%s"}\n' \
  "$part" "$n" "$delay" "$rate" "$*" >"$out/setup.json"
export WAN_OWNER=${WAN_OWNER:-$$}
"$here/wan" up "$n" "$delay" "$rate"
pids=()
end() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  "$here/wan" down
}
trap end EXIT
counter() { ip netns exec "lcw$1" cat "/sys/class/net/wan0/statistics/$2_bytes"; }
common=(bench "$part" --run-id wan-bench --islands "$n" "$@")
island() { exec ip netns exec "lcw$1" "$python" -m lowcomm -v "${common[@]}" "${@:2}"; }
export OMP_NUM_THREADS=1
(island 0 --listen /ip4/10.77.0.1/$transport --address-file "$out/address" --json "$out/0.json" >"$out/0.log" 2>&1) &
pids+=($!)
for _ in $(seq 300); do [ -s "$out/address" ] && break; sleep 0.1; done
[ -s "$out/address" ] || { echo "bench.sh: the first island wrote no address; see $out/0.log" >&2; exit 1; }
address=$(cat "$out/address")
for ((i = 1; i < n; i++)); do
  (island "$i" --listen "/ip4/10.77.0.$((i + 1))/$transport" --initial-peers "$address" --json "$out/$i.json" \
    >"$out/$i.log" 2>&1) &
  pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
pids=()
for ((i = 0; i < n; i++)); do
  echo "lcw$i wan0 sent $(counter "$i" tx) received $(counter "$i" rx)"
done | tee "$out/interfaces.txt"
exit $failed
