"""When a fragment is due: Streaming DiLoCo's staggered schedule (Douillard et al. 2025, arXiv:2501.18512).

Fragment p of P is exchanged every H inner steps, first at step H when p is the last fragment, the
others evenly spread before it:

    due(p) = { s > 0 : (s - offset(p)) mod H = 0 },   offset(p) = (p + 1) * H / P  (rounded down)

so that with one fragment this is plain DiLoCo (arXiv:2311.08105): a round at H, 2H, 3H ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowcomm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When fragments are exchanged and how the result is merged.

    Attributes:
        inner_steps: H, inner steps between two rounds of one fragment.
        num_fragments: P, at most the number of tensors of the model.
        delay: tau, inner steps taken between a round's start and the use of its result; < H. "auto":
            as many as the rounds and steps measured lately need.
        merge_alpha: weight kept on the local parameters when the new anchor is merged, 0..1.
        fragmenting: `balanced` by bytes, or `strided` over the layout.
    """

    inner_steps: int
    num_fragments: int = 1
    delay: int | Literal["auto"] = 0
    merge_alpha: float = 0.0
    fragmenting: str = "balanced"

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ConfigError(f"schedule.inner_steps: expected at least 1, got {self.inner_steps}")
        if self.num_fragments < 1:
            raise ConfigError(f"schedule.num_fragments: expected at least 1, got {self.num_fragments}")
        if self.delay != "auto" and not 0 <= self.delay < self.inner_steps:
            raise ConfigError(
                f"schedule.delay: expected 0 <= delay < inner_steps = {self.inner_steps}, got "
                f"{self.delay}; a result has to be used before the fragment is due again"
            )
        if not 0.0 <= self.merge_alpha <= 1.0:
            raise ConfigError(f"schedule.merge_alpha: expected 0..1, got {self.merge_alpha}")
        if self.fragmenting not in ("balanced", "strided"):
            raise ConfigError(
                f"schedule.fragmenting: expected 'balanced' or 'strided', got {self.fragmenting!r}"
            )

    def due(self, inner_step: int) -> tuple[int, ...]:
        """The fragments that are due after `inner_step` steps (counted from 1)."""
        phase = inner_step % self.inner_steps
        return tuple(
            fragment
            for fragment in range(self.num_fragments)
            if self._offset(fragment) % self.inner_steps == phase and inner_step >= self._offset(fragment)
        )

    def _offset(self, fragment: int) -> int:
        return max(1, (fragment + 1) * self.inner_steps // self.num_fragments)
