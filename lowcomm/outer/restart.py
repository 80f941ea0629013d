"""Rounds under way, and going on with them after a restart: a checkpoint holds what was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowcomm.islands.vectors import Difference, HostVector, Vector
from lowcomm.recovery.joining import JoinReport
from lowcomm.rounds.contribution import Contribution


@dataclass(slots=True)
class Flight:
    """A round under way: what was sent, after how many inner steps, and when its result is to be used.

    Attributes:
        contribution: its values are on the lead only.
        whole: whether all progress was sent.
        shift: what a preview of the outer step has added to the local parameters, 1-D fp32, empty on ranks
            other than the lead; None without a preview.
    """

    fragment: int
    contribution: Contribution
    steps: int
    use_at_step: int
    whole: bool = True
    shift: Tensor | None = None

    def state(self) -> list[Any]:
        """For a checkpoint, without the tensors, which are the lead's."""
        sent, previewed = self.contribution, self.shift is not None
        numbers = [sent.tokens, sent.norm, sent.inner_step, self.steps, self.use_at_step]
        return [self.fragment, *numbers, previewed, sent.id.start, self.whole]


class Restart:
    """What a checkpoint has brought, until the join has shown what of it the swarm has.

    Attributes:
        loaded: whether there is one.
    """

    def __init__(self) -> None:
        self.loaded = False
        self._flights: list[Flight] = []
        self._anchors: list[Vector] = []

    def load(
        self, flights: Sequence[Sequence[Any]], tensors: Mapping[int, tuple[Tensor, Tensor | None]]
    ) -> None:
        """Take the saved flights.

        Args:
            flights: of `Flight.state`.
            tensors: pseudo-gradient and shift of each fragment that was under way; empty but on the lead.
        """
        self.loaded, self._flights = True, []
        for index, tokens, norm, began_at_step, steps, use_at_step, previewed, start, *whole in flights:
            elsewhere = torch.empty(0, dtype=torch.float32, device="cpu")
            values, shift = tensors.get(index, (elsewhere, elsewhere if previewed else None))
            sent = Contribution.of(values, start=start, tokens=tokens, norm=norm, inner_step=began_at_step)
            self._flights.append(Flight(index, sent, steps, use_at_step, all(whole), shift))

    def keep(self, anchors: Sequence[Vector]) -> None:
        """Take the checkpoint's anchors, which the join may replace. Lead only."""
        self._anchors = list(anchors) if self.loaded else []

    def base(self, fragment: int, credited: int, left: int) -> tuple[Vector, Tensor | None, float] | None:
        """What the local parameters' progress is counted from, and what is in them beyond it. Lead only.

        Args:
            credited: tokens of this island in the entries that were replayed.
            left: tokens that the checkpoint's own progress stands for. A contribution holds all progress
                since the last one that was committed, so it is in the anchor where any was credited; but
                a round under way at the checkpoint held a part of it only, as those do that bring in
                progress of a long time.

        Returns:
            Also how much of the progress counted so is to come, by tokens. None where the swarm has all of it
            already, or there is no checkpoint.
        """
        if not self.loaded or (credited and credited >= left):
            return None
        base, shift = self._anchors[fragment], None
        flight = next((flight for flight in self._flights if flight.fragment == fragment), None)
        if credited and flight is not None:
            base, shift = Difference(base, HostVector(flight.contribution.values)), flight.shift
            credited, left = max(0, credited - flight.contribution.tokens), left - flight.contribution.tokens
        return base, shift, 1.0 - credited / left if credited else 1.0

    def end(self, report: JoinReport) -> list[Flight]:
        """The join is over: the flights to send again, those that no entry has and that are not given up."""
        flights, self._flights, self._anchors = self._flights, [], []
        return [f for f in flights if not (report.credits[f.fragment] or report.skipped[f.fragment])]
