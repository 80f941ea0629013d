"""What a snapshot costs those who hand it over: their step rate while they do, and without.

Donors make timed inner steps; an island joins and takes the whole state from them, at their upload limit.
The same donors just before are what they are compared with. A step adds to all parameters and waits, so a
donor that is kept from its steps, by a lock or by the processor, makes fewer.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from lowcomm import codecs
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.payload import Payload, bench_swarm
from lowcomm.bench.peer import PROGRAM, Peer
from lowcomm.bench.settings import DonorBench
from lowcomm.errors import ExchangeError
from lowcomm.launching.children import Children
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.types import Json

ROUNDS = 3
"""Of fp32 updates, each half a state: more than is kept, so that a joiner has to take a snapshot."""


@dataclass(frozen=True, kw_only=True)
class Donors:
    """The figures.

    Attributes:
        before, during: inner steps a second of each donor, without and during the snapshot.
        join_s: how long the joiner took for the snapshot, its start left out.
        equal: whether it has the donors' state.
    """

    bench: DonorBench
    before: tuple[float, ...]
    during: tuple[float, ...]
    join_s: float
    equal: bool

    HEADINGS: ClassVar[tuple[str, ...]] = (
        "state", "donors", "each sends", "joined in", "steps a second without", "during", "slower", "equal",
    )  # fmt: skip

    @property
    def slower(self) -> float:
        """By how much of their step rate, in the mean of the donors."""
        return 1.0 - statistics.fmean(self.during) / statistics.fmean(self.before)

    def row(self) -> tuple[str, ...]:
        """Under `HEADINGS`."""
        bench = self.bench
        return (
            f"{bench.payload_mib:,.0f} MiB",
            str(bench.donors),
            f"at most {bench.mbit_s:g} Mbit/s" if bench.mbit_s else "without a limit",
            f"{self.join_s:.1f} s",
            f"{statistics.fmean(self.before):.2f}",
            f"{statistics.fmean(self.during):.2f}",
            f"{self.slower:+.1%}",
            "yes" if self.equal else "NO",
        )

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {
            **asdict(self), "before": list(self.before), "during": list(self.during), "slower": self.slower
        }  # fmt: skip


def run(bench: DonorBench, tell: Tell) -> Outcome:
    """For `lowcomm bench donors`."""
    donors = measure_donors(bench)
    wrong = ["expected the joiner to have the donors' state, got another digest"]
    return Outcome(
        log={"donors": donors.to_dict()},
        headings=Donors.HEADINGS,
        rows=[donors.row()],
        errors=[] if donors.equal else wrong,
    )


def measure_donors(bench: DonorBench) -> Donors:
    """Let donors train, and an island join them.

    Raises:
        ExchangeError: a peer failed or stayed silent past the deadline, or no snapshot was taken.
    """
    settings: dict[str, Json] = {
        "elements": bench.elements,
        "donors": bench.donors,
        # none is due while steps are timed
        "inner_steps": 100 + int(4 * (bench.deadline_s + bench.before_s) / bench.step_s),
        "step_s": bench.step_s,
        "mbit_s": bench.mbit_s,
        "deadline_s": bench.deadline_s,
    }
    with Children(PROGRAM, "donors", deadline_s=2 * bench.deadline_s) as peers:
        addresses: list[Json] = []
        for number in range(bench.donors):
            peers.start({**settings, "initial_peers": list(addresses)})
            address = peers.wait_for(number, "address")["address"]
            addresses = addresses or [address]
        joiner = peers.start({**settings, "initial_peers": list(addresses)})
        peers.wait_for(joiner, "loaded")
        for number in range(bench.donors):
            if (steps := peers.wait_for(number, "trains")["outer_steps"]) != ROUNDS:
                raise ExchangeError(f"bench donors: donor {number} committed {steps} of {ROUNDS} rounds")
        threading.Event().wait(bench.before_s)
        peers.say(joiner, "join")
        peers.wait_for(joiner, "address")
        joined = peers.wait_for(joiner, "joined")
        if joined["how"] != "snapshot":
            raise ExchangeError(f"expected the joiner to take a snapshot, it was {joined['how']}")
        stopped = [peers.ask(number, "stopped") for number in range(bench.donors)]
    began_s, ended_s = float(joined["began_s"]), float(joined["ended_s"])
    return Donors(
        bench=bench,
        before=tuple(rate(one["ended_s"], began_s - bench.before_s, began_s) for one in stopped),
        during=tuple(rate(one["ended_s"], began_s, ended_s) for one in stopped),
        join_s=ended_s - began_s,
        equal={one["digest"] for one in stopped} == {joined["digest"]},
    )


def rate(ended_s: Sequence[float], start_s: float, stop_s: float) -> float:
    """Steps a second of those whose ends fall between two moments, from the first of them to the last."""
    inside = [at_s for at_s in ended_s if start_s <= at_s <= stop_s]
    if len(inside) < 2:
        raise ExchangeError(f"expected at least two inner steps within {stop_s - start_s:.1f} s")
    return (len(inside) - 1) / (inside[-1] - inside[0])


def take_part(peer: Peer) -> None:
    """Be a donor that trains on, or the island that joins."""
    settings, donors = peer.settings, peer.settings["donors"]
    joins = peer.number >= donors
    payload = Payload(settings["elements"], seed=peer.number)
    if joins:
        peer.tell("loaded")
        peer.hear()
    with tempfile.TemporaryDirectory(prefix="lowcomm-donors-") as folder:
        outer = OuterLoop(
            payload.island(),
            bench_swarm(settings),
            schedule=Schedule(inner_steps=settings["inner_steps"]),
            codec=codecs.fp32(),
            outer_optimizer=nesterov(lr=1.0, momentum=0.5),
            round_policy=RoundPolicy(min_participants=donors, deadline_s=settings["deadline_s"]),
            expected_peers=1 if joins else donors,
            folder=Path(folder),
            snapshot_mbit_s=settings["mbit_s"],
        )
        with contextlib.closing(outer):
            began_s = peer.clock.monotonic_s()
            report = peer.join(outer)
            if joins:
                ended_s, how = peer.clock.monotonic_s(), report.how
                peer.tell("joined", began_s=began_s, ended_s=ended_s, how=how, digest=outer.digest)
                peer.hear()
            else:
                _serve(peer, outer, payload)


def _serve(peer: Peer, outer: OuterLoop, payload: Payload) -> None:
    """Commit rounds until a joiner would have to take a snapshot, then time inner steps until it has."""
    for _ in range(ROUNDS * peer.settings["inner_steps"]):
        outer.step(tokens=1)
    peer.tell("trains", outer_steps=outer.outer_step)
    stop = peer.asked()
    ended: list[Json] = []
    while not stop.is_set():
        payload.train()
        peer.wait(peer.settings["step_s"])
        outer.step(tokens=1)
        ended.append(peer.clock.monotonic_s())
    peer.tell("stopped", ended_s=ended, outer_steps=outer.outer_step, digest=outer.digest)
