"""An island that dies or freezes in the middle of a round: how long the others take to commit it.

Three processes over the real swarm on this machine commit rounds. One of them, chosen by its part in the
round, ends itself by SIGKILL, or stands still by SIGSTOP, when a quarter of its pseudo-gradient has left.
Times are those of one clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import signal
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from lowcomm.bench.children import Children
from lowcomm.errors import ExchangeError
from lowcomm.rounds.roster import leader_order
from lowcomm.types import Json, PeerId

ISLANDS = 3
ROUNDS_AFTER = 2
"""Rounds from the one in which the island stops to the last one."""

Part = Literal["participant", "leader", "bootstrap"]
Stop = Literal["SIGKILL", "SIGSTOP"]
START_S = 120.0
MOST_MORE = 32
"""Rounds after the warm ones, at the very most, until one comes in which the victim has its part."""


@dataclass(frozen=True, kw_only=True)
class DeathsBench:
    """What to measure.

    Attributes:
        payload_mib: MiB (2^20) of a pseudo-gradient.
        inner_steps, step_s: between two rounds, and the timed wait of each.
        warm_rounds: before the one with the fault. Until it has heard 10 s of heartbeats, a peer takes
            another one for silent after `lease_s` (5 s) only.
        deadline_s: of a round.
    """

    payload_mib: float = 32.0
    inner_steps: int = 50
    step_s: float = 0.02
    warm_rounds: int = 12
    deadline_s: float = 5.0

    @property
    def elements(self) -> int:
        """Parameters."""
        return max(1, int(self.payload_mib * 2**20) // 4)


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


def measure_death(bench: DeathsBench, part: Part, stop: Stop) -> Death:
    """Run three islands, and stop one of them.

    Raises:
        ExchangeError: an island failed, or stayed silent for longer than the run can take.
    """
    longest_s = START_S + (bench.warm_rounds + MOST_MORE) * (
        bench.inner_steps * bench.step_s + 4 * bench.deadline_s
    )
    with (
        tempfile.TemporaryDirectory(prefix="lowcomm-deaths-") as folder,
        Children("lowcomm.bench.death_peer", deadline_s=longest_s, dies=signal.SIGKILL) as children,
    ):
        addresses: list[Json] = []
        for number in range(ISLANDS):
            children.start(
                {
                    "islands": ISLANDS,
                    "elements": bench.elements,
                    "inner_steps": bench.inner_steps,
                    "step_s": bench.step_s,
                    "deadline_s": bench.deadline_s,
                    "initial_peers": list(addresses),
                    "folder": folder,
                }
            )
            if number == 0:
                addresses.append(children.wait_for(0, "address")["address"])
        for number in range(1, ISLANDS):
            children.wait_for(number, "address")
        peers = [PeerId(children.wait_for(number, "joined")["peer"]) for number in range(ISLANDS)]
        outer_step, victim = choose(peers, part, bench.warm_rounds + 1)
        plan = {
            "victim": victim,
            "outer_step": outer_step,
            "last": outer_step + ROUNDS_AFTER,
            "signal": int(signal.Signals[stop]),
        }
        for number in range(ISLANDS):
            children.say(number, json.dumps(plan))
        stopped = children.wait_for(victim, "stops")
        others = [children.wait_for(n, "trained") for n in range(ISLANDS) if n != victim]
        children.kill(victim)
    return _death(part, stop, stopped, others)


def choose(peers: Sequence[PeerId], part: Part, first: int) -> tuple[int, int]:
    """The first outer step from `first` on, and the index in it, of an island with this part.

    The bootstrap peer is the one at index 0; it is struck in a round that another one leads.
    """
    outer_step = first
    while True:
        leader = peers.index(leader_order(peers, "bench", 0, outer_step)[0])
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
