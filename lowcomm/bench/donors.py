"""What a snapshot costs those who hand it over: their step rate while they do, and without.

Donors make timed inner steps; an island joins and takes the whole state from them, at their upload limit.
The same donors just before are what they are compared with. A step adds to all parameters and waits, so a
donor that is kept from its steps, by a lock or by the processor, makes fewer.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from lowcomm.bench.children import Children
from lowcomm.errors import ExchangeError
from lowcomm.types import Json

BYTES_PER_PARAMETER = 8
"""Of a state: anchor and momentum in fp32."""
ROUNDS = 3
"""Of fp32 updates, each half a state: more than is kept, so that a joiner has to take a snapshot."""


@dataclass(frozen=True, kw_only=True)
class DonorBench:
    """What to measure.

    Attributes:
        payload_mib: MiB (2^20) of the state.
        donors: islands that have it.
        mbit_s: upload rate of each for snapshots; 0 = unlimited.
        step_s: timed wait of an inner step.
        before_s: how long they train before the joiner comes.
        deadline_s: longest wait of and for a peer.
    """

    payload_mib: float = 200.0
    donors: int = 2
    mbit_s: float = 100.0
    step_s: float = 0.1
    before_s: float = 10.0
    deadline_s: float = 120.0

    @property
    def elements(self) -> int:
        """Parameters."""
        return max(1, int(self.payload_mib * 2**20) // BYTES_PER_PARAMETER)


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


def measure_donors(bench: DonorBench) -> Donors:
    """Let donors train, and an island join them.

    Raises:
        ExchangeError: a peer failed or stayed silent past the deadline, or no snapshot was taken.
    """
    settings: dict[str, Json] = {
        "elements": bench.elements,
        "donors": bench.donors,
        "rounds": ROUNDS,
        # none is due while steps are timed
        "inner_steps": 100 + int(4 * (bench.deadline_s + bench.before_s) / bench.step_s),
        "step_s": bench.step_s,
        "mbit_s": bench.mbit_s,
        "deadline_s": bench.deadline_s,
    }
    with Children("lowcomm.bench.donor_peer", deadline_s=2 * bench.deadline_s) as children:
        addresses: list[Json] = []
        for number in range(bench.donors):
            children.start({**settings, "initial_peers": list(addresses)})
            address = children.wait_for(number, "address")["address"]
            addresses = addresses or [address]
        joiner = children.start({**settings, "initial_peers": list(addresses)})
        children.wait_for(joiner, "loaded")
        for number in range(bench.donors):
            if (steps := children.wait_for(number, "trains")["outer_steps"]) != ROUNDS:
                raise ExchangeError(f"bench donors: donor {number} committed {steps} of {ROUNDS} rounds")
        threading.Event().wait(bench.before_s)
        joined = children.ask(joiner, "joined")
        if joined["how"] != "snapshot":
            raise ExchangeError(f"expected the joiner to take a snapshot, it was {joined['how']}")
        stopped = [children.ask(number, "stopped") for number in range(bench.donors)]
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
