"""Rounds of one island among others on other hosts: `lowcomm bench round --run-id ...`.

Each round is asked for as soon as the one before has ended; `seconds` is from asking for it to holding
its result, waiting for slower islands included. The first round is cold: fresh connections.
"""

from __future__ import annotations

from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.site import Site, joined
from lowcomm.clock import SystemClock
from lowcomm.types import Json


def measure_site_rounds(site: Site, rounds: int) -> dict[str, Json]:
    """What the rounds took.

    `join_s`, `heartbeat_round_trips_s` (over all links), and per round `seconds`,
    `bytes_sent`, `bytes_received` (sockets), `committed`, `digest`.

    Raises:
        ExchangeError, StorageError: see `joined`.
    """
    clock = SystemClock()
    done: list[Json] = []
    with joined(site, Schedule(inner_steps=1)) as member:
        for _ in range(rounds):
            member.train()
            began_s = clock.monotonic_s()
            (report,) = member.outer.step(tokens=1)
            done.append(
                {
                    "seconds": clock.monotonic_s() - began_s,
                    "bytes_sent": report.bytes_sent,
                    "bytes_received": report.bytes_received,
                    "committed": report.committed,
                    "digest": report.digest,
                    "form_s": report.form_s,
                    "transfer_s": report.transfer_s,
                    "reason": report.reason,
                }
            )
        return {
            "peer": member.outer.peer_id,
            "join_s": member.join_s,
            "heartbeat_round_trips_s": list(member.outer.round_trips_s),
            "rounds": done,
        }
