"""The plots of the report, each a PNG in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from lowcomm.report.figures import run_figures
from lowcomm.report.runs import Run
from lowcomm.report.series import (
    Curve,
    column,
    committed,
    eval_curve,
    failed,
    loss_over,
    loss_over_bytes,
    loss_over_tokens,
    over_steps,
    smooth,
)

COLORS = ("#2f6db5", "#d9822b", "#3a9a5b", "#b5476c", "#7a5fb5", "#8a6d3b", "#2a9d9d", "#7f7f7f")
BASELINE_COLOR = "#444444"
FORM_COLOR, TRANSFER_COLOR, COMMIT_COLOR, WAIT_COLOR = "#f2b134", "#2f6db5", "#a9c4e4", "#c0392b"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
}
SMOOTHING_PARTS = 30
FOCUS_FROM, FOCUS_PERCENTILE = 40, 96


def tokens_plot(runs: Sequence[Run]) -> bytes:
    """Training and evaluation loss against the tokens of all islands, with the baseline's."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("Loss against tokens", "tokens, all islands together", _loss_label(runs))
        for color, curve in _training([loss_over_tokens(run) for run in runs], runs):
            _draw_loss(axes, curve, color)
        for index, run in enumerate(runs):
            _draw_eval(
                axes, eval_curve(run, "tokens"), COLORS[index % len(COLORS)] if len(runs) > 1 else "black"
            )
        for run in runs[:1]:
            _draw_baseline_over_tokens(axes, run)
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.set_xlim(left=0)
        _focus(axes, runs)
        _legend(axes)
        return _png(figure)


def steps_plot(runs: Sequence[Run]) -> bytes:
    """The same against inner steps."""
    return _plain_loss(runs, "inner_step", "Loss against steps", "inner steps", 1.0)


def time_plot(runs: Sequence[Run]) -> bytes:
    """The same against the time that the processes ran."""
    unit, seconds = _time_unit(max(island.wall_s for run in runs for island in run.islands))
    return _plain_loss(runs, "time_s", "Loss against wall time", unit, 1 / seconds)


def _plain_loss(runs: Sequence[Run], x_key: str, title: str, x_label: str, scale: float) -> bytes:
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(title, x_label, _loss_label(runs))
        for color, curve in _training([loss_over(run, x_key) for run in runs], runs):
            _draw_loss(axes, replace(curve, x=curve.x * scale), color)
        for index, run in enumerate(runs):
            curve = eval_curve(run, x_key)
            color = COLORS[index % len(COLORS)] if len(runs) > 1 else "black"
            _draw_eval(axes, replace(curve, x=curve.x * scale), color)
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        _focus(axes, runs)
        _legend(axes)
        return _png(figure)


def _time_unit(longest_s: float) -> tuple[str, float]:
    """How to count a time of this length, and the seconds in one."""
    if longest_s > 3 * 86_400:
        return "days", 86_400.0
    if longest_s > 3 * 3_600:
        return "hours", 3_600.0
    return ("minutes", 60.0) if longest_s > 300 else ("seconds", 1.0)


PANELS: tuple[tuple[str, str, float, str | None], ...] = (
    ("learning rate", "lr", 1.0, None),
    ("gradient norm before clipping", "grad_norm", 1.0, None),
    ("tokens per second", "tokens_per_s", 1.0, ""),
    ("host memory, peak", "host_memory_bytes", 1.0, "B"),
    ("device memory, peak", "device_memory_bytes", 1.0, "B"),
    ("model FLOPs, % of the devices' peak", "mfu", 100.0, None),
)
"""Title, field of the train lines, factor, unit that k, M and G are put before (None = plain numbers)."""


def training_panels(run: Run) -> bytes:
    """Learning rate, gradient norm, speed and memory of each island over the inner steps; what is known."""
    known = [
        (title, unit, curves) for title, key, scale, unit in PANELS if (curves := over_steps(run, key, scale))
    ] or [("no steps yet", None, [])]
    with matplotlib.rc_context(STYLE):
        rows = -(-len(known) // 2)
        figure = Figure(figsize=(9.0, 2.6 * rows), dpi=120, layout="constrained")
        grid = figure.subplots(rows, 2, squeeze=False)
        for axes in grid.flat[len(known) :]:
            axes.axis("off")
        for axes, (title, unit, curves) in zip(grid.flat, known, strict=False):
            axes.set(title=title, xlabel="inner step")
            for index, curve in enumerate(curves):
                axes.plot(curve.x, curve.y, color=COLORS[index % len(COLORS)], label=curve.label)
            if unit is not None:
                axes.yaxis.set_major_formatter(EngFormatter(unit=unit, sep=" "))
        _legend(grid.flat[0])
        return _png(figure)


def bytes_plot(runs: Sequence[Run]) -> bytes:
    """The same against the bytes that an island sent; data-parallel where its figures are known."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(
            "Loss against WAN traffic", "bytes sent by one island (log scale)", _loss_label(runs)
        )
        for color, curve in _training([loss_over_bytes(run) for run in runs], runs):
            _draw_loss(axes, curve, color)
        for index, run in enumerate(runs):
            color = COLORS[index % len(COLORS)] if len(runs) > 1 else "black"
            _draw_eval(axes, eval_curve(run, "bytes_sent"), color)
        for run in runs[:1]:
            _draw_baseline_over_bytes(axes, run)
        if any((np.asarray(line.get_xdata()) > 0).any() for line in axes.lines):  # else nothing was sent
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
        _focus(axes, runs)
        _legend(axes)
        return _png(figure)


def round_timeline(run: Run) -> bytes:
    """Above, what the seconds of each round went into; below, when each island's rounds took place."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6 + 0.42 * len(run.islands)), dpi=120, layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=[2.4, 0.6 + 0.42 * len(run.islands)])
        _draw_round_parts(above, run)
        _draw_timeline(below, run)
        return _png(figure)


def agreement(run: Run) -> bytes:
    """Cosine between the islands' pseudo-gradients and their norms, over the inner steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.2), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2)
        left.set(title="Cosine between islands", xlabel="inner step", ylabel="mean pairwise cosine")
        right.set(title="Pseudo-gradient norm", xlabel="inner step", ylabel="L2 norm")
        for index, island in enumerate(run.islands):
            lines = committed(island)
            steps, color = column(lines, "inner_step"), COLORS[index % len(COLORS)]
            right.plot(steps, column(lines, "pseudo_gradient_norm"), color=color, label=island.name)
        lines = max((committed(island) for island in run.islands), key=len)
        steps = column(lines, "inner_step")
        left.plot(steps, column(lines, "cosine"), color=COLORS[0])
        right.plot(
            steps, column(lines, "mean_norm"), color="black", linestyle="--", label="their mean, applied"
        )
        left.axhline(0, color="#888888", linewidth=0.8)
        right.set_ylim(bottom=0)
        right.legend()
        return _png(figure)


def _training(curves: Sequence[Sequence[Curve]], runs: Sequence[Run]) -> list[tuple[str, Curve]]:
    """(color, curve) per island of a single run; of several runs, one island each stands for its run."""
    if len(runs) == 1:
        return [(COLORS[index % len(COLORS)], curve) for index, curve in enumerate(curves[0])]
    chosen = []
    for index, (run, of_run) in enumerate(zip(runs, curves, strict=True)):
        curve = max(of_run, key=lambda curve: len(curve.x))
        named = Curve(label=f"{run.path.name} ({run.run_id})", x=curve.x, y=curve.y)
        chosen.append((COLORS[index % len(COLORS)], named))
    return chosen


def _draw_loss(axes: Axes, curve: Curve, color: str) -> None:
    if len(curve.x) == 0:
        return
    axes.plot(curve.x, curve.y, color=color, alpha=0.22, linewidth=0.8)
    axes.plot(
        curve.x,
        smooth(curve.y, len(curve.y) // SMOOTHING_PARTS),
        color=color,
        label=f"{curve.label}, training",
    )


def _focus(axes: Axes, runs: Sequence[Run]) -> None:
    """Leave the fall of the first steps out of the picture, so that the end can be read."""
    losses = [curve.y for run in runs for curve in (*loss_over_tokens(run), eval_curve(run, "tokens"))]
    losses += [np.array([float(run.baseline["eval_loss"])]) for run in runs if run.baseline]
    values = np.concatenate(losses)
    if len(values) < FOCUS_FROM:
        return
    low, high = float(values.min()), float(np.percentile(values, FOCUS_PERCENTILE))
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _draw_eval(axes: Axes, curve: Curve, color: str) -> None:
    if len(curve.x):
        axes.plot(
            curve.x, curve.y, color=color, marker="o", markersize=5, linewidth=1.2, zorder=4,
            label=f"anchor, held-out text: {curve.y[-1]:.3f}",
        )  # fmt: skip


def _draw_baseline_over_tokens(axes: Axes, run: Run) -> None:
    if not run.baseline:
        return
    pairs = np.array(run.baseline.get("train") or [], dtype=np.float64).reshape(-1, 2)
    if len(pairs):
        values = smooth(pairs[:, 1], len(pairs) // SMOOTHING_PARTS)
        axes.plot(pairs[:, 0], values, color=BASELINE_COLOR, linestyle=":", label="data-parallel, training")
    loss = float(run.baseline["eval_loss"])
    axes.axhline(
        loss, color=BASELINE_COLOR, linestyle="--", linewidth=1.0,
        label=f"data-parallel, held-out text: {loss:.3f}",
    )  # fmt: skip


def _draw_baseline_over_bytes(axes: Axes, run: Run) -> None:
    figures = run_figures(run)
    if not run.baseline or not figures.data_parallel_bytes:
        return
    pairs = np.array(run.baseline.get("train") or [], dtype=np.float64).reshape(-1, 2)
    total = float(run.baseline.get("tokens") or figures.tokens)
    if len(pairs):
        values = smooth(pairs[:, 1], len(pairs) // SMOOTHING_PARTS)
        axes.plot(
            pairs[:, 0] / total * figures.data_parallel_bytes, values, color=BASELINE_COLOR, linestyle=":",
            label="data-parallel (fp32 ring), training",
        )  # fmt: skip
    loss = float(run.baseline["eval_loss"])
    axes.plot(
        [figures.data_parallel_bytes], [loss], marker="D", linestyle="", color=BASELINE_COLOR,
        label=f"data-parallel, held-out text: {loss:.3f}",
    )  # fmt: skip


def _draw_round_parts(axes: Axes, run: Run) -> None:
    axes.set(title="Where the seconds of a round go (mean of the islands)", xlabel="round", ylabel="seconds")
    by_round: dict[tuple[float, int], list[tuple[float, float, float, float]]] = {}
    for island in run.islands:
        for line in committed(island):
            key = (float(line.get("inner_step", 0)), int(line.get("fragment", 0)))
            form, transfer = float(line["form_s"]), float(line["transfer_s"])
            rest = max(0.0, float(line["round_s"]) - form - transfer)
            by_round.setdefault(key, []).append((form, transfer, rest, float(line["wait_s"])))
    if not by_round:
        axes.text(0.5, 0.5, "no round was committed", transform=axes.transAxes, ha="center", color="#666666")
        return
    parts = np.array([np.mean(by_round[key], axis=0) for key in sorted(by_round)])
    x = np.arange(1, len(parts) + 1)
    bottom = np.zeros(len(parts))
    labels = ("forming the roster", "transfer", "vote and commit")
    for index, (label, color) in enumerate(
        zip(labels, (FORM_COLOR, TRANSFER_COLOR, COMMIT_COLOR), strict=True)
    ):
        axes.bar(x, parts[:, index], width=0.9, bottom=bottom, color=color, label=label)
        bottom += parts[:, index]
    axes.plot(x, parts[:, 3], color=WAIT_COLOR, linewidth=1.1, label="training stood still")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, max(float(np.percentile(bottom, 98)) * 1.35, 1e-3))
    axes.legend(ncols=4, loc="upper left")


def _draw_timeline(axes: Axes, run: Run) -> None:
    axes.set(title="When the rounds took place", xlabel="seconds since the start")
    for row, island in enumerate(run.islands):
        lines = committed(island)
        ends = column(lines, "time_s")
        starts = ends - column(lines, "round_s")
        formed = starts + column(lines, "form_s")
        moved = formed + column(lines, "transfer_s")
        for begin, end, color in (
            (starts, formed, FORM_COLOR),
            (formed, np.minimum(moved, ends), TRANSFER_COLOR),
            (np.minimum(moved, ends), ends, COMMIT_COLOR),
        ):
            bars = list(zip(begin, end - begin, strict=True))
            axes.broken_barh(bars, (row - 0.3, 0.6), facecolors=color, edgecolors=color, linewidth=0.6)
        bad = column(failed(island), "time_s")
        axes.plot(bad, np.full(len(bad), row), "x", color=WAIT_COLOR, markersize=7, markeredgewidth=1.8)
    axes.set_yticks(range(len(run.islands)), [island.name for island in run.islands])
    axes.set_ylim(len(run.islands) - 0.5, -0.5)
    axes.set_xlim(0, max(island.wall_s for island in run.islands) * 1.01 or 1.0)
    axes.grid(visible=False, axis="y")
    count = sum(len(failed(island)) for island in run.islands)
    if count:
        axes.plot([], [], "x", color=WAIT_COLOR, markeredgewidth=1.8, label=f"not committed ({count})")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.96))


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:  # a run before its first step has no curve
        axes.legend(loc="upper right")  # where a loss that falls is not; "best" is slow, and says so


def _loss_label(runs: Sequence[Run]) -> str:
    """With the unit, where all runs have the same."""
    units = {run.loss_unit for run in runs} - {""}
    return f"loss ({units.pop()})" if len(units) == 1 else "loss"


def _figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.0, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
