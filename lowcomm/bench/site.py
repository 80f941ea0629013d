"""One island of a benchmark that is started once on each host, on whatever network connects them.

All islands are told how many they are and meet through the first one's address. From `OuterLoop` down
everything is as in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lowcomm import codecs, exchanges
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.outcome import Outcome
from lowcomm.bench.payload import Payload
from lowcomm.bench.settings import FLOAT_BYTES, RoundBench, UtilisationBench
from lowcomm.clock import SystemClock
from lowcomm.errors import StorageError
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.training.garbage import exempt_from_collection
from lowcomm.types import Json

ALL_INTERFACES = "/ip4/0.0.0.0/tcp/0"


@dataclass(frozen=True, kw_only=True)
class Member:
    """An island that has joined.

    Attributes:
        outer: the loop to call after each inner step.
        payload: what it trains.
        join_s: from the start of the network to holding the swarm's state, all islands present.
    """

    outer: OuterLoop
    payload: Payload
    join_s: float


@contextmanager
def joined(site: RoundBench | UtilisationBench, schedule: Schedule) -> Iterator[Member]:
    """Join the others, and leave at the end; no round commits with fewer than all islands.

    Raises:
        ExchangeError: an address is wrong, nobody answers, or the swarm refuses this island.
        StorageError: the address can't be written.
    """
    assert site.run_id is not None
    assert site.islands is not None
    clock = SystemClock()
    elements = int(site.payload_mib * 2**20) // FLOAT_BYTES
    payload = Payload(elements, seed=None, fragments=schedule.num_fragments)
    outer = OuterLoop(
        payload.island(),
        exchanges.swarm(
            run_id=site.run_id,
            initial_peers=site.initial_peers,
            listen=[site.listen or ALL_INTERFACES],
            relay=False,
        ),
        schedule=schedule,
        codec=codecs.by_name(site.codec),
        outer_optimizer=nesterov(lr=1.0, momentum=0.0),
        round_policy=RoundPolicy(min_participants=site.islands, deadline_s=site.deadline_s),
        expected_peers=site.islands,
        gather_timeout_s=site.deadline_s,
    )
    exempt_from_collection()
    try:
        began_s = clock.monotonic_s()
        outer.connect(on_address=lambda address: _publish(site.address_file, address))
        outer.join()
        yield Member(outer=outer, payload=payload, join_s=clock.monotonic_s() - began_s)
    finally:
        outer.close()


def measure_site_rounds(bench: RoundBench) -> Outcome:
    """Rounds, each asked for as soon as the one before has ended; the first is cold: fresh connections.

    `join_s`, `heartbeat_round_trips_s` (over all links), and per round `seconds` (from asking for it to
    holding its result, waiting for slower islands included), `bytes_sent`, `bytes_received` (sockets),
    `committed`, `digest`.

    Raises:
        ExchangeError, StorageError: see `joined`.
    """
    clock = SystemClock()
    done: list[dict[str, Json]] = []
    with joined(bench, Schedule(inner_steps=1)) as member:
        for _ in range(bench.rounds):
            member.payload.train()
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
        log: dict[str, Json] = {
            "peer": member.outer.peer_id,
            "join_s": member.join_s,
            "heartbeat_round_trips_s": list(member.outer.round_trips_s),
            "rounds": list(done),
        }
    keys = ("seconds", "bytes_sent", "bytes_received", "committed", "digest")
    return Outcome(log=log, headings=keys, rows=[tuple(str(one[key]) for key in keys) for one in done])


def _publish(file: Path | None, address: str) -> None:
    if file is None:
        return
    whole = file.with_name(file.name + ".part")
    try:
        whole.write_text(address + "\n", encoding="utf-8")
        whole.replace(file)  # whoever waits for the file never sees half an address
    except OSError as error:
        raise StorageError(f"--address-file {file}: can't be written: {error.strerror or error}") from error
