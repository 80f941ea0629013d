"""Draw docs/img/round.svg, the data's way in one round: python docs/img/round.py [FILE.svg|FILE.png]."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

INK, GREY = "#1b1f24", "#6b7280"
TRAIN, NET, BULK = "#dbeafe", "#fef3c7", "#b45309"
LANES = {"a-train": 6.0, "a-net": 4.6, "b-net": 2.2, "b-train": 0.8}
HEIGHT = 0.66


def box(axes: Axes, lane: str, start: float, stop: float, text: str, colour: str) -> None:
    """A piece of work on a lane; times are in no unit, only their order counts."""
    low = LANES[lane] - HEIGHT / 2
    axes.add_patch(plt.Rectangle((start, low), stop - start, HEIGHT, facecolor=colour, edgecolor=INK, lw=0.8))
    axes.text((start + stop) / 2, LANES[lane], text, ha="center", va="center", fontsize=8, color=INK)


def arrow(axes: Axes, tail: tuple[float, str], head: tuple[float, str], colour: str, width: float) -> None:
    """From the edge of one lane to the edge of another."""
    (x0, lane0), (x1, lane1) = tail, head
    down = LANES[lane1] < LANES[lane0]
    y0 = LANES[lane0] + (-HEIGHT / 2 if down else HEIGHT / 2)
    y1 = LANES[lane1] + (HEIGHT / 2 if down else -HEIGHT / 2)
    style = {"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(x1, y1), xytext=(x0, y0), arrowprops=style)


def crossing(axes: Axes, left: float, right: float, label: str, *, bulk: bool) -> None:
    """Both islands send to each other at once."""
    colour, width = (BULK, 2.2) if bulk else (GREY, 1.1)
    arrow(axes, (left, "a-net"), (right, "b-net"), colour, width)
    arrow(axes, (left, "b-net"), (right, "a-net"), colour, width)
    middle = (LANES["a-net"] + LANES["b-net"]) / 2
    axes.text(
        (left + right) / 2, middle, label, ha="center", va="center", fontsize=8, color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
    )  # fmt: skip


def training(axes: Axes, lane: str) -> None:
    """Inner steps before, beside and after the round."""
    box(axes, lane, 0.0, 1.7, "inner steps", TRAIN)
    box(axes, lane, 1.7, 3.3, "anchor - local", NET)
    box(axes, lane, 3.3, 13.2, "inner steps go on for “delay” steps (delay 0: wait here)", TRAIN)
    box(axes, lane, 13.2, 14.6, "merge", NET)
    box(axes, lane, 14.6, 16.0, "inner steps", TRAIN)


def network(axes: Axes, lane: str, *, leads: bool) -> None:
    """One ballot as an island's network thread sees it."""
    box(axes, lane, 3.3, 4.5, "ready", NET)
    box(axes, lane, 5.3, 6.7, "sign roster" if leads else "join", NET)
    box(axes, lane, 6.7, 8.0, "encode", NET)
    box(axes, lane, 8.6, 10.2, "mean,\nencode once", NET)
    box(axes, lane, 10.9, 12.1, "stage, vote", NET)
    box(axes, lane, 12.7, 13.7, "commit", NET)


def draw() -> plt.Figure:
    """The whole picture."""
    figure, axes = plt.subplots(figsize=(12.5, 4.9))
    for island, train, net in (("island A", "a-train", "a-net"), ("island B", "b-train", "b-net")):
        training(axes, train)
        network(axes, net, leads=island == "island A")
        for lane, words in ((train, "training thread\n(all ranks)"), (net, "network thread\n(lead rank)")):
            axes.text(-0.25, LANES[lane], words, ha="right", va="center", fontsize=8, color=INK)
        middle = (LANES[train] + LANES[net]) / 2
        axes.text(-2.3, middle, island, ha="right", va="center", fontsize=11, weight="bold", color=INK)
        arrow(axes, (3.3, train), (3.5, net), INK, 1.1)
        arrow(axes, (13.45, net), (13.6, train), INK, 1.1)
    crossing(axes, 4.4, 5.5, "ready", bulk=False)
    arrow(axes, (6.5, "a-net"), (6.6, "b-net"), GREY, 1.1)
    axes.text(
        6.55, 3.95, "roster", ha="center", va="center", fontsize=8, color=GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
    )  # fmt: skip
    crossing(axes, 7.7, 8.9, "parts", bulk=True)
    crossing(axes, 10.0, 11.2, "means", bulk=True)
    crossing(axes, 11.9, 12.9, "votes", bulk=False)
    axes.axhspan(2.62, 4.18, color="#f3f4f6", zorder=0)
    axes.text(-0.25, 3.4, "WAN: libp2p\nstreams", ha="right", va="center", fontsize=8, color=GREY)
    axes.text(16.0, 3.4, "orange: pseudo-gradients\ngrey: small messages", ha="right", va="center",
              fontsize=8, color=GREY)  # fmt: skip
    axes.set_xlim(-3.9, 16.2)
    axes.set_ylim(0.2, 6.6)
    axes.axis("off")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01)
    return figure


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    # text stays text, and the same input gives the same bytes
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "lowcomm", "font.family": "DejaVu Sans"}
    )
    draw().savefig(
        target, facecolor="white", dpi=110, metadata={"Date": None} if target.suffix == ".svg" else None
    )
