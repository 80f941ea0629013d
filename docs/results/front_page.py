"""What the front page shows of the logs: a picture, and a few figures beside those of others."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import loss_bytes
import wan
from loss_bytes import Pair
from parts import Part, anchor, table

PAGE = "docs/results/README.md"


def front_page(results: Path) -> str:
    """The picture and the table, each row linked to its place among all results."""
    return f"{_picture(loss_bytes.pairs(results))}\n\n{_figures(results)}"


def torchft(path: Path) -> Part:
    """What is known of torchft here: a few measured syncs."""
    log = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        (f"{sync['parameters'] / 1e6:g}M", f"{4 * sync['parameters'] / 1e6:g} MB", _span(sync))
        for sync in log["syncs"]
    ]
    after = log["after_an_error"]
    return Part(
        "Outer syncs of torchft",
        "Unencrypted Gloo between two replicas is faster on one machine than encrypted links between "
        "peers that "
        f"need no coordinator; after an error [{after['says']}]({after['published']}).",
        f"torchft {log['torchft']}, {log['replicas']} replicas, {log['where']}; {log['kept']}",
        table(("parameters", "fp32 payload", "outer sync"), rows),
    )


def _span(sync: Mapping[str, float]) -> str:
    fastest, slowest = sync["fastest_s"], sync["slowest_s"]
    return f"{fastest:g} s" if fastest == slowest else f"{fastest:g} .. {slowest:g} s"


def _picture(pairs: list[Pair]) -> str:
    """For readers of light and of dark pages, and in words for those who see none."""
    fewest = max(pairs, key=lambda pair: pair.fewer)
    gaps = sorted(pair.gap for pair in pairs)
    words = (
        f"Loss on held-out text against bytes sent, {len(pairs)} pairs of islands and data-parallel "
        "training: "
        f"the islands' loss differs by {100 * gaps[0]:+.1f} to {100 * gaps[-1]:+.1f} percent, and "
        "each of them "
        f"sends {min(pair.fewer for pair in pairs):.0f} to {fewest.fewer:,.0f} times fewer bytes."
    )
    dark = '<source media="(prefers-color-scheme: dark)" srcset="docs/img/loss_bytes_dark.svg">'
    return f'<picture>{dark}<img alt="{words}" src="docs/img/loss_bytes_light.svg"></picture>'


def _figures(results: Path) -> str:
    islands = loss_bytes.study(results, "learning.jsonl", "Muon, 2 islands", "Muon, data-parallel of 2")
    fewest = max(loss_bytes.pairs(results), key=lambda pair: pair.fewer)
    formed = _round(results / "round_formation.json", 4)
    moved = _round(results / "round_100mb_2.json", 2)
    torchft_log = _read(results / "torchft.json")
    sync = next(one for one in torchft_log["syncs"] if one["parameters"] == 25_000_000)
    runs = _read(results / "wan.json")
    wide = {one["who"]: statistics.median(one["seconds"]) for one in runs["stock-4"]["rounds"]}
    deaths = _read(results / "deaths.json")["deaths"]["deaths"]
    lost = max(death["lost_steps"] for death in deaths)
    published = torchft_log["after_an_error"]["published"]
    rows = [
        (
            _link("Loss at equal tokens, two islands, Muon", "Islands against data-parallel"),
            f"{islands.loss:.3f} ({len(islands.losses)} seeds)",
            f"data-parallel {islands.parallel_loss:.3f}",
        ),
        (
            _link(
                f"Loss, and bytes sent by each, {fewest.codec} every {fewest.interval} steps",
                "Thousands of times fewer bytes",
            ),
            f"{fewest.loss:.3f}, {fewest.sent_bytes / 1e6:.0f} MB",
            f"data-parallel {fewest.parallel_loss:.3f}, {fewest.parallel_bytes / 1e9:.0f} GB",
        ),
        (
            _link("Forming a round of 4", "Rounds on loopback"),
            f"{1e3 * formed['lowcomm']['median_s']:.0f} ms",
            f"hivemind {1e3 * formed['hivemind']['median_s']:.0f} ms",
        ),
        (
            _link("Round of 2, 100 MB, one machine", "Outer syncs of torchft"),
            f"{moved['lowcomm']['median_s']:.2f} s",
            f"hivemind {moved['hivemind']['median_s']:.2f} s, torchft {_span(sync)} (Gloo, unencrypted)",
        ),
        (
            _link("... after which all have the same bits", "Rounds on loopback"),
            f"{moved['lowcomm']['bit_identical']} of {moved['lowcomm']['rounds']}",
            f"hivemind {moved['hivemind']['bit_identical']} of {moved['hivemind']['rounds']}",
        ),
        (
            _link("Round of 4, 25 MiB, 100 Mbit/s, 100 ms", "Rounds on an emulated WAN"),
            f"{wide['lowcomm']:.2f} s",
            f"hivemind {wide['hivemind']:.2f} s",
        ),
        (
            _link("Time spent training, 4 islands, 100 Mbit/s", "Utilisation of a slow link"),
            f"{wan.utilisation(runs['streaming-4-100']):.0%} (streamed)",
            f"{wan.utilisation(runs['blocking-4-100']):.0%} with blocking fp32 rounds",
        ),
        (
            _link("Steps that a death in a round costs the others", "An island dies in a round"),
            str(lost),
            f"torchft [all since the last sync]({published})",
        ),
    ]
    return table(("", "lowcomm", "beside it"), rows)


def _link(text: str, heading: str) -> str:
    return f"[{text}]({PAGE}#{anchor(heading)})"


def _round(path: Path, peers: int) -> dict[str, Mapping[str, Any]]:
    """Who -> its rounds among so many peers."""
    return {one["who"]: one for one in _read(path)["rounds"] if one["peers"] == peers}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
