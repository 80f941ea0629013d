"""Tables of corpora: how fast they are made and read."""

from __future__ import annotations

import json
from pathlib import Path

from lowcomm.bench.reading import HEADINGS, row
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
        f"A build, with hashes, duplicates and chunks, is {ratio:.2f} times as fast as loading and "
        "tokenising with `datasets`, by the medians; on a busy machine single runs of both overlap. "
        f"One that was killed {log['kills']} times {same} as an undisturbed one.",
        f"{size / 1e6:.0f} MB of JSON lines, a BPE of {log['settings']['vocabulary']:,}, {processes} "
        "processes, both in turn; memory of all processes added up (`lowcomm bench corpus`)",
        table(("who", "median", "fastest .. slowest", "text", "memory"), rows),
    )


def reading(path: Path) -> Part:
    """Of `lowcomm bench reading`."""
    log = json.loads(path.read_text(encoding="utf-8"))["reading"]
    lines = {line["what"]: line for line in log["readers"]}
    speed = {name: line["tokens_per_s"] for name, line in lines.items()}
    others = [f"{speed['lowcomm'] / speed['datasets']:.1f} times `datasets`"] if "datasets" in speed else []
    missing = f"; not installed, and so not compared: {', '.join(log['missing'])}" if log["missing"] else ""
    waits = [line["waited_share"] for what, line in lines.items() if what.startswith("training")][::-1]
    small, large = (lines[f"{gb:g} GB"] for gb in (log["bench"]["gb"][0], log["bench"]["gb"][-1]))
    return Part(
        "Reading a corpus",
        f"A rank reads {speed['lowcomm'] / speed['numpy']:.1f} times as fast as nanoGPT's loop over one "
        f"mapped file{', ' if others else ''}{', '.join(others)}; it takes {small['memory_mb']:.0f} and "
        f"{large['memory_mb']:.0f} MB at {small['what']} and {large['what']}, and has the first batch "
        f"after {small['first_batch_s']:.1f} and {large['first_batch_s']:.1f} s. Over HTTP it takes "
        f"{lines['HTTP']['link_share']:.0%} of the link. Where the link carries the tokens, inner "
        f"steps spend {waits[0]:.1%} of the time of training on their batches; from the disk {waits[1]:.1%}.",
        f"{log['bench']['compared_gb']:g} GB of tokens, batches of {log['bench']['batch_size']} windows of "
        f"{log['bench']['context']:,}; HTTP at {log['bench']['mbit_s']:g} Mbit/s; the first batch counts "
        "from the start of the process, torch's import included, of training from its first step; training "
        "without the first quarter, over a link of twice its highest speed from the disk"
        f"{missing} (`lowcomm bench reading`)",
        table(HEADINGS, [row(line) for line in log["readers"]]),
    )
