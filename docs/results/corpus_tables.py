"""Tables of corpora: how fast they are made."""

from __future__ import annotations

import json
from pathlib import Path

from parts import Part, table


def making(path: Path) -> Part:
    """Of `lowcomm bench corpus`."""
    log = json.loads(path.read_text(encoding="utf-8"))
    size, processes = log["text_bytes"], log["settings"]["processes"]

    def row(who: str, seconds: float, runs: list[float], peak: str) -> tuple[str, ...]:
        spread = f"{min(runs):.1f} .. {max(runs):.1f} s"
        return who, f"{seconds:.1f} s", spread, f"{size / seconds / 1e6:.2f} MB/s", peak

    build, mapped = log["build"], log["map"]
    rows = [
        row(
            "`lowcomm data build`",
            log["build_s"],
            [one["seconds"] for one in build],
            f"{max(one['peak_mb'] for one in build):.0f} MB",
        ),
        row(
            "`datasets`: `load_dataset`, `map`",
            log["load_and_map_s"],
            [one["load_s"] + one["map_s"] for one in mapped],
            f"{max(one['peak_mb'] for one in mapped):.0f} MB",
        ),
        row("`datasets`: `map` alone", log["map_s"], [one["map_s"] for one in mapped], "-"),
    ]
    ratio = log["load_and_map_s"] / log["build_s"]
    same = "ended with the same manifest" if log["same_manifest"] else "ended with another manifest"
    return Part(
        "Making a corpus",
        f"A build, with hashes, duplicates and chunks, is {ratio:.2f} times as fast as tokenising alone with "
        f"`datasets.map`; one that was killed {log['kills']} times {same} as an undisturbed one.",
        f"{size / 1e6:.0f} MB of JSON lines, a BPE of {log['settings']['vocabulary']:,}, {processes} "
        "processes, both in turn; memory of all processes added up (`lowcomm bench corpus`)",
        table(("who", "median", "fastest .. slowest", "text", "memory"), rows),
    )
