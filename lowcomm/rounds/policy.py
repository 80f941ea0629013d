"""Who must take part in a round, and how long anybody waits."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowcomm.arguments import number, show, text, whole
from lowcomm.errors import ArgumentError, ConfigError
from lowcomm.rounds.claims import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPolicy:
    """Who must take part, and how long anybody waits.

    Attributes:
        min_participants: fewer never commit.
        deadline_s: longest wait for live peers that are not ready, and for a transfer that stalls.
        partition: `majority` lets only more than half of the participants of the round before go on;
            `continue` also whoever is left, once the others have been absent for a grace.
        operator: the peer id whose key may say who decides, where most of the participants are lost for good;
            empty = each island's own operator agrees for it.
        limits: what a contribution may claim.

    Raises:
        ConfigError: one is of another type, or out of range.
    """

    min_participants: int = 1
    deadline_s: float = 60.0
    partition: str = "continue"
    operator: str = ""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        least = whole("RoundPolicy: min_participants", self.min_participants, least=1)
        object.__setattr__(self, "min_participants", least)
        object.__setattr__(self, "deadline_s", number("RoundPolicy: deadline_s", self.deadline_s, above=0))
        if self.partition not in ("continue", "majority"):
            raise ConfigError(
                f"RoundPolicy: partition: expected 'continue' or 'majority', got {show(self.partition)}"
            )
        if self.operator != "":
            object.__setattr__(self, "operator", text("RoundPolicy: operator", self.operator))
        if not isinstance(self.limits, Limits):
            raise ArgumentError(f"RoundPolicy: limits: expected Limits(...), got {show(self.limits)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a round machine goes by.

    Attributes:
        grace_s: who has not been heard for so long counts as absent, with `continue`.
        elements, block_elements, chunk_elements: of the fragment, and how it may be cut.
    """

    run_id: str
    fragment: int
    policy: RoundPolicy
    grace_s: float
    elements: int
    block_elements: int
    chunk_elements: int

    @property
    def majority(self) -> bool:
        return self.policy.partition == "majority"
