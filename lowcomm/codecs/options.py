"""The two options that all codecs but fp32 have."""

from __future__ import annotations

import warnings

from lowcomm.arguments import flag, number


def feedback(error_feedback: object, decay: object) -> tuple[bool, float]:
    """Both, checked.

    Raises:
        ConfigError: one is of another type, or out of range.
    """
    return flag("codec: error_feedback", error_feedback), number("codec: decay", decay, least=0, most=1)


def warn_without(error_feedback: bool, name: str) -> None:
    """Of few bits without error feedback."""
    if not error_feedback:
        warnings.warn(
            f"codec {name} without error feedback loses what it can't send and learns clearly worse; "
            'set shared.codec.error_feedback = "on"',
            UserWarning,
            stacklevel=3,
        )
