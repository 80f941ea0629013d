"""An island's side of the rounds: when fragments are due, what is sent, and how what came of it is merged.

Nothing in here waits, starts a thread or reads a socket. Each call is a generator: it yields a request, a
small frozen value, and is sent the answer. `OuterLoop` answers with futures of its network thread, the
simulator with tasks on its virtual clock, so what the simulator proves is what ships. All ranks of an island
make the same calls and yield the same requests; the lead alone gets answers, and broadcasts what it gets.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowcomm.algorithms.eager import run_ahead
from lowcomm.algorithms.fragments import Fragment, named_parts
from lowcomm.algorithms.merge import rebase_
from lowcomm.algorithms.outer_optimizers import OuterOptimizer
from lowcomm.algorithms.schedule import Schedule
from lowcomm.clock import Clock
from lowcomm.errors import CheckpointError
from lowcomm.islands.base import Parameters
from lowcomm.islands.vectors import Vector, spans
from lowcomm.ledger.state import Position, saved_position
from lowcomm.outer.auto_delay import AutoDelay
from lowcomm.outer.outcome import Landing, Movement, Outcome
from lowcomm.outer.pacing import Pacing
from lowcomm.outer.progress import Progress
from lowcomm.outer.pseudo_gradient import pseudo_gradient
from lowcomm.outer.restart import Flight, Restart
from lowcomm.peers.peer import Posted
from lowcomm.recovery.joining import Joined, JoinReport
from lowcomm.rounds.contribution import Contribution
from lowcomm.rounds.values import Call
from lowcomm.types import RoundReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Look:
    """What do others want? Answered by a `Call` for each fragment, without waiting."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell others how far training is. No answer."""

    posted: Posted


@dataclass(frozen=True, slots=True)
class Send:
    """Contribute to the next round of a fragment; see `Submissions.contribute`. No answer."""

    fragment: int
    contribution: Contribution
    standing: Position
    last: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Answered by the `Outcome` of what was sent, or sooner by one of `others` that others are ready for."""

    fragment: int
    others: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """Load a fragment of a checkpoint. Answered by its `Position`."""

    fragment: int
    saved: Mapping[str, Any]


T = TypeVar("T")
Request = Look | Tell | Send | Wait | Restore
Steps = Generator[Request, Any, T]


class IslandSide:
    """One rank's side of its island's rounds.

    Args:
        standing: where each fragment of the anchor stands, on the lead; empty elsewhere.

    Attributes:
        progress: counters, equal on all ranks.
        standing: where each fragment of the local parameters stands: the anchor they started from, and what a
            checkpoint has to hold.
    """

    def __init__(
        self,
        parameters: Parameters,
        fragments: Sequence[Fragment],
        schedule: Schedule,
        optimizer: OuterOptimizer,
        clock: Clock,
        standing: Sequence[Position],
    ) -> None:
        self._parameters, self._fragments, self._schedule = parameters, tuple(fragments), schedule
        self._optimizer, self._clock = optimizer, clock
        self.progress = Progress(len(self._fragments))
        self.standing = list(standing)
        self._pacing = Pacing(schedule, len(self._fragments), parameters.world_size, clock)
        self._under_way: dict[int, Flight] = {}
        self._auto_delay = AutoDelay()
        self._restart = Restart()
        self._posted = Posted()
        self._warned = False

    @property
    def swarm_step(self) -> int:
        """Where the swarm is, equal on islands that are in step.

        With `fixed` its inner steps, else H for each outer step of fragment 0.
        """
        if self._pacing.fixed:
            return self.progress.inner_step
        return self.progress.outer_steps[0] * self._schedule.inner_steps

    @property
    def resumes(self) -> bool:
        """Whether a checkpoint was loaded."""
        return self._restart.loaded

    # -- due ---------------------------------------------------------------------------------------

    def step(self, tokens: int) -> Steps[tuple[RoundReport, ...]]:
        """An inner step was taken: begin the rounds that are due, and land those whose results are.

        Raises:
            LossError: the local parameters have diverged.
        """
        self._pacing.step_ends(tokens)
        self.progress.trained(tokens)
        yield self._tell()
        step = self.progress.inner_step
        due, realign = self._pacing.due(step), any(self.progress.realign)
        # several ranks would have to agree at every step on whether the others have gone on without them
        if self._parameters.world_size == 1 or due or realign or self._pacing.looks(step):
            calls = yield Look()
            for index in self._parameters.broadcast(None if calls is None else self._called(due, calls)):
                yield from self._begin(self._fragments[index])
        reports = yield from self.land()
        self._pacing.step_begins()
        return reports

    def _called(self, due: Sequence[int], calls: Sequence[Call]) -> list[int]:
        """Fragments to begin now: due; missed; waited for; or, while out of step, asked for by others."""
        return [
            index
            for index, call in enumerate(calls)
            if index not in self._under_way
            and (
                index in due
                or call.ahead
                or (self.progress.realign[index] and call.ready)
                or self._pacing.early(index, call.ready)
            )
        ]

    def finish(self) -> Steps[tuple[RoundReport, ...]]:
        """The last rounds: every fragment with progress that is not committed.

        Where islands take unlike numbers of steps, one may have work left that another has not, and none is
        to be alone in its last round: the ledger, equal for all, says whether a fragment needs another one.
        """
        reports = list((yield from self.land(everything=True)))
        for fragment in self._fragments:
            again = self._needs_last_round(fragment.index)
            while again:
                yield from self._begin(fragment, last=True)
                ended = yield from self.land(everything=True)
                reports += ended
                moved = any(r.fragment == fragment.index and r.round_tokens > 0 for r in ended)
                again = moved and fragment.index > 0 and self._needs_last_round(fragment.index)
        if left := self.progress.tokens[0]:
            logger.warning("%d tokens that were trained on are in no committed round; the run ends", left)
        return tuple(reports)

    def _needs_last_round(self, index: int) -> bool:
        progress = self.progress
        if self._pacing.fixed:
            return progress.tokens[index] > 0
        if index == 0:
            return progress.tokens[0] > 0 or self._schedule.delay != 0
        return progress.totals[index] < progress.totals[0]

    # -- begin -------------------------------------------------------------------------------------

    def _begin(self, fragment: Fragment, *, last: bool = False) -> Steps[None]:
        """Send a fragment's pseudo-gradient; its outcome is merged `delay` inner steps later.

        Args:
            last: no inner step follows, so a round that is missed is not made up for later, but waited for.
        """
        progress, index = self.progress, fragment.index
        anchor = self.standing[index].state.anchor if self.standing else None
        values, norm = pseudo_gradient(self._parameters, fragment, anchor, progress.inner_step)
        steps = self._pacing.begin(index, progress.inner_step)
        speed = self._pacing.speed(steps)
        yield self._tell(tokens_per_s=speed.tokens_per_s)
        tokens = progress.installment(index)
        if anchor is not None and norm == 0.0 and tokens > 0:
            self._warn_of_standstill(fragment, tokens)
        if not (whole := tokens == progress.tokens[index]):
            part = tokens / progress.tokens[index]
            values, norm = values.mul_(part), norm * part  # the rest stays in the local parameters
        contribution = Contribution.of(
            values,
            start=max(0, progress.tokens_trained - progress.tokens[index]),
            tokens=tokens,
            norm=norm,
            inner_step=progress.inner_step,
            speed=speed,
        )
        delay = self._delay(index, speed.step_s)
        flight = Flight(index, contribution, steps, progress.inner_step + delay, whole)
        yield from self._send(flight, last=last)
        if self._schedule.eager and delay and whole:
            flight.shift = self._run_ahead(fragment, values)

    def _send(self, flight: Flight, *, last: bool = False) -> Steps[None]:
        self._under_way[flight.fragment] = flight
        if self.standing:
            yield Send(flight.fragment, flight.contribution, self.standing[flight.fragment], last)

    def _warn_of_standstill(self, fragment: Fragment, tokens: int) -> None:
        """Say once that training leaves no trace; to the others this island looks as if it had converged."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "inner step %d: no parameter of fragment %d has changed in a round of %d tokens; train "
                "the model that was given to wrap_island, not a copy of it, with a learning rate above 0",
                self.progress.inner_step,
                fragment.index,
                tokens,
            )

    def _delay(self, fragment: int, step_s: float) -> int:
        if self._schedule.delay != "auto":
            return self._schedule.delay
        most = self._pacing.steps_of(fragment) - 1
        measured = self._auto_delay.delay(step_s, most) if self.standing else None
        return self._parameters.broadcast(measured)

    def _run_ahead(self, fragment: Fragment, values: Tensor) -> Tensor:
        """Go on from a preview of the outer step; what it has added, on the lead."""
        ahead: Tensor | None = None
        anchor: Vector | None = None
        if self.standing:
            state = self.standing[fragment.index].state
            anchor, ahead = state.anchor, torch.empty_like(values)
            for start, stop in spans(fragment.elements):
                ahead[start:stop] = run_ahead(
                    self._optimizer,
                    anchor.load(start, stop),
                    {name: slot.load(start, stop) for name, slot in state.slots.items()},
                    values[start:stop],
                    self._schedule.merge_alpha,
                    self.progress.outer_steps[fragment.index] + 1,
                )
        self._parameters.write(fragment.tensors, ahead)
        del ahead
        # read back, as parameters of low precision have rounded it
        shift = self._parameters.read(fragment.tensors)
        if anchor is not None:
            for start, stop in spans(fragment.elements):
                shift[start:stop].sub_(anchor.load(start, stop)).add_(values[start:stop])
        return shift

    # -- land --------------------------------------------------------------------------------------

    def land(self, *, everything: bool = False) -> Steps[tuple[RoundReport, ...]]:
        """Wait for the rounds whose results are to be used now, or for all; reports, in order."""
        reports = []
        while due := [
            (flight.use_at_step, index)
            for index, flight in self._under_way.items()
            if everything or flight.use_at_step <= self.progress.inner_step
        ]:
            _, index = min(due)
            reports.append((yield from self._land(self._under_way[index])))
        return tuple(reports)

    def _land(self, flight: Flight) -> Steps[RoundReport]:
        """Wait for a round's outcome and bring it into the local parameters of all ranks."""
        index, began_s = flight.fragment, self._clock.monotonic_s()
        outcome = yield from self._outcome(index)
        landing = self._parameters.broadcast(outcome.landing if outcome else None)
        if outcome is not None:
            self.standing[index] = outcome.position  # first, as it frees the slots before
        self._merge(flight, landing, outcome.movement if outcome else None)
        del self._under_way[index]
        wait_s = self._clock.monotonic_s() - began_s
        self._count(flight, landing, wait_s)
        return replace(
            landing.report,
            wait_s=wait_s,
            inner_steps=flight.steps,
            next_inner_steps=self._pacing.steps_of(index),
        )

    def _outcome(self, fragment: int) -> Steps[Outcome | None]:
        """Of a round; until it is over, begin what others are ready for.

        With unlike intervals, or after a round that came to nothing, two islands can be due for two fragments
        in different order; each would wait for the other, up to the deadline.
        """
        stands_by = len(self._fragments) > 1 and (not self._pacing.fixed or any(self.progress.realign))
        while True:
            others = [f.index for f in self._fragments if stands_by and f.index not in self._under_way]
            answer: Outcome | int | None = yield Wait(fragment, tuple(others))
            called = answer if isinstance(answer, int) else -1
            if stands_by:
                called = self._parameters.broadcast(called if self.standing else None)
            if called < 0:
                return answer if isinstance(answer, Outcome) else None
            yield from self._begin(self._fragments[called])

    def _merge(self, flight: Flight, landing: Landing, movement: Movement | None) -> None:
        """Bring what a round has added into the local parameters."""
        if not (landing.moves or flight.shift is not None):
            return
        tensors, alpha = self._fragments[flight.fragment].tensors, self._schedule.merge_alpha
        stood_still = self.progress.inner_step == flight.contribution.inner_step
        whole = landing.whole and flight.whole
        if landing.report.committed and whole and stood_still and alpha == 0.0:
            self._parameters.write(tensors, movement.after.load() if movement else None)
        else:
            moved = replace(movement, merge_alpha=alpha, shift=flight.shift) if movement else None
            self._parameters.add(tensors, moved)

    def _count(self, flight: Flight, landing: Landing, wait_s: float) -> None:
        """Count what a round came to, and be due when the others are."""
        progress, pacing, report, index = self.progress, self._pacing, landing.report, flight.fragment
        progress.credit(index, report.tokens)
        progress.drop(index, landing.dropped)
        progress.outer_steps[index] = report.outer_step
        began_step, swarm_step = flight.contribution.inner_step, landing.swarm_step
        if landing.moves:
            steps = flight.steps if report.committed else 0
            progress.committed(index, report.total_tokens, steps, began_step)
        interval = pacing.plan(landing.speeds, landing.peer)
        if interval is not None:
            step_s = landing.speeds[landing.peer].step_s
            late_steps = pacing.late_steps(index, landing.late_s, step_s)
            pacing.take(index, interval)
            pacing.put_off(late_steps, index)
            swarm_step = 0  # it counts its own steps
        pacing.shift(
            progress.fall_in(
                index,
                began_step,
                swarm_step,
                self._schedule.inner_steps,
                out_of_step=landing.out_of_step,
                committed=report.committed,
            )
        )
        progress.wait_s += wait_s
        progress.transfer_s += report.transfer_s
        if report.committed:
            self._auto_delay.round_took(report.round_s)

    # -- tell --------------------------------------------------------------------------------------

    def show_loss(self, loss: float | None) -> Steps[None]:
        """Tell others the training loss."""
        yield self._tell(loss=loss)

    def _tell(self, **changes: Any) -> Tell:
        self._posted = replace(self._posted, inner_step=self.swarm_step, **changes)
        return Tell(self._posted)

    # -- restart -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs but for the fragments' states, which `fragment_state` has.

        Rounds under way are saved as what was sent, and sent again after the restart; so where one has been
        committed already and not merged yet, the outer state from before it is saved.
        """
        flights = [flight.state() for _, flight in sorted(self._under_way.items())]
        return {**self.progress.state_dict(), "flights": flights, "pacing": self._pacing.state_dict()}

    def fragment_state(self, index: int) -> dict[str, Any]:
        """What a restart needs of one fragment; on the lead."""
        saved = saved_position(self.standing[index])
        flight = self._under_way.get(index)
        sent, shift = (flight.contribution.values, flight.shift) if flight else (None, None)
        named = dict(named_parts(self._parameters.layout, self._fragments[index], saved["anchor"]))
        return {**saved, "sent": sent, "shift": shift, "tensors": named}

    def load_state_dict(self, state: Mapping[str, Any]) -> Steps[None]:
        """Restore `state_dict`, with an iterable of what `fragment_state` gave as `fragments`; before a join.

        Raises:
            CheckpointError: it belongs to another model or is damaged.
        """
        self.progress.load_state_dict(state)
        self._pacing.load_state_dict(state["pacing"])
        tensors: dict[int, tuple[Tensor, Tensor | None]] = {}
        if self.standing:
            saved_fragments, expected = iter(state["fragments"]), len(self._fragments)
            for index in range(expected):
                saved = next(saved_fragments, None)
                if saved is None:
                    raise CheckpointError(f"expected {expected} fragments, the checkpoint has {index}")
                self.standing[index] = yield Restore(index, saved)
                if saved["sent"] is not None:
                    tensors[index] = saved["sent"], saved["shift"]
        self._restart.load(state["flights"], tensors)

    def joins(self) -> Steps[None]:
        """A join begins: nothing stands on the state before it but a checkpoint's own progress."""
        self._restart.keep([position.state.anchor for position in self.standing])
        self.standing.clear()
        yield self._tell()

    def joined(self, joined: Joined | None) -> Steps[JoinReport]:
        """A join is over: take over its state, and send again what was under way at the checkpoint.

        Args:
            joined: on the lead.
        """
        told = None if joined is None else (joined.report, joined.total_tokens)
        report, totals = self._parameters.broadcast(told)
        self.standing = list(joined.positions) if joined else []
        progress = self.progress
        if self._pacing.fixed:
            progress.inner_step = report.inner_step
        for index, total in enumerate(totals):
            if total != progress.totals[index]:
                progress.committed(index, total, 0, progress.inner_step)
        progress.outer_steps = list(report.outer_steps)
        progress.realign = [report.out_of_step] * len(self._fragments)
        uncommitted = list(progress.tokens)
        credited = progress.recover(report.credits)
        given_up = [skipped and self.resumes for skipped in report.skipped]
        for index in (index for index, gone in enumerate(given_up) if gone):
            progress.give_up(index)
        if report.how in ("replayed", "snapshot"):
            for fragment in self._fragments:
                index = fragment.index
                found = None
                if self.standing and not given_up[index]:
                    found = self._restart.base(index, report.credits[index], uncommitted[index])
                self._take_over(fragment, found)
        for flight in self._restart.end(report):
            yield from self._send(flight)
        yield self._tell()
        return replace(report, tokens_credited=credited, inner_step=progress.inner_step)

    def _take_over(self, fragment: Fragment, found: tuple[Vector, Tensor | None, float] | None) -> None:
        """Bring the state that was taken over into the local parameters of all ranks.

        Args:
            found: what the progress in them is counted from, what is in them beyond, and how much of it is
                kept; see `Restart.base`.
        """
        local = self._parameters.read(fragment.tensors)
        values = None
        if self.standing:
            anchor = self.standing[fragment.index].state.anchor
            if found is None:
                values = anchor.load()
            else:
                base, shift, kept = found
                values = local if shift is None else local.sub_(shift)
                for start, stop in spans(fragment.elements):
                    part, onto = values[start:stop], anchor.load(start, stop)
                    rebase_(part, base.load(start, stop), onto)
                    if kept < 1.0:
                        torch.lerp(onto, part, kept, out=part)
        self._parameters.write(fragment.tensors, values)
