"""What codecs cost in loss: tables and plots of recipes/studies/codecs.toml and topk.toml.

`python -m lowcomm.bench.codecs_learning` draws docs/img/codecs_learning.png and topk.png from their logs.
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
PLOTS = {
    "codecs_learning": "Muon inside, four islands, 50 outer steps of 10: mean and range of the seeds",
    "topk": "AdamW inside, four islands, 1,000 outer steps of 1: mean and range of the seeds",
}
"""Of which logs, and their titles."""
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


def plot(found: Sequence[Cost], title: str) -> bytes:
    """Loss against bytes, the mean of the seeds with their spread, as a PNG."""
    figure = Figure(figsize=(7.0, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for cost in found:
        losses = list(cost.losses.values())
        mean = statistics.fmean(losses)
        spread = [[mean - min(losses)], [max(losses) - mean]]
        axes.errorbar(cost.sent_bytes / 1e6, mean, yerr=spread, marker="o", capsize=3, label=cost.name)
    axes.set_xscale("log")
    axes.set_xlabel("MB sent by each of four islands")
    axes.set_ylabel("loss on held-out text, nats per byte")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


if __name__ == "__main__":
    for name, title in PLOTS.items():
        drawn = plot(costs(ROOT / "docs" / "results" / f"{name}.jsonl"), title)
        (ROOT / "docs" / "img" / f"{name}.png").write_bytes(drawn)
