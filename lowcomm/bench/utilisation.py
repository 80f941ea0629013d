"""What part of the time an island trains: `lowcomm bench utilisation`.

A timed wait stands in for the compute, so that the network is measured and not this machine's cores:

    utilisation = steps * step_s / wall time from the first step to the end of the last

so whatever else a step costs (waiting for rounds, merging, encoding that delays it) counts as loss.
The rounds still in flight after the last step are ended afterwards and are not part of the wall time.
What the rounds moved, over the time that they took for it, is the link as this island saw it, and names the
codec that it has time for (`codecs.auto`); where rounds overlap, that is less than the link can do.
`blocking` is DiLoCo (one fragment, no delay, arXiv:2311.08105); `streaming` uses the given fragments
and delay (arXiv:2501.18512).
"""

from __future__ import annotations

import threading

from lowcomm import codecs
from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.settings import FLOAT_BYTES, UtilisationBench
from lowcomm.bench.site import joined
from lowcomm.clock import SystemClock
from lowcomm.types import Json, RoundReport


def run(bench: UtilisationBench, tell: Tell) -> Outcome:
    """For `lowcomm bench utilisation`."""
    log = measure_utilisation(bench)
    return Outcome(log=log, headings=("", ""), rows=[(key, str(value)) for key, value in log.items()])


def measure_utilisation(bench: UtilisationBench) -> dict[str, Json]:
    """`utilisation`, `compute_s`, `wait_s` (= wall_s - compute_s), `wall_s`, `bytes_sent` (sockets).

    Also `link_mbit_s`, and `codec_for_link` with its `reason`; None where no round has committed.

    Raises:
        ExchangeError, StorageError: see `joined`.
    """
    streaming = bench.mode == "streaming"
    schedule = Schedule(
        inner_steps=bench.inner_steps,
        num_fragments=bench.num_fragments if streaming else 1,
        delay=("auto" if bench.delay == "auto" else int(bench.delay)) if streaming else 0,
    )
    clock = SystemClock()
    never = threading.Event()
    reports: list[RoundReport] = []
    with joined(bench, schedule) as member:
        traffic = member.outer.traffic
        sent_before, received_before = traffic.sent_bytes, traffic.received_bytes
        began_s = clock.monotonic_s()
        for _ in range(bench.steps):
            until_s = clock.monotonic_s() + bench.step_s
            member.payload.train()
            never.wait(max(0.0, until_s - clock.monotonic_s()))
            reports += member.outer.step(tokens=1)
        wall_s = clock.monotonic_s() - began_s
        bytes_sent = traffic.sent_bytes - sent_before
        moved_bytes = min(bytes_sent, traffic.received_bytes - received_before)
        transfer_s = sum(report.transfer_s for report in reports if report.committed)
        link_mbit_s = 8e-6 * moved_bytes / transfer_s if transfer_s and moved_bytes else None
        blocked_s = sum(report.wait_s for report in reports)
        round_trips_s = member.outer.round_trips_s
        member.outer.finish()
        compute_s = bench.steps * bench.step_s
        return {
            "peer": member.outer.peer_id,
            "utilisation": compute_s / wall_s,
            "compute_s": compute_s,
            "wait_s": wall_s - compute_s,
            "wall_s": wall_s,
            "bytes_sent": bytes_sent,
            "blocked_s": blocked_s,
            "join_s": member.join_s,
            "heartbeat_round_trips_s": list(round_trips_s),
            "rounds": len(reports),
            "committed": sum(report.committed for report in reports),
            "slowest_round_s": max((report.round_s for report in reports), default=0.0),
            "link_mbit_s": link_mbit_s,
            **_codec_for(link_mbit_s, bench),
        }


def _codec_for(link_mbit_s: float | None, bench: UtilisationBench) -> dict[str, Json]:
    if link_mbit_s is None:
        return {"codec_for_link": None, "reason": None}
    choice = codecs.auto(
        link_mbit_s,
        elements=max(1, round(bench.payload_mib * 2**20 / FLOAT_BYTES)),
        round_s=bench.inner_steps * bench.step_s,
        islands=bench.islands or 2,
    )
    return {"codec_for_link": choice.codec.name, "reason": choice.reason}
