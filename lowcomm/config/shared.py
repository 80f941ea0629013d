"""What must be equal on all islands of a run: flat, hashed, and compared when a peer joins."""

from __future__ import annotations

import json
from collections.abc import Mapping

from blake3 import blake3

from lowcomm.config.fields import settings
from lowcomm.config.schema import Config
from lowcomm.config.values import show
from lowcomm.types import Digest, Json, SharedSettings

LATER: dict[str, Json] = {
    "shared.task.kind": "gpt",
    "shared.task.model": "",
    "shared.task.adapter": "",
    "shared.task.dtype": "fp32",
    "shared.data.same": True,
    "shared.data.manifest": "",
    "shared.data.packing": "across",
    "shared.data.unit_samples": 0,
    "shared.data.global_batch_tokens": 0,
    "shared.inner.schedule": "cosine",
    "shared.inner.decay_fraction": 0.2,
    "shared.round.operator": "",
    **dict.fromkeys(
        ("shared.outer.beta1", "shared.outer.beta2", "shared.outer.eps", "shared.outer.beta"), "auto"
    ),
}
"""Settings that came after the first run folders, with what held before: then the digest is as it was."""


def get(config: Config, path: str) -> Json:
    """The value at a dotted path, as JSON has it (tuples are lists).

    Raises:
        AttributeError: there is no such setting.
    """
    value: object = config
    for name in path.split("."):
        value = getattr(value, name)
    if isinstance(value, tuple):
        return list(value)
    assert isinstance(value, (bool, int, float, str)), path
    return value


def shared_settings(config: Config) -> dict[str, Json]:
    """All settings of `[shared]` by dotted path, e.g. `shared.codec.name` -> `int8`."""
    return {path: get(config, path) for path in settings() if path.startswith("shared.")}


def run_settings(config: Config) -> dict[str, Json]:
    """What a peer that joins is compared with: all that is `Setting.run_wide`, by dotted path."""
    return {path: get(config, path) for path, setting in settings().items() if setting.run_wide}


def shared_digest(config: Config) -> Digest:
    """The blake3 hash of `shared_settings` as canonical JSON: sorted keys, no blanks, ASCII.

    A run folder is held to it. The length of the run is not in it: all islands may agree to go on for longer.
    """
    values = {
        path: value
        for path, value in shared_settings(config).items()
        if path not in LATER or value != LATER[path]
    }
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Digest(blake3(canonical.encode("ascii")).hexdigest())


def differing_keys(mine: SharedSettings, theirs: SharedSettings) -> list[str]:
    """A line for each key that differs, such as `shared.codec.name: here int8, there fp32`."""
    return [
        f"{key}: here {_side(mine, key)}, there {_side(theirs, key)}"
        for key in sorted({*mine, *theirs})
        if _side(mine, key) != _side(theirs, key)
    ]


def _side(values: Mapping[str, Json], key: str) -> str:
    if key not in values:
        return "nothing"
    value = values[key]
    # bare words are easier to read; what another peer sent may hold anything
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 80 else show(value)
