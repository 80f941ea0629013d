"""How far an island is: what each of its ranks counts, equal on all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowcomm.ledger.entry import MAX_TOKENS

INSTALLMENT, WHOLE = 2, 4
"""Intervals, like the last one, in a contribution where progress of more than `WHOLE` waits: that one, and as
much from before it. All at once would throw the anchor far off (docs/design/0024-installments.md)."""


@dataclass(slots=True)
class Progress:
    """Counters of one rank.

    Attributes:
        inner_step: on the swarm's count where all islands take the same number of steps, else this island's.
        outer_steps: committed, one per fragment.
        tokens: trained on since they were last credited, one per fragment.
        realign: fragments that are out of step with the others; they answer as soon as they are asked.
        tokens_trained, tokens_credited, tokens_dropped: since the run began, of this island.
        totals: tokens of all islands that the ledger credits, one number per fragment.
        round_tokens, round_steps: of all islands, and inner steps of this one, in its last round.
        counted_step: the inner step up to which the first of `totals` holds this island's work.
        began_tokens, interval_tokens: tokens trained when the last contribution was made, and in the last
            interval of the usual length, one number per fragment.
        wait_s, transfer_s: training stood still for rounds; rounds moved data.
    """

    fragments: int
    inner_step: int = 0
    outer_steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    realign: list[bool] = field(default_factory=list)
    tokens_trained: int = 0
    tokens_credited: int = 0
    tokens_dropped: int = 0
    totals: list[int] = field(default_factory=list)
    round_tokens: int = 0
    round_steps: int = 0
    counted_step: int = 0
    began_tokens: list[int] = field(default_factory=list)
    interval_tokens: list[int] = field(default_factory=list)
    wait_s: float = 0.0
    transfer_s: float = 0.0

    def __post_init__(self) -> None:
        self.outer_steps = [0] * self.fragments
        self.tokens = [0] * self.fragments
        self.realign = [False] * self.fragments
        self.totals = [0] * self.fragments
        self.began_tokens, self.interval_tokens = [0] * self.fragments, [0] * self.fragments

    def trained(self, tokens: int) -> None:
        """Count an inner step."""
        self.inner_step += 1
        self.tokens_trained += tokens
        self.tokens = [count + tokens for count in self.tokens]

    def installment(self, fragment: int) -> int:
        """Of how many tokens the contribution is that is made now."""
        fresh, waiting = self.tokens_trained - self.began_tokens[fragment], self.tokens[fragment]
        self.began_tokens[fragment] = self.tokens_trained
        if fresh and not (self.realign[fragment] and self.interval_tokens[fragment]):
            self.interval_tokens[fragment] = fresh  # who answers as soon as it is asked may have hardly begun
        interval = max(fresh, self.interval_tokens[fragment])  # the last one may have been cut short
        return min(waiting if waiting <= WHOLE * interval else INSTALLMENT * interval, MAX_TOKENS)

    def credit(self, fragment: int, tokens: int) -> None:
        """Count tokens that a committed round has credited; fragment 0 stands for the whole model."""
        self.tokens[fragment] = max(0, self.tokens[fragment] - tokens)
        if fragment == 0:
            self.tokens_credited += tokens

    @property
    def swarm_committed(self) -> int:
        """Tokens of all islands that the ledger credits; fragment 0 stands for the model."""
        return self.totals[0]

    def committed(self, fragment: int, total_tokens: int, steps: int, began_step: int) -> None:
        """A round of a fragment has moved the swarm to `total_tokens`.

        Args:
            steps: of this island in its contribution to it.
            began_step: the inner step at which it was made.
        """
        if fragment == 0 and steps > 0:
            self.round_tokens, self.round_steps = total_tokens - self.totals[0], steps
        if fragment == 0:
            self.counted_step = began_step
        self.totals[fragment] = total_tokens

    def fall_in(
        self,
        fragment: int,
        began_step: int,
        swarm_step: int,
        inner_steps: int,
        *,
        out_of_step: bool,
        committed: bool,
    ) -> int:
        """Be due when the others are again, once a round that came to nothing is made up for.

        The count never goes back: where this island's is further, it goes on to where the others are due next
        by it.

        Args:
            began_step: the inner step of the contribution to the round that has ended.
            swarm_step: where its participants stand, see `furthest`; 0 if that is not known.
            inner_steps: of one interval.
            out_of_step: others committed outer steps without this contribution, or nothing came of it.
            committed: it was committed in the end.

        Returns:
            How many inner steps this island's count has jumped.
        """
        steps = swarm_step - began_step if swarm_step and (out_of_step or self.realign[fragment]) else 0
        if steps < 0:
            steps %= inner_steps
        self.inner_step += steps
        self.counted_step += steps
        self.realign[fragment] = out_of_step and not committed
        return steps

    @property
    def swarm_tokens(self) -> int:
        """Tokens of all islands, credited or likely under way: the learning rate follows them.

        Between rounds the others are taken to go on as in the last round, for at most as long as it was;
        before the first one only this island's own are known.
        """
        if self.round_steps == 0:
            return self.swarm_committed + self.tokens[0]
        steps = min(self.inner_step - self.counted_step, self.round_steps)
        return self.swarm_committed + self.round_tokens * steps // self.round_steps

    def recover(self, credited: Sequence[int]) -> int:
        """Count what replayed entries credit to an earlier process of this island, one number per fragment.

        Returns:
            Tokens of it that were trained after the checkpoint, so that the data has to go on behind them.
        """
        lost = max(0, credited[0] - self.tokens[0])
        self.tokens_trained += lost
        self.tokens_credited += credited[0]
        self.tokens = [max(0, mine - done) for mine, done in zip(self.tokens, credited, strict=True)]
        return lost

    def give_up(self, fragment: int) -> None:
        """Drop the progress of a fragment of which nobody can tell whether it has been credited.

        To send it (again) would count tokens twice.
        """
        self.drop(fragment, self.tokens[fragment])

    def drop(self, fragment: int, tokens: int) -> None:
        """Give up progress that no round will bring in."""
        self.tokens[fragment] -= tokens
        if fragment == 0:
            self.tokens_dropped += tokens

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "inner_step": self.inner_step,
            "outer_steps": list(self.outer_steps),
            "tokens": list(self.tokens),
            "tokens_trained": self.tokens_trained,
            "tokens_credited": self.tokens_credited,
            "tokens_dropped": self.tokens_dropped,
            "realign": list(self.realign),
            "totals": list(self.totals),
            "intervals": [list(self.began_tokens), list(self.interval_tokens)],
            "round": [self.round_tokens, self.round_steps, self.counted_step],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.inner_step = state["inner_step"]
        self.outer_steps = list(state["outer_steps"])
        self.tokens = list(state["tokens"])
        self.tokens_trained, self.tokens_credited = state["tokens_trained"], state["tokens_credited"]
        self.tokens_dropped = state["tokens_dropped"]
        self.realign = list(state["realign"])
        self.totals = list(state["totals"])
        waiting = [[self.tokens_trained - mine for mine in self.tokens], self.tokens]
        self.began_tokens, self.interval_tokens = map(list, state.get("intervals", waiting))
        self.round_tokens, self.round_steps, self.counted_step = state["round"]
