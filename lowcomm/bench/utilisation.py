"""What part of the time an island trains: `lowcomm bench utilisation`.

A timed wait stands in for the compute, so that the network is measured and not this machine's cores:

    utilisation = steps * step_s / wall time from the first step to the end of the last

so whatever else a step costs (waiting for rounds, merging, encoding that delays it) counts as loss.
The rounds still in flight after the last step are ended afterwards and are not part of the wall time.
`blocking` is DiLoCo (one fragment, no delay, arXiv:2311.08105); `streaming` uses the given fragments
and delay (arXiv:2501.18512).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.site import Site, joined
from lowcomm.clock import SystemClock
from lowcomm.types import Json, RoundReport


@dataclass(frozen=True, kw_only=True)
class Work:
    """The steps that are waited through.

    Attributes:
        step_s: seconds of one inner step.
        steps: how many.
        schedule: when fragments are due.
    """

    step_s: float
    steps: int
    schedule: Schedule


def measure_utilisation(site: Site, work: Work) -> dict[str, Json]:
    """`utilisation`, `compute_s`, `wait_s` (= wall_s - compute_s), `wall_s`, `bytes_sent` (sockets).

    Raises:
        ExchangeError, StorageError: see `joined`.
    """
    clock = SystemClock()
    never = threading.Event()
    reports: list[RoundReport] = []
    with joined(site, work.schedule) as member:
        sent_before = member.outer.traffic.sent_bytes
        began_s = clock.monotonic_s()
        for _ in range(work.steps):
            until_s = clock.monotonic_s() + work.step_s
            member.train()
            never.wait(max(0.0, until_s - clock.monotonic_s()))
            reports += member.outer.step(tokens=1)
        wall_s = clock.monotonic_s() - began_s
        bytes_sent = member.outer.traffic.sent_bytes - sent_before
        blocked_s = sum(report.wait_s for report in reports)
        round_trips_s = member.outer.round_trips_s
        member.outer.finish()
        compute_s = work.steps * work.step_s
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
        }
