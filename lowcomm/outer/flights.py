"""An island's rounds under way: sending a pseudo-gradient, and merging what was committed."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowcomm.algorithms.eager import run_ahead
from lowcomm.algorithms.fragments import Fragment, named_parts
from lowcomm.algorithms.intervals import Interval
from lowcomm.algorithms.schedule import Schedule
from lowcomm.clock import Clock
from lowcomm.errors import LossError
from lowcomm.islands.base import Island
from lowcomm.islands.vectors import Vector, spans
from lowcomm.ledger.entry import MAX_TOKENS
from lowcomm.outer.auto_delay import AutoDelay
from lowcomm.outer.node import Node
from lowcomm.outer.outcome import Movement, RoundOutcome
from lowcomm.outer.pacing import Pacing
from lowcomm.outer.progress import Progress
from lowcomm.outer.thread import LoopThread
from lowcomm.rounds.contribution import Contribution
from lowcomm.types import Digest, PeerId, RoundReport

logger = logging.getLogger(__name__)

STAND_BY_S = 0.05
"""While training stands still for a round, others are looked for so often."""
LARGEST_NORM = 1e18
"""Of a pseudo-gradient. Beyond it training has diverged, and squares are soon no fp32 numbers any more."""


@dataclass(slots=True)
class Flight:
    """A round under way: what was sent, after how many inner steps, and when its result is to be used.

    `shift`: what a preview of the outer step has added to the local parameters, 1-D fp32, empty on ranks
    other than the lead; None without a preview.
    """

    contribution: Contribution
    steps: int
    use_at_step: int
    outcome: Future[RoundOutcome]
    shift: Tensor | None = None


class Flights:
    """The rounds under way of one rank; each method is collective in the island.

    Args:
        progress: the island's counters, moved when a round ends.
        pacing: when fragments are due; told what rounds have agreed on.
        node, thread: on the lead only.
    """

    def __init__(
        self,
        island: Island,
        fragments: Sequence[Fragment],
        schedule: Schedule,
        progress: Progress,
        pacing: Pacing,
        clock: Clock,
        node: Node | None,
        thread: LoopThread,
    ) -> None:
        self._island, self._fragments, self._schedule = island, fragments, schedule
        self._progress, self._pacing, self._clock = progress, pacing, clock
        self._node, self._thread = node, thread
        self._under_way: dict[int, Flight] = {}
        self._room = AutoDelay()
        self._warned = False

    def __contains__(self, fragment: int) -> bool:
        return fragment in self._under_way

    def __len__(self) -> int:
        return len(self._under_way)

    @contextmanager
    def between_steps(self, tokens: int) -> Iterator[None]:
        """What the outer loop does between two inner steps, the last one of `tokens`, happens inside."""
        self._pacing.step_ends(tokens)
        yield
        self._pacing.step_begins()

    def begin(self, fragment: Fragment, *, last: bool = False) -> None:
        """Send a fragment's pseudo-gradient; its outcome is merged `delay` inner steps later.

        Args:
            last: no inner step follows, so a round that is missed is not made up for later, but waited for.

        Raises:
            LossError: the local parameters have diverged, so there is nothing to contribute.
        """
        values = self._island.read(fragment.tensors)
        base: Vector | None = None
        norms = []
        if self._node is not None:
            base = self._node.submissions.bases[fragment.index]
            for start, stop in spans(fragment.elements):
                part = values[start:stop]
                torch.sub(base.load(start, stop), part, out=part)
                norms.append(float(part.norm()))
        norm = math.hypot(*norms)
        usable = norm <= LARGEST_NORM  # NaN is not
        if self._island.any_rank(not usable):  # other ranks than the lead have read nothing, and stop with it
            where = f"inner step {self._progress.inner_step}"
            if usable:
                raise LossError(
                    f"{where}: the island's lead rank found a parameter that has diverged, and says which; "
                    "this rank stops with it"
                )
            raise LossError(
                f"{where}: {_what_diverged(named_parts(self._island.layout, fragment, values))}; nothing was "
                "sent. Lower the inner learning rate, or resume from the last checkpoint"
            )
        progress = self._progress
        steps = self._pacing.begin(fragment.index, progress.inner_step)
        speed = self._pacing.speed(steps)
        if self._node is not None:
            self._node.peers.state.tokens_per_s = speed.tokens_per_s
        tokens = min(progress.tokens[fragment.index], MAX_TOKENS)  # the rest is credited by the next rounds
        if self._node is not None and norm == 0.0 and tokens > 0:
            self._warn_of_standstill(fragment, tokens)
        contribution = Contribution.of(
            values,
            start=max(0, progress.tokens_trained - progress.tokens[fragment.index]),
            tokens=tokens,
            norm=norm,
            inner_step=progress.inner_step,
            speed=speed,
        )
        delay = self._delay(fragment.index, speed.step_s)
        flight = self.submit(fragment, contribution, steps, progress.inner_step + delay, last=last)
        if self._schedule.eager and delay:
            flight.shift = self._run_ahead(fragment, base, values)

    def _warn_of_standstill(self, fragment: Fragment, tokens: int) -> None:
        """Say once that training leaves no trace; to the others this island looks as if it had converged."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "inner step %d: no parameter of fragment %d has changed in a round of %d tokens; train "
                "the model that was given to wrap_island, not a copy of it, with a learning rate above 0",
                self._progress.inner_step,
                fragment.index,
                tokens,
            )

    def _run_ahead(self, fragment: Fragment, anchor: Vector | None, values: Tensor) -> Tensor:
        """Go on from a preview of the outer step; what it has added, on the lead."""
        ahead = None
        if self._node is not None and anchor is not None:
            slots = self._node.submissions.standing[fragment.index].state.slots
            ahead = torch.empty_like(values)
            for start, stop in spans(fragment.elements):
                ahead[start:stop] = run_ahead(
                    self._node.state.optimizer,
                    anchor.load(start, stop),
                    {name: slot.load(start, stop) for name, slot in slots.items()},
                    values[start:stop],
                    self._schedule.merge_alpha,
                    self._progress.outer_steps[fragment.index] + 1,
                )
        self._island.write(fragment.tensors, ahead)
        del ahead
        # read back, as parameters of low precision have rounded it
        shift = self._island.read(fragment.tensors)
        if anchor is not None:
            for start, stop in spans(fragment.elements):
                shift[start:stop].sub_(anchor.load(start, stop)).add_(values[start:stop])
        return shift

    def _delay(self, fragment: int, step_s: float) -> int:
        if self._schedule.delay != "auto":
            return self._schedule.delay
        most = self._pacing.steps_of(fragment) - 1
        measured = [self._room.delay(step_s, most)] if self._node is not None else None
        return self._island.broadcast(measured, 1)[0]

    def submit(
        self,
        fragment: Fragment,
        contribution: Contribution,
        steps: int,
        use_at_step: int,
        shift: Tensor | None = None,
        *,
        last: bool = False,
    ) -> Flight:
        """Send what was read before, anew after a restart.

        Args:
            steps: inner steps since the contribution before.
            shift: of the preview that the local parameters have in them.
        """
        outcome: Future[RoundOutcome] = Future()
        if self._node is not None:
            outcome = self._thread.submit(
                self._node.submissions.contribute(fragment.index, contribution, last=last)
            )
        flight = self._under_way[fragment.index] = Flight(contribution, steps, use_at_step, outcome, shift)
        return flight

    def land(self, *, everything: bool) -> tuple[RoundReport, ...]:
        """Wait for the rounds whose results are to be used now, or for all; reports, in order."""
        reports = []
        while due := [
            (flight.use_at_step, index)
            for index, flight in self._under_way.items()
            if everything or flight.use_at_step <= self._progress.inner_step
        ]:
            _, index = min(due)
            reports.append(self._finish_round(self._fragments[index], self._under_way[index]))
        return tuple(reports)

    def _stand_by(self, flight: Flight) -> None:
        """Until the round is over, begin what others are ready for.

        With unlike intervals, or after a round that came to nothing, two islands can be due for two fragments
        in different order; each would wait for the other, up to the deadline.
        """
        while True:
            asked = [self._asked(flight)] if self._node is not None else None
            fragment = self._island.broadcast(asked, 1)[0]
            if fragment < 0:
                return
            self.begin(self._fragments[fragment])

    def _asked(self, flight: Flight) -> int:
        """The next fragment that others are ready for, or -1 when the round is over. On the lead."""
        assert self._node is not None
        while not flight.outcome.done():
            for index, fragment_round in enumerate(self._node.rounds):
                if index not in self._under_way and fragment_round.is_called():
                    return index
            wait((flight.outcome,), STAND_BY_S)
        return -1

    def _finish_round(self, fragment: Fragment, flight: Flight) -> RoundReport:
        """Wait for a round's outcome and bring it into the local parameters of all ranks."""
        outcome: RoundOutcome | None = None
        began_s = self._clock.monotonic_s()
        if len(self._fragments) > 1 and (not self._pacing.fixed or any(self._progress.realign)):
            self._stand_by(flight)
        moved = credited = 0
        outer_step = 0
        interval: Interval | None = None
        late_steps = 0
        if self._node is not None:
            outcome = flight.outcome.result()
            moved, credited = int(outcome.moves), outcome.tokens
            outer_step = outcome.outer_step
            interval = self._pacing.plan(outcome.speeds, self._node.signer.peer_id)
            if interval is not None:
                step_s = flight.contribution.speed.step_s
                late_steps = self._pacing.late_steps(fragment.index, outcome.late_s, step_s)
        facts = self._island.broadcast(
            [
                moved,
                credited,
                outer_step,
                int(bool(outcome and outcome.entry)),
                int(bool(outcome and outcome.out_of_step)),
                outcome.swarm_step if outcome else 0,
                outcome.total_tokens if outcome else 0,
                interval.steps if interval else 0,
                round(1e6 * interval.seconds) if interval else 0,
                late_steps,
                int(outcome is not None and outcome.whole),
            ]
            if self._node
            else None,
            11,
        )
        moved, credited, outer_step, committed, out_of_step, swarm_step = facts[:6]
        total_tokens, next_steps, next_us, late_steps, whole = facts[6:]
        if self._node is not None and outcome is not None:
            # first, as it frees the slots before
            self._node.submissions.standing[fragment.index] = outcome.position
        if moved or flight.shift is not None:
            stood_still = self._progress.inner_step == flight.contribution.inner_step
            if committed and whole and stood_still and self._schedule.merge_alpha == 0.0:
                self._island.write(fragment.tensors, outcome.after.load() if outcome else None)
            else:
                alpha, shift = self._schedule.merge_alpha, flight.shift
                self._island.add(fragment.tensors, Movement(outcome, alpha, shift) if outcome else None)
        del self._under_way[fragment.index]
        wait_s = self._clock.monotonic_s() - began_s
        self._progress.credit(fragment.index, credited)
        self._progress.outer_steps[fragment.index] = outer_step
        if moved:
            steps, began_step = flight.steps if committed else 0, flight.contribution.inner_step
            self._progress.committed(fragment.index, total_tokens, steps, began_step)
        if next_steps:
            self._pacing.take(fragment.index, Interval(next_steps, 1e-6 * next_us))
            self._pacing.put_off(late_steps, fragment.index)
            swarm_step = 0  # it counts its own steps
        self._pacing.shift(
            self._progress.fall_in(
                fragment.index,
                flight.contribution.inner_step,
                swarm_step,
                self._schedule.inner_steps,
                out_of_step=bool(out_of_step),
                committed=bool(committed),
            )
        )
        self._progress.wait_s += wait_s
        if outcome is not None:
            self._progress.transfer_s += outcome.transfer_s
            if outcome.entry is not None:
                self._room.round_took(outcome.round_s)
        return self._report(
            fragment, flight, outcome, outer_step, bool(committed), credited, wait_s, total_tokens
        )

    def _report(
        self,
        fragment: Fragment,
        flight: Flight,
        outcome: RoundOutcome | None,
        outer_step: int,
        committed: bool,
        credited: int,
        wait_s: float,
        total_tokens: int,
    ) -> RoundReport:
        entry = outcome.entry if outcome else None
        participants: tuple[PeerId, ...] = tuple(peer for peer, _ in entry.participants) if entry else ()
        return RoundReport(
            outer_step=outer_step,
            fragment=fragment.index,
            committed=committed,
            reason=outcome.reason if outcome else "",
            participants=participants,
            attempts=outcome.attempts if outcome else 0,
            bytes_sent=outcome.bytes_sent if outcome else 0,
            bytes_received=outcome.bytes_received if outcome else 0,
            round_s=outcome.round_s if outcome else wait_s,
            wait_s=wait_s,
            form_s=outcome.form_s if outcome else 0.0,
            transfer_s=outcome.transfer_s if outcome else 0.0,
            tokens=credited,
            round_tokens=sum(tokens for _, tokens in entry.participants) if entry else 0,
            compression_ratio=4 * fragment.elements / entry.update_bytes
            if entry and entry.update_bytes
            else None,
            pseudo_gradient_norm=flight.contribution.norm,
            mean_norm=outcome.mean_norm if outcome else None,
            cosine=outcome.cosine if outcome else None,
            adopted=outcome.adopted if outcome else 0,
            digest=outcome.digest if outcome else Digest(""),
            head=outcome.head if outcome else Digest(""),
            rejected=outcome.rejected if outcome else (),
            residual_before=outcome.residual_before if outcome else None,
            residual_norm=outcome.residual_norm if outcome else None,
            inner_steps=flight.steps,
            next_inner_steps=self._pacing.steps_of(fragment.index),
            total_tokens=total_tokens,
            ballots=outcome.ballots if outcome else (),
        )

    def state_dict(self) -> list[list[Any]]:
        """What was sent, to be sent again after a restart; without the tensors, which are the lead's."""
        return [
            [
                index,
                sent.tokens,
                sent.norm,
                sent.inner_step,
                flight.steps,
                flight.use_at_step,
                flight.shift is not None,
                sent.id.start,
            ]
            for index, flight in sorted(self._under_way.items())
            for sent in (flight.contribution,)
        ]

    def sent(self, fragment: int) -> tuple[Tensor | None, Tensor | None]:
        """The pseudo-gradient of a round under way, and the shift of its preview; on the lead."""
        flight = self._under_way.get(fragment)
        return (flight.contribution.values, flight.shift) if flight else (None, None)


def _what_diverged(pseudo_gradient: Iterable[tuple[str, Tensor]]) -> str:
    """The parameter that is not finite, or else has moved most, in words."""
    furthest, most = "", -1.0
    for name, part in pseudo_gradient:
        norm = float(torch.linalg.vector_norm(part, dtype=torch.float64))
        if not math.isfinite(norm):
            return f"parameter {name} is not finite any more"
        if norm > most:
            furthest, most = name, norm
    return (
        f"parameter {furthest} has diverged: it is {most:.3g} away from the anchor (L2 norm), expected at "
        f"most {LARGEST_NORM:.0e} of all together"
    )
