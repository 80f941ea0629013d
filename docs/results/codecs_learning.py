"""What codecs cost in loss: table and plot of recipes/studies/codecs.toml.

`python docs/results/codecs_learning.py` draws docs/img/codecs_learning.png from its log.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lowcomm.bench.learning import read_log

ROOT = Path(__file__).parents[2]
LOG = ROOT / "docs" / "results" / "codecs_learning.jsonl"
PLOT = ROOT / "docs" / "img" / "codecs_learning.png"
REFERENCE = "fp32"


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of the study over its seeds.

    Attributes:
        losses: seed -> loss on held-out text.
        gaps: of each seed that fp32 has, too: loss / that of fp32 - 1.
        sent_bytes: by one island, mean over islands and seeds, counted on its streams.
    """

    name: str
    losses: dict[int, float]
    gaps: list[float]
    sent_bytes: float


def costs(log: Path) -> list[Cost]:
    """All runs, in the order of the study."""
    by_name: dict[str, dict[int, float]] = {}
    sent: dict[str, list[float]] = {}
    lines: Sequence[Mapping[str, Any]] = read_log(log)
    for line in lines:
        name, seed = str(line["name"]), int(line["seed"])
        by_name.setdefault(name, {})[seed] = float(line["eval_loss"])
        sent.setdefault(name, []).append(statistics.fmean(line["bytes_sent"]))
    reference = by_name[REFERENCE]
    return [
        Cost(
            name,
            losses,
            [loss / reference[seed] - 1 for seed, loss in sorted(losses.items()) if seed in reference],
            statistics.fmean(sent[name]),
        )
        for name, losses in by_name.items()
    ]


def plot(found: Sequence[Cost]) -> bytes:
    """Loss against bytes, each seed and their mean, relative to fp32 as seeds differ by more: a PNG."""
    figure = Figure(figsize=(7.0, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for cost in found:
        gaps = [100 * gap for gap in cost.gaps]
        sent_mb = cost.sent_bytes / 1e6
        (mean,) = axes.plot(sent_mb, statistics.fmean(gaps), marker="o", linestyle="none", label=cost.name)
        axes.plot([sent_mb] * len(gaps), gaps, marker="_", markersize=12, color=mean.get_color(), alpha=0.7)
    axes.set_xscale("log")
    axes.set_xlabel("MB sent by each of four islands")
    axes.set_ylabel("loss against fp32 of the same seed, %: seeds and mean")
    axes.set_title("AdamW inside, four islands, 300 outer steps of 5", fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


if __name__ == "__main__":
    PLOT.write_bytes(plot(costs(LOG)))
