"""What one island's run comes to: the figures of summary.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from lowcomm.types import Json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of one island's finished run; summary.json holds the same."""

    run_id: str
    peer: str
    islands: int
    inner_steps: int
    outer_steps: int
    tokens: int
    eval_loss: float | None
    wan_bytes_sent: int
    wan_bytes_received: int
    data_parallel_bytes: int
    digest: str
    head: str
    wall_s: float
    rounds_committed: int
    rounds_failed: int
    tokens_credited: int
    tokens_dropped: int
    parameters: int
    interrupted: bool

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return asdict(self)


def data_parallel_bytes(islands: int, parameters: int, inner_steps: int) -> int:
    """What a ring all-reduce of fp32 gradients at each inner step would have sent, per island."""
    return 8 * (islands - 1) * parameters * inner_steps // max(1, islands)


@dataclass(slots=True)
class Counts:
    """What a run counts; goes on over restarts, from the checkpoint that is resumed."""

    compute_s: float = 0.0
    wait_s: float = 0.0
    transfer_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    rounds_committed: int = 0
    rounds_failed: int = 0

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Self:
        """What a checkpoint holds, perhaps another version's: counters that this one lacks are named."""
        mine = {field.name for field in fields(cls)}
        if unknown := sorted(saved.keys() - mine):
            logger.warning("the checkpoint counts what this version does not: %s", ", ".join(unknown))
        return cls(**{name: value for name, value in saved.items() if name in mine})
