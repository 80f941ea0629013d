"""Codecs: how pseudo-gradients become bytes. Each is one file; `by_name` is what recipes use.

- `codecs.fp32()`: 32 bits per parameter, exact
- `codecs.bf16()`: 16
- `codecs.int8()`, `codecs.int4()`: 8.125 and 4.25, blockwise integers
- `codecs.e3m0()`: 4.25, blockwise powers of two
- `codecs.two_bit()`: 2.125, blockwise, levels from each block's statistics; error feedback by default
- `codecs.topk()`: 0.157, 64 of every 4096 numbers; error feedback by default

`codecs.auto(link_mbit_s, ...)` picks one for a link and says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from lowcomm.arguments import flag, number, show
from lowcomm.errors import ArgumentError, ConfigError

if TYPE_CHECKING:
    from lowcomm.codecs.base import Codec
    from lowcomm.codecs.choice import Choice

NAMES = ("fp32", "bf16", "int8", "int4", "e3m0", "2bit", "topk")

__all__ = ["NAMES", "auto", "bf16", "by_name", "e3m0", "fp32", "int4", "int8", "topk", "two_bit"]


def fp32() -> Codec:
    """The numbers as they are."""
    from lowcomm.codecs.dense import Fp32

    return Fp32()


def bf16(error_feedback: bool = False, decay: float = 1.0) -> Codec:
    """Rounded to the nearest bfloat16, ties to even."""
    from lowcomm.codecs.dense import Bf16

    return Bf16(*_feedback(error_feedback, decay))


def int8(error_feedback: bool = False, decay: float = 1.0) -> Codec:
    """Signed 8-bit integers with one fp32 scale for every 256 of them."""
    from lowcomm.codecs.blockwise import Blockwise
    from lowcomm.codecs.blockwise_int8 import FORMAT

    return Blockwise(FORMAT, *_feedback(error_feedback, decay))


def int4(error_feedback: bool = False, decay: float = 1.0) -> Codec:
    """Signed 4-bit integers with one fp32 scale for every 128 of them."""
    from lowcomm.codecs.blockwise import Blockwise
    from lowcomm.codecs.blockwise_int4 import FORMAT

    return Blockwise(FORMAT, *_feedback(error_feedback, decay))


def e3m0(error_feedback: bool = False, decay: float = 1.0) -> Codec:
    """Signed powers of two in 4 bits, relative to the largest of every 128 numbers."""
    from lowcomm.codecs.blockwise import Blockwise
    from lowcomm.codecs.blockwise_e3m0 import FORMAT

    return Blockwise(FORMAT, *_feedback(error_feedback, decay))


def two_bit(error_feedback: bool = True, decay: float = 1.0) -> Codec:
    """Sign and size in 2 bits, the sizes from the statistics of every 256 numbers."""
    from lowcomm.codecs.blockwise import Blockwise
    from lowcomm.codecs.statistical import FORMAT

    _warn_without(error_feedback, FORMAT.name)
    return Blockwise(FORMAT, *_feedback(error_feedback, decay))


def topk(error_feedback: bool = True, decay: float = 0.95) -> Codec:
    """The 64 largest of every 4096 numbers, in 2 bits, with entropy-coded indices."""
    from lowcomm.codecs.sparse import TopK

    codec = TopK(*_feedback(error_feedback, decay))
    _warn_without(error_feedback, codec.name)
    return codec


def by_name(name: str, error_feedback: bool | None = None, decay: float | None = None) -> Codec:
    """The codec that `shared.codec.name` asks for.

    Args:
        name: one of `NAMES`.
        error_feedback: None = as the codec does by default: on for 2bit and topk only.
        decay: of the residual, 0 to 1; None = the codec's own: 0.95 for topk, 1 for the others.

    Raises:
        ConfigError: there is no such codec, or error feedback is asked of one that loses nothing.
    """
    if not isinstance(name, str):
        raise ArgumentError(
            f"codecs.by_name: expected one of {', '.join(NAMES)} as a string, got {show(name)}"
        )
    if name == "fp32":
        if error_feedback:
            raise ConfigError(
                "shared.codec.error_feedback: expected off with codec fp32, which loses nothing, got on"
            )
        return fp32()
    factories: dict[str, Callable[..., Codec]] = {
        "bf16": bf16,
        "int8": int8,
        "int4": int4,
        "e3m0": e3m0,
        "2bit": two_bit,
        "topk": topk,
    }
    if name not in factories:
        raise ConfigError(f"shared.codec.name: expected one of {', '.join(NAMES)}, got {name!r}")
    if decay is not None:
        decay = number("shared.codec.error_feedback_decay", decay, least=0, most=1)
    asked = {"error_feedback": error_feedback, "decay": decay}
    return factories[name](**{key: value for key, value in asked.items() if value is not None})


def auto(link_mbit_s: float, *, elements: int, round_s: float, islands: int = 2) -> Choice:
    """The most faithful codec that a link has time for, and why; see `lowcomm.codecs.choice`."""
    from lowcomm.codecs.choice import choose

    return choose(link_mbit_s, elements=elements, round_s=round_s, islands=islands)


def _feedback(error_feedback: object, decay: object) -> tuple[bool, float]:
    """The two options that all codecs but fp32 have.

    Raises:
        ConfigError: one is of another type, or out of range.
    """
    return flag("codec: error_feedback", error_feedback), number("codec: decay", decay, least=0, most=1)


def _warn_without(error_feedback: bool, name: str) -> None:
    if not error_feedback:
        warnings.warn(
            f"codec {name} without error feedback loses what it can't send and learns clearly worse; "
            'set shared.codec.error_feedback = "on"',
            UserWarning,
            stacklevel=3,
        )
