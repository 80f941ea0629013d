"""An island that dies or freezes in the middle of a round: how long the others take to commit it.

Three processes over the real swarm on this machine commit rounds, a timed wait in place of each inner
step. One of them, chosen by its part in the round, ends itself by SIGKILL, or stands still by SIGSTOP, when
a quarter of its pseudo-gradient has left: it signals itself from its own exchange, since no watcher from
outside could be sure to hit a round that takes a fraction of a second. Times are those of one clock, which
all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from lowcomm import codecs
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.payload import LOOPBACK, RUN_ID, Payload
from lowcomm.bench.peer import PROGRAM, Peer
from lowcomm.bench.settings import FLOAT_BYTES, DeathBench, Part, Stop
from lowcomm.errors import ExchangeError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.swarm.daemon import DaemonOptions
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.launching.children import Children
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.rounds.roster import leader_order
from lowcomm.types import Json, PeerId

ISLANDS = 3
ROUNDS_AFTER = 2
"""Rounds from the one in which the island stops to the last one."""
START_S = 120.0
MOST_MORE = 32
"""Rounds after the warm ones, at the very most, until one comes in which the victim has its part."""
SENT_SHARE = 0.25
"""The victim stops when it has sent so much of its pseudo-gradient; in all it has to send 2/3 of it, and then
as much of the mean."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """One island that stopped.

    Attributes:
        part: the victim's in the round: its leader; the peer that the others joined through; or neither. All
            three reduce an equal share of every round.
        stop: the signal.
        outer_step: of the round.
        usual_s: what the rounds before it took on the others, median.
        sent_bytes: of its contribution that had left.
        recovered_s: from the signal until the slower of the others had that outer step committed.
        attempts: ballots of that round, at most, on the others.
        participants: of that outer step.
        lost_steps: inner steps of the others that are neither credited nor under way at the end.
        equal: whether all commits of the others, and their states at the end, have equal digests.
    """

    part: Part
    stop: Stop
    outer_step: int
    usual_s: float
    sent_bytes: int
    recovered_s: float
    attempts: int
    participants: int
    lost_steps: int
    equal: bool

    HEADINGS: ClassVar[tuple[str, ...]] = (
        "stopped", "by", "after it had sent", "others committed after", "rounds before took", "ballots",
        "lost inner steps", "equal",
    )  # fmt: skip

    def row(self) -> tuple[str, ...]:
        """Under `HEADINGS`."""
        return (
            self.part,
            self.stop,
            f"{self.sent_bytes / 2**20:.1f} MiB",
            f"{self.recovered_s:.2f} s",
            f"{self.usual_s:.2f} s",
            str(self.attempts),
            str(self.lost_steps),
            "yes" if self.equal else "NO",
        )

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return asdict(self)


def run(bench: DeathBench, tell: Tell) -> Outcome:
    """For `lowcomm bench deaths`."""
    deaths: list[Death] = []
    for stop in bench.signals:
        for part in bench.parts:
            deaths.append(measure_death(bench, part, stop))
            tell(f"{part}, {stop}: the others committed after {deaths[-1].recovered_s:.2f} s")
    fine = all(death.equal and death.lost_steps == 0 for death in deaths)
    return Outcome(
        log={"deaths": {"bench": bench.to_dict(), "deaths": [death.to_dict() for death in deaths]}},
        headings=Death.HEADINGS,
        rows=[death.row() for death in deaths],
        errors=() if fine else ["expected equal digests and no lost inner step on the others, see the table"],
    )


def measure_death(bench: DeathBench, part: Part, stop: Stop) -> Death:
    """Run three islands, and stop one of them.

    Raises:
        ExchangeError: an island failed, or stayed silent for longer than the run can take.
    """
    longest_s = START_S + (bench.warm_rounds + MOST_MORE) * (
        bench.inner_steps * bench.step_s + 4 * bench.deadline_s
    )
    with (
        tempfile.TemporaryDirectory(prefix="lowcomm-deaths-") as folder,
        Children(PROGRAM, "deaths", deadline_s=longest_s, dies=signal.SIGKILL) as islands,
    ):
        addresses: list[Json] = []
        for number in range(ISLANDS):
            islands.start(
                {
                    "elements": bench.elements,
                    "inner_steps": bench.inner_steps,
                    "step_s": bench.step_s,
                    "deadline_s": bench.deadline_s,
                    "partition": bench.partition,
                    "initial_peers": list(addresses),
                    "folder": folder,
                }
            )
            if number == 0:
                addresses.append(islands.wait_for(0, "address")["address"])
        for number in range(1, ISLANDS):
            islands.wait_for(number, "address")
        peers = [PeerId(islands.wait_for(number, "joined")["peer"]) for number in range(ISLANDS)]
        outer_step, victim = choose(peers, part, bench.warm_rounds + 1)
        plan = {
            "victim": victim,
            "outer_step": outer_step,
            "last": outer_step + ROUNDS_AFTER,
            "signal": int(signal.Signals[stop]),
        }
        for number in range(ISLANDS):
            islands.say(number, json.dumps(plan))
        stopped = islands.wait_for(victim, "stops")
        others = [islands.wait_for(n, "trained") for n in range(ISLANDS) if n != victim]
        islands.kill(victim)
    return _death(part, stop, stopped, others)


def choose(peers: Sequence[PeerId], part: Part, first: int) -> tuple[int, int]:
    """The first outer step from `first` on, and the index in it, of an island with this part.

    The bootstrap peer is the one at index 0; it is struck in a round that another one leads.
    """
    outer_step = first
    while True:
        leader = peers.index(leader_order(peers, RUN_ID, 0, outer_step)[0])
        if part == "leader" and leader != 0:
            return outer_step, leader
        if part == "bootstrap" and leader != 0:
            return outer_step, 0
        if part == "participant":
            return outer_step, next(n for n in range(1, len(peers)) if n != leader)
        outer_step += 1


def _death(part: Part, stop: Stop, stopped: dict[str, Any], others: list[dict[str, Any]]) -> Death:
    outer_step = int(stopped["outer_step"])
    commits = [r for one in others for r in one["rounds"] if r["committed"]]
    struck = [r for r in commits if r["outer_step"] == outer_step]
    if len(struck) < len(others):
        failed = [r["reason"] for one in others for r in one["rounds"] if not r["committed"]]
        raise ExchangeError(f"bench deaths: {len(struck)} of {len(others)} took part in the round: {failed}")
    digests = {(r["outer_step"], r["digest"]) for r in commits}
    one_history = len(digests) == len({outer_step for outer_step, _ in digests})
    return Death(
        part=part,
        stop=stop,
        outer_step=outer_step,
        usual_s=statistics.median(r["round_s"] for r in commits if r["outer_step"] < outer_step),
        sent_bytes=int(stopped["sent_bytes"]),
        recovered_s=max(r["at_s"] for r in struck) - float(stopped["at_s"]),
        attempts=max(int(r["attempts"]) for r in struck),
        participants=len(struck[0]["participants"]),
        lost_steps=sum(int(o["steps"]) - int(o["credited"]) - int(o["uncommitted"]) for o in others),
        equal=one_history and len({o["digest"] for o in others}) == 1,
    )


class StoppingExchange(SwarmExchange):
    """Ends or freezes this process, all of its threads, in the middle of a round.

    Attributes:
        peer: this process; None = it does not stop.
        fatal_step: the outer step of that round.
        fatal_bytes: of contributions to it that have left by then.
        signal: which.
    """

    peer: Peer | None = None
    fatal_step = fatal_bytes = signal = 0
    _sent_bytes = 0

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        """See `Links`."""
        await super().send_bulk(peer, message)
        if message.kind == "part" and self.peer and message.body["outer_step"] == self.fatal_step:
            self._sent_bytes += len(message.payload)
            if self._sent_bytes >= self.fatal_bytes:
                self.peer.tell("stops", outer_step=self.fatal_step, sent_bytes=self._sent_bytes)
                os.kill(os.getpid(), self.signal)


def take_part(peer: Peer) -> None:
    """Commit rounds up to the last one of the plan, and say what they were."""
    settings = peer.settings
    folder = Path(settings["folder"], str(peer.number))
    folder.mkdir()
    payload = Payload(settings["elements"], seed=peer.number)
    options = DaemonOptions(listen=[LOOPBACK])
    exchange = StoppingExchange(RUN_ID, options, initial_peers=settings["initial_peers"])
    outer = OuterLoop(
        payload.island(),
        exchange,
        schedule=Schedule(inner_steps=settings["inner_steps"]),
        codec=codecs.fp32(),
        outer_optimizer=nesterov(lr=1.0, momentum=0.5),
        round_policy=RoundPolicy(
            min_participants=2, deadline_s=settings["deadline_s"], partition=settings["partition"]
        ),
        expected_peers=ISLANDS,
        folder=folder,
    )
    with contextlib.closing(outer):
        peer.join(outer)
        peer.tell("joined", peer=outer.peer_id)
        plan = json.loads(peer.hear())
        if peer.number == plan["victim"]:
            exchange.fatal_bytes = int(SENT_SHARE * FLOAT_BYTES * settings["elements"])
            exchange.signal, exchange.fatal_step = plan["signal"], plan["outer_step"]
            exchange.peer = peer
        peer.tell("trained", **_train(peer, outer, payload, plan["last"]))
        peer.hear()


def _train(peer: Peer, outer: OuterLoop, payload: Payload, last: int) -> dict[str, Json]:
    """Train up to an outer step."""
    rounds: list[Json] = []
    steps = 0
    while outer.outer_step < last:
        payload.train()
        peer.wait(peer.settings["step_s"])
        steps += 1
        for report in outer.step(tokens=1):
            rounds.append(
                {
                    "at_s": peer.clock.monotonic_s(),
                    "outer_step": report.outer_step,
                    "committed": report.committed,
                    "reason": report.reason,
                    "attempts": report.attempts,
                    "round_s": report.round_s,
                    "participants": list(report.participants),
                    "digest": report.digest,
                }
            )
    return {
        "steps": steps,
        "credited": outer.tokens_credited,
        "uncommitted": outer.tokens_uncommitted,
        "rounds": rounds,
        "digest": outer.digest,
    }
