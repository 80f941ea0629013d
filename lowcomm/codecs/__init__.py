"""Codecs: how pseudo-gradients become bytes. Each is one file; `by_name` is what recipes use.

- `codecs.fp32()`: 32 bits per parameter, exact
- `codecs.bf16()`: 16 bits per parameter
- `codecs.int8()`: 8.125 bits per parameter, blockwise
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowcomm.errors import ConfigError

if TYPE_CHECKING:
    from lowcomm.codecs.base import Codec

NAMES = ("fp32", "bf16", "int8")

__all__ = ["NAMES", "bf16", "by_name", "fp32", "int8"]


def fp32() -> Codec:
    """The numbers as they are."""
    from lowcomm.codecs.dense import Fp32

    return Fp32()


def bf16(error_feedback: bool = False) -> Codec:
    """Rounded to the nearest bfloat16, ties to even."""
    from lowcomm.codecs.dense import Bf16

    return Bf16(error_feedback=error_feedback)


def int8(error_feedback: bool = False) -> Codec:
    """Signed 8-bit integers with one fp32 scale for every 256 of them."""
    from lowcomm.codecs.blockwise import Int8

    return Int8(error_feedback=error_feedback)


def by_name(name: str, error_feedback: bool = False) -> Codec:
    """The codec that `shared.codec.name` asks for.

    Raises:
        ConfigError: there is no such codec, or error feedback is asked of one that loses nothing.
    """
    if name == "fp32":
        if error_feedback:
            raise ConfigError(
                "shared.codec.error_feedback: expected false with codec fp32, which loses nothing, got true"
            )
        return fp32()
    if name == "bf16":
        return bf16(error_feedback)
    if name == "int8":
        return int8(error_feedback)
    raise ConfigError(f"shared.codec.name: expected one of {', '.join(NAMES)}, got {name!r}")
