"""The picture of the front page: loss against bytes sent, islands beside data-parallel training.

`python docs/results/loss_bytes.py` draws docs/img/loss_bytes_light.svg and _dark.svg from the logs.
Data-parallel training ran in one process, so its bytes are computed: those of a ring all-reduce of fp32
gradients at each step, 2 (M - 1) / M * 4 bytes a parameter.
"""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from blake3 import blake3
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lowcomm.bench.learning import read_log

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PICTURES = {theme: ROOT / "docs" / "img" / f"loss_bytes_{theme}.svg" for theme in ("light", "dark")}

_STUDIES = (
    # log, the islands' runs in it, and those of data-parallel training
    ("learning.jsonl", "AdamW, 2 islands", "AdamW, data-parallel of 2"),
    ("learning.jsonl", "AdamW, 4 islands", "AdamW, data-parallel of 4"),
    ("learning.jsonl", "Muon, 2 islands", "Muon, data-parallel of 2"),
    ("learning.jsonl", "Muon, 4 islands", "Muon, data-parallel of 4"),
    ("few_bytes.jsonl", "Muon, 2 islands, 2-bit, H 150", "Muon, data-parallel of 2, 2-bit, H 150"),
)
_COLOURS = {
    # ink, faint, islands, data-parallel; the background is the page's
    "light": ("#1f2328", "#8c959f", "#0969da", "#bc4c00"),
    "dark": ("#e6edf3", "#768390", "#58a6ff", "#f0883e"),
}
_FP32_BYTES = 4
CODEC = "shared.codec.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Islands, and data-parallel training of the same model with the same tokens.

    Attributes:
        inner: the inner optimizer.
        interval: inner steps between two exchanges.
        losses, parallel_losses: on held-out text, in nats per byte, one of each seed.
        sent_bytes: by the island that sent most, the mean over seeds.
        parallel_bytes: what each peer of data-parallel training would have sent.
    """

    inner: str
    islands: int
    codec: str
    interval: int
    losses: tuple[float, ...]
    parallel_losses: tuple[float, ...]
    sent_bytes: float
    parallel_bytes: float

    @property
    def loss(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.losses)

    @property
    def parallel_loss(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.parallel_losses)

    @property
    def gap(self) -> float:
        """The islands' loss / that of data-parallel training - 1."""
        return self.loss / self.parallel_loss - 1

    @property
    def text(self) -> str:
        """What the islands did."""
        return f"{self.islands} islands, {self.inner}, {self.codec} every {self.interval} steps"

    @property
    def fewer(self) -> float:
        """How many times fewer bytes the islands sent."""
        return self.parallel_bytes / self.sent_bytes


def pairs(results: Path) -> list[Pair]:
    """Whatever the committed logs have both sides of, from most bytes of the islands to fewest."""
    found = [_quickstart(json.loads((results / "quickstart.json").read_text(encoding="utf-8")))]
    found += [study(results, *names) for names in _STUDIES]
    return sorted(found, key=lambda pair: -pair.sent_bytes)


def study(results: Path, log: str, islands: str, parallel: str) -> Pair:
    """Two runs of a study, by their names in its log."""
    logged: Sequence[Mapping[str, Any]] = read_log(results / log)
    lines = sorted(logged, key=lambda line: int(line["seed"]))
    ours = [line for line in lines if line["name"] == islands]
    theirs = [line for line in lines if line["name"] == parallel]
    first = ours[0]
    codecs = [value for key, _, value in (s.partition("=") for s in first["settings"]) if key == CODEC]
    peers = int(first["islands"])
    per_step_bytes = 2 * (peers - 1) / peers * _FP32_BYTES * first["parameters"]
    return Pair(
        inner=islands.partition(",")[0],
        islands=peers,
        codec=codecs[-1] if codecs else "int8",
        interval=round(first["data_parallel_bytes"] / per_step_bytes / first["outer_steps"]),
        losses=tuple(float(line["eval_loss"]) for line in ours),
        parallel_losses=tuple(float(line["eval_loss"]) for line in theirs),
        sent_bytes=statistics.fmean(max(line["bytes_sent"]) for line in ours),
        parallel_bytes=float(first["data_parallel_bytes"]),
    )


def _quickstart(figures: Mapping[str, Any]) -> Pair:
    return Pair(
        inner="Muon",
        islands=figures["islands"],
        codec="int8",
        interval=round(figures["inner_steps"] / figures["outer_steps"]),
        losses=(figures["eval_loss"],),
        parallel_losses=(figures["baseline_eval_loss"],),
        sent_bytes=float(max(figures["wan_bytes_sent"])),
        parallel_bytes=float(figures["data_parallel_bytes"]),
    )


def stamp(drawn: Sequence[Pair]) -> str:
    """What a picture carries of its figures, to be told from a picture of other ones."""
    return f"pairs {blake3(json.dumps([asdict(pair) for pair in drawn]).encode()).hexdigest()}"


def picture(drawn: Sequence[Pair], theme: str) -> bytes:
    """An SVG without a background: a line between the two sides of each pair, flat where the loss "
    "is equal."""
    ink, faint, ours, theirs = _COLOURS[theme]
    settings: Any = {
        "svg.hashsalt": "lowcomm", "font.size": 10, "text.color": ink, "axes.labelcolor": ink,
        "axes.edgecolor": faint, "xtick.color": ink, "ytick.color": ink,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8.6, 3.9), layout="constrained")
        axes = figure.add_subplot()
        beside = axes.get_yaxis_transform()  # x as a share of the width, y as a loss
        for pair in drawn:
            ends = [pair.sent_bytes, pair.parallel_bytes]
            axes.plot(ends, [pair.loss, pair.parallel_loss], color=faint, linewidth=1.2, zorder=1)
            for at, losses, colour in zip(
                ends, (pair.losses, pair.parallel_losses), (ours, theirs), strict=True
            ):
                axes.plot([at] * len(losses), losses, "_", color=colour, markersize=9, alpha=0.8, zorder=2)
            axes.plot(
                [0.0, 1.0], [pair.parallel_loss] * 2, transform=beside, color=faint, lw=0.6, ls=":", zorder=0
            )
            for x, text, weight in ((1.01, f"{pair.fewer:,.0f}x", "bold"), (1.13, pair.text, "normal")):
                axes.text(x, pair.parallel_loss, text, transform=beside, va="center", weight=weight, size=8.5)
        axes.text(1.01, 1.0, "fewer bytes", transform=axes.transAxes, va="bottom", size=8.5)
        sides = (
            ("islands", ours, [pair.sent_bytes for pair in drawn], [pair.loss for pair in drawn]),
            (
                "data-parallel, same tokens",
                theirs,
                [p.parallel_bytes for p in drawn],
                [p.parallel_loss for p in drawn],
            ),
        )
        for label, colour, xs, ys in sides:
            axes.plot(xs, ys, "o", color=colour, markersize=7, label=label, zorder=3)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=9))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda sent, _: _bytes(sent)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(5e6, 5e10)
        axes.set_xlabel("sent by each island or peer (a dash is a seed, a dot their mean)")
        axes.set_ylabel("loss on held-out text, nats per byte")
        axes.margins(y=0.12)
        axes.grid(axis="x", color=faint, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Description": stamp(drawn)}
        )
    return buffer.getvalue()


def _bytes(count: float) -> str:
    return f"{count / 1e9:g} GB" if count >= 1e9 else f"{count / 1e6:g} MB"


def main() -> None:
    """Draw the picture for pages of both kinds."""
    drawn = pairs(RESULTS)
    for theme, path in PICTURES.items():
        path.write_bytes(picture(drawn, theme))


if __name__ == "__main__":
    main()
