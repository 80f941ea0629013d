"""Going on after a join: what all ranks of an island learn of it, and what a checkpoint brought into it.

The lead joins. `Joined` is what the other ranks need of that, in the whole numbers that travel within an
island; `Restart` keeps what a checkpoint has brought until the join has shown what of it the swarm has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from lowcomm.islands.vectors import Difference, HostVector, Vector
from lowcomm.recovery.joining import JoinReport
from lowcomm.rounds.contribution import Contribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What a join came to; the tuples have one value per fragment.

    Attributes:
        changed: outer state was taken from the swarm.
        out_of_step, shard, inner_step, outer_steps, credits, skipped: see `JoinReport`.
        totals: tokens in the chains.
    """

    changed: bool
    out_of_step: bool
    shard: int
    inner_step: int
    outer_steps: tuple[int, ...]
    credits: tuple[int, ...]
    totals: tuple[int, ...]
    skipped: tuple[bool, ...]

    @classmethod
    def of(cls, report: JoinReport, totals: Sequence[int]) -> Self:
        """The lead's view."""
        return cls(
            changed=report.how in ("replayed", "snapshot"),
            out_of_step=report.out_of_step,
            shard=report.shard,
            inner_step=report.inner_step,
            outer_steps=report.outer_steps,
            credits=report.credits,
            totals=tuple(totals),
            skipped=report.skipped,
        )

    @staticmethod
    def length(fragments: int) -> int:
        """How many numbers `to_integers` gives."""
        return 4 + 4 * fragments

    def to_integers(self) -> list[int]:
        single = (self.changed, self.out_of_step, self.shard, self.inner_step)
        return [int(x) for x in (*single, *self.outer_steps, *self.credits, *self.totals, *self.skipped)]

    @classmethod
    def parse(cls, numbers: Sequence[int]) -> Self:
        """Of `to_integers`."""
        changed, out_of_step, shard, inner_step, *rest = numbers
        count = len(rest) // 4
        outer_steps, credits, totals, skipped = (rest[at : at + count] for at in range(0, 4 * count, count))
        return cls(
            changed=bool(changed),
            out_of_step=bool(out_of_step),
            shard=shard,
            inner_step=inner_step,
            outer_steps=tuple(outer_steps),
            credits=tuple(credits),
            totals=tuple(totals),
            skipped=tuple(map(bool, skipped)),
        )


@dataclass(frozen=True, slots=True)
class SavedFlight:
    """A round that was under way at the checkpoint.

    Attributes:
        contribution: what was sent; its values are on the lead only.
        steps, use_at_step, shift: see `Flights.submit`.
    """

    fragment: int
    contribution: Contribution
    steps: int
    use_at_step: int
    shift: Tensor | None


class Restart:
    """What a checkpoint has brought, until the join is over.

    Attributes:
        loaded: whether there is one.
    """

    def __init__(self) -> None:
        self.loaded = False
        self._flights: list[SavedFlight] = []
        self._anchors: list[Vector] = []

    def load(
        self, flights: Sequence[Sequence[Any]], tensors: Mapping[int, tuple[Tensor, Tensor | None]]
    ) -> None:
        """Take the saved flights.

        Args:
            flights: of `Flights.state_dict`.
            tensors: pseudo-gradient and shift of each fragment that was under way; empty but on the lead.
        """
        self.loaded, self._flights = True, []
        for index, tokens, norm, began_at_step, steps, use_at_step, previewed, start in flights:
            elsewhere = torch.empty(0, dtype=torch.float32, device="cpu")
            values, shift = tensors.get(index, (elsewhere, elsewhere if previewed else None))
            sent = Contribution.of(values, start=start, tokens=tokens, norm=norm, inner_step=began_at_step)
            self._flights.append(SavedFlight(index, sent, steps, use_at_step, shift))

    def keep(self, anchors: Sequence[Vector]) -> None:
        """Take the checkpoint's anchors, which the join may replace. Lead only."""
        self._anchors = list(anchors)

    def base(self, fragment: int, credited: int, left: int) -> tuple[Vector, Tensor | None] | None:
        """What the local parameters' progress is counted from, and what is in them beyond it. Lead only.

        Args:
            credited: tokens of this island in the entries that were replayed.
            left: tokens that the checkpoint's own progress stands for. A contribution holds all progress
                since the last one that was committed, so it is in the anchor where any was credited; but
                a round under way at the checkpoint held a part of it only.

        Returns:
            None where the swarm has all of the progress already, or there is no checkpoint.
        """
        if not self.loaded or (credited and credited >= left):
            return None
        base = self._anchors[fragment]
        flight = next((flight for flight in self._flights if flight.fragment == fragment), None)
        if not credited or flight is None:
            return base, None
        return Difference(base, HostVector(flight.contribution.values)), flight.shift

    def end(self, joined: Joined) -> list[SavedFlight]:
        """The join is over: the flights to send again, those that no entry has and that are not given up."""
        flights, self._flights, self._anchors = self._flights, [], []
        return [f for f in flights if not (joined.credits[f.fragment] or joined.skipped[f.fragment])]
