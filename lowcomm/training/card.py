"""What an export says of the run that it came from: the second half of its README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lowcomm import __version__
from lowcomm.config.fields import settings
from lowcomm.config.load import shared_digest
from lowcomm.config.schema import Config
from lowcomm.config.shared import get


def card(config: Config, step: int, chains: Sequence[Mapping[str, Any]]) -> str:
    """The run, how far it is, and the settings that are not as lowcomm has them by default.

    Args:
        step: inner step of the checkpoint.
        chains: where those of the fragments stand in it; none in checkpoints of early versions.
    """
    rows = [
        ("run", f"`{config.shared.run_id}`"),
        ("inner steps", f"{step:,}"),
        ("outer steps", ", ".join(f"{chain['outer_step']:,}" for chain in chains)),
        ("ledger heads", ", ".join(f"`{chain['head'][:16]}`" for chain in chains)),
        ("corpus", f"`{config.shared.data.manifest}`" if config.shared.data.manifest else ""),
        ("settings' digest", f"`{shared_digest(config)}`"),
        ("lowcomm", __version__),
    ]
    table = "".join(f"| {name} | {value} |\n" for name, value in rows if value)
    chosen = "".join(
        f"{path} = {json.dumps(value, ensure_ascii=False)}\n"
        for path, setting in settings().items()
        if setting.run_wide and (value := get(config, path)) != setting.default
    )
    return f"\n## The run\n\n| | |\n|---|---|\n{table}\n```toml\n{chosen}```\n"
