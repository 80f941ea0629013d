"""How far an island is: what each of its ranks counts, equal on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Progress:
    """Counters of one rank.

    Attributes:
        inner_step: on the swarm's count.
        outer_steps: committed, one per fragment.
        tokens: trained on since they were last credited, one per fragment.
        realign: fragments that are out of step with the others; they answer as soon as they are asked.
        tokens_trained, tokens_credited: since the run began, of this island.
        wait_s, transfer_s: training stood still for rounds; rounds moved data.
    """

    fragments: int
    inner_step: int = 0
    outer_steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    realign: list[bool] = field(default_factory=list)
    tokens_trained: int = 0
    tokens_credited: int = 0
    wait_s: float = 0.0
    transfer_s: float = 0.0

    def __post_init__(self) -> None:
        self.outer_steps = [0] * self.fragments
        self.tokens = [0] * self.fragments
        self.realign = [False] * self.fragments

    def trained(self, tokens: int) -> None:
        """Count an inner step."""
        self.inner_step += 1
        self.tokens_trained += tokens
        self.tokens = [count + tokens for count in self.tokens]

    def credit(self, fragment: int, tokens: int) -> None:
        """Count tokens that a committed round has credited; fragment 0 stands for the whole model."""
        self.tokens[fragment] = max(0, self.tokens[fragment] - tokens)
        if fragment == 0:
            self.tokens_credited += tokens

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

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "inner_step": self.inner_step,
            "outer_steps": list(self.outer_steps),
            "tokens": list(self.tokens),
            "tokens_trained": self.tokens_trained,
            "tokens_credited": self.tokens_credited,
            "realign": list(self.realign),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.inner_step = state["inner_step"]
        self.outer_steps = list(state["outer_steps"])
        self.tokens = list(state["tokens"])
        self.tokens_trained, self.tokens_credited = state["tokens_trained"], state["tokens_credited"]
        self.realign = list(state["realign"])


def furthest(inner_steps: Sequence[int]) -> int:
    """Where the swarm stands, of what its islands say; 0 if there is none.

    The second furthest of three or more: a single one that lies must not send others to the end.
    """
    ordered = sorted(inner_steps, reverse=True)
    return ordered[1 if len(ordered) > 2 else 0] if ordered else 0
