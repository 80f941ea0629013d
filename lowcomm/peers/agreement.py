"""What two peers must agree on, and what is said where they don't."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lowcomm.errors import CheckpointError
from lowcomm.types import Json

DATA_DIGEST = "data.digest"
FROZEN_DIGEST = "model.frozen"
WEIGHTS_DIGEST = "model.weights"
SAME_DATA = "shared.data.same"

ADVICE = {
    DATA_DIGEST: "the islands have read other texts: give all of them the same files (with data.source = "
    "stdlib the same Python), or set shared.data.same = false on all if each is to train on its own",
    FROZEN_DIGEST: "the weights that are not trained differ: load the same ones, in the same dtype, on all",
    WEIGHTS_DIGEST: "training begins with other weights: give all islands the same shared.task.model",
}
"""What to do, islands that meet."""
_RESUMED = {
    DATA_DIGEST: "resume with the same data",
    FROZEN_DIGEST: "resume on the same weights that are not trained, in the same dtype",
}
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


def differences(mine: Mapping[str, Json], theirs: Mapping[str, Json]) -> list[str]:
    """One line per shared setting in which two peers differ; for digests with what to do about it."""
    lines = []
    for key in sorted(set(mine) | set(theirs)):
        here, there = mine.get(key), theirs.get(key)
        if here == there or (key == DATA_DIGEST and mine.get(SAME_DATA) != theirs.get(SAME_DATA)):
            continue
        line = f"{key}: here {_shown(here)}, there {_shown(there)}"
        lines.append(f"{line}; {ADVICE[key]}" if key in ADVICE else line)
    return lines


def check_unchanged(now: Mapping[str, Json], saved: Mapping[str, Json]) -> None:
    """Compare the digests of what an island trains with with those of when its checkpoint was saved.

    Raises:
        CheckpointError: it names what is another.
    """
    for key, advice in _RESUMED.items():
        if key in now and key in saved and now[key] != saved[key]:
            raise CheckpointError(
                f"{key}: expected {_shown(saved[key])}, as in the checkpoint, got {_shown(now[key])}; "
                f"{advice}, or start in a new run folder"
            )


def _shown(value: Json) -> str:
    return _HASH.sub(r"\1...", repr(value))
