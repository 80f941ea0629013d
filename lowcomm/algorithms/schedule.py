"""When a fragment is due: Streaming DiLoCo's staggered schedule (Douillard et al. 2025, arXiv:2501.18512).

Fragment p of P is exchanged every H inner steps, first at step H when p is the last fragment, the
others evenly spread before it:

    due(p) = { s > 0 : (s - offset(p)) mod H = 0 },   offset(p) = (p + 1) * H / P  (rounded down)

so that with one fragment this is plain DiLoCo (arXiv:2311.08105): a round at H, 2H, 3H ...

Where islands are unlike in speed (`mode` matched or timed) only the first round of a fragment is due at
its offset; from then on, `lowcomm.algorithms.intervals` says how many steps each island takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowcomm.arguments import flag, number, whole
from lowcomm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When fragments are exchanged and how the result is merged.

    Attributes:
        inner_steps: H, inner steps between two rounds of one fragment; with `matched` those of the fastest
            island, with `timed` those before the first round.
        num_fragments: P, at most the number of tensors of the model.
        delay: tau, inner steps taken between a round's start and the use of its result; < H. "auto":
            as many as the rounds and steps measured lately need.
        merge_alpha: weight kept on the local parameters when the new anchor is merged, 0..1.
        eager: train on from a preview of the outer step while a round is under way; with a delay only.
        fragmenting: `balanced` by bytes, or `strided` over the layout.
        mode: `fixed`, every island takes H steps; `matched`, as many as fit into the time that the fastest
            takes for H; `timed`, as many as fit into `round_s`, or into the time that all islands together
            take for `round_tokens`.
        round_s: seconds of training between two rounds of a fragment; with `timed` only.
        round_tokens: tokens of all islands between two rounds of a fragment; with `timed` only.
    """

    inner_steps: int
    num_fragments: int = 1
    delay: int | Literal["auto"] = 0
    merge_alpha: float = 0.0
    eager: bool = False
    fragmenting: str = "balanced"
    mode: Literal["fixed", "matched", "timed"] = "fixed"
    round_s: float = 0.0
    round_tokens: int = 0

    def __post_init__(self) -> None:
        self._convert()
        if self.delay != "auto" and not 0 <= self.delay < self.inner_steps:
            raise ConfigError(
                f"schedule.delay: expected 0 <= delay < inner_steps = {self.inner_steps}, got "
                f"{self.delay}; a result has to be used before the fragment is due again"
            )
        if self.eager and self.delay == 0:
            raise ConfigError(
                "schedule.eager: expected false with delay = 0, got true; no steps are taken beside a round, "
                "so there is nothing to preview. Set a delay above 0, or 'auto'"
            )
        if self.fragmenting not in ("balanced", "strided"):
            raise ConfigError(
                f"schedule.fragmenting: expected 'balanced' or 'strided', got {self.fragmenting!r}"
            )

        if self.mode not in ("fixed", "matched", "timed"):
            raise ConfigError(f"schedule.mode: expected 'fixed', 'matched' or 'timed', got {self.mode!r}")
        given = (self.round_s > 0.0) + (self.round_tokens > 0)
        if given != (self.mode == "timed"):
            expected = "one of the two above 0" if self.mode == "timed" else "neither"
            raise ConfigError(
                f"schedule.round_s, round_tokens: expected {expected} with mode = {self.mode}, got "
                f"{self.round_s:g} and {self.round_tokens}"
            )

    def _convert(self) -> None:
        """Make each number Python's own, as they are compared with those of other islands.

        Raises:
            ConfigError: one is of another type, or out of range.
        """
        converted = {
            "inner_steps": whole("schedule.inner_steps", self.inner_steps, least=1),
            "num_fragments": whole("schedule.num_fragments", self.num_fragments, least=1),
            "merge_alpha": number("schedule.merge_alpha", self.merge_alpha, least=0, most=1),
            "eager": flag("schedule.eager", self.eager),
            "round_s": number("schedule.round_s", self.round_s, least=0),
            "round_tokens": whole("schedule.round_tokens", self.round_tokens, least=0),
        }
        if self.delay != "auto":
            advice = '"auto" takes as many as the rounds measured lately need'
            converted["delay"] = whole("schedule.delay", self.delay, least=0, advice=advice)
        for name, value in converted.items():
            object.__setattr__(self, name, value)

    def due(self, inner_step: int) -> tuple[int, ...]:
        """The fragments that are due after `inner_step` steps (counted from 1), where `mode` is fixed."""
        phase = inner_step % self.inner_steps
        return tuple(
            fragment
            for fragment in range(self.num_fragments)
            if self.offset(fragment) % self.inner_steps == phase and inner_step >= self.offset(fragment)
        )

    def offset(self, fragment: int) -> int:
        """Inner steps before the first round of a fragment."""
        return max(1, (fragment + 1) * self.inner_steps // self.num_fragments)
