"""Codecs: how pseudo-gradients become bytes. Each is one file; `by_name` is what recipes use.

`codecs.int8()` and its like make one; what they need (torch, numba) is imported when they are first used.
`codecs.auto(link_mbit_s, ...)` picks one for a link and says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lowcomm.arguments import number
from lowcomm.methods import Methods

if TYPE_CHECKING:
    from lowcomm.codecs.base import Codec
    from lowcomm.codecs.bf16_rounded import bf16
    from lowcomm.codecs.blockwise_e3m0 import e3m0
    from lowcomm.codecs.blockwise_int4 import int4
    from lowcomm.codecs.blockwise_int8 import int8
    from lowcomm.codecs.choice import Choice
    from lowcomm.codecs.fp32_raw import fp32
    from lowcomm.codecs.sparse import topk
    from lowcomm.codecs.statistical import two_bit

METHODS: Methods[Codec] = Methods(
    __name__,
    "shared.codec",
    {
        "fp32": "fp32_raw",
        "bf16": "bf16_rounded",
        "int8": "blockwise_int8",
        "int4": "blockwise_int4",
        "e3m0": "blockwise_e3m0",
        "2bit": "statistical",
        "topk": "sparse",
    },
)
NAMES = METHODS.names
_SPOKEN = {"two_bit": "2bit"}
"""A factory whose codec has a name that none can have in Python."""

__all__ = ["METHODS", "NAMES", "auto", "bf16", "by_name", "e3m0", "fp32", "int4", "int8", "topk", "two_bit"]


def __getattr__(name: str) -> Callable[..., Codec]:
    """`codecs.int8` and its like: the factory of each method."""
    method = _SPOKEN.get(name, name)
    if method in NAMES:
        return METHODS.spec(method).make
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def by_name(name: str, error_feedback: bool | None = None, decay: float | None = None) -> Codec:
    """The codec that `shared.codec.name` asks for.

    Args:
        name: one of `NAMES`.
        error_feedback: None = as the codec does by default: on for 2bit and topk only.
        decay: of the residual, 0 to 1; None = the codec's own: 0.95 for topk, 1 for the others.

    Raises:
        ConfigError: there is no such codec, or error feedback is asked of one that loses nothing.
    """
    given: dict[str, Any] = {}
    parameters = METHODS.spec(name).parameters
    if error_feedback or (error_feedback is not None and "error_feedback" in parameters):
        given["error_feedback"] = error_feedback
    if decay is not None:
        number("shared.codec.error_feedback_decay", decay, least=0, most=1)
        if "decay" in parameters:
            given["decay"] = decay
    return METHODS.make(name, given)


def auto(link_mbit_s: float, *, elements: int, round_s: float, islands: int = 2) -> Choice:
    """The most faithful codec that a link has time for, and why; see `lowcomm.codecs.choice`."""
    from lowcomm.codecs.choice import choose

    return choose(link_mbit_s, elements=elements, round_s=round_s, islands=islands)
