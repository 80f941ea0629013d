"""The figures of a run as rows of words: for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from lowcomm.metrics.console import human_bytes, short
from lowcomm.reasons import KINDS
from lowcomm.report.figures import RunFigures
from lowcomm.report.runs import Line, Run

Row = tuple[str, str]


def figure_rows(figures: RunFigures) -> list[Row]:
    """(what, value) of the whole run; what isn't known yet says so."""
    here = len(figures.names)
    rows = [
        (
            "islands",
            str(figures.islands) + (f" ({here} with a folder here)" if figures.islands > here else ""),
        ),
        ("parameters", f"{figures.parameters:,}" if figures.parameters else "not known until an island ends"),
        ("inner steps / outer steps", f"{figures.inner_steps:,} / {figures.outer_steps:,}"),
        (TOKENS[figures.tokens_from], f"{figures.tokens:,}"),
        ("loss on what is held out", _loss(figures.eval_loss, figures.loss_unit)),
        *((f"{name} there", f"{value:.4f}") for name, value in figures.eval_metrics.items()),
    ]
    if figures.baseline_eval_loss is not None:
        rows.append(("loss of data-parallel at equal tokens", _baseline(figures)))
    rows += [
        ("bytes sent per island", _bytes_list(figures.wan_bytes_sent)),
        ("bytes data-parallel would have sent", _optional_bytes(figures.data_parallel_bytes)),
        (
            "data-parallel / this run",
            "-" if figures.ratio is None else f"{figures.ratio:,.0f} times fewer bytes",
        ),
        ("outer states equal, bit for bit", _equal(figures)),
        ("rounds committed / failed", _rounds(figures)),
        ("ballots that came to nothing", _ballots(figures)),
        ("the last of these", figures.last_failure or "-"),
        (
            "median round",
            "-" if figures.round_s_median is None else f"{figures.round_s_median * 1000:.0f} ms",
        ),
        (
            "time waiting for the network",
            "-" if figures.wait_share is None else f"{100 * figures.wait_share:.1f} %",
        ),
        (
            "time waiting for data",
            "-" if figures.data_wait_share is None else f"{100 * figures.data_wait_share:.1f} %",
        ),
        ("wall time", duration(figures.wall_s)),
        ("tokens per second", "-" if figures.tokens_per_s is None else f"{figures.tokens_per_s:,.0f}"),
        ("gradient norm, last / highest", _norms(figures)),
        ("memory of one process, host / device", _memory(figures)),
    ]
    if figures.mfu is not None:
        rows.append(("model FLOPs of the devices' peak (MFU)", f"{100 * figures.mfu:.1f} %"))
    if figures.diverged:
        rows.insert(0, ("DIVERGED", "the loss ended above where it began: lower the learning rates"))
    return rows


TOKENS = {
    "islands": "tokens, all islands",
    "ledger": "tokens, all islands, in committed rounds",
    "here": "tokens of the islands here",
}


ISLAND_HEADINGS = (
    "island", "peer", "state", "inner steps", "tokens", "sent", "received", "rounds", "failed", "digest",
    "wall time",
)  # fmt: skip


def island_rows(run: Run, figures: RunFigures) -> list[tuple[str, ...]]:
    """One row per island, under `ISLAND_HEADINGS`."""
    rows: list[tuple[str, ...]] = []
    for index, island in enumerate(run.islands):
        last: Line = island.train[-1] if island.train else {}
        summary: Line = island.summary or {}
        digest = figures.digests[index]
        rows.append(
            (
                island.name,
                short(island.peer),
                island.reason or "running, or killed",
                f"{int(summary.get('inner_steps', last.get('inner_step', 0)) or 0):,}",
                f"{int(summary.get('tokens', last.get('tokens', 0)) or 0):,}",
                human_bytes(figures.wan_bytes_sent[index]),
                human_bytes(figures.wan_bytes_received[index]),
                str(figures.rounds_committed[index]),
                str(figures.rounds_failed[index]),
                digest[:12] if digest else "-",
                duration(island.wall_s),
            )
        )
    return rows


def duration(seconds: float) -> str:
    """Seconds in the two largest units that fit: 8.3 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _loss(loss: float | None, unit: str) -> str:
    return "not evaluated yet" if loss is None else f"{loss:.4f} {unit}".rstrip()


def _baseline(figures: RunFigures) -> str:
    loss = figures.baseline_eval_loss
    if loss is None or figures.eval_loss is None:
        return _loss(loss, figures.loss_unit)
    percent = 100 * (figures.eval_loss / loss - 1)
    return f"{loss:.4f} (this run: {percent:+.1f} %)"


def _bytes_list(counts: Sequence[int]) -> str:
    return ", ".join(human_bytes(count) for count in counts)


def _norms(figures: RunFigures) -> str:
    if figures.grad_norm is None or figures.grad_norm_max is None:
        return "-"
    return f"{figures.grad_norm:.3g} / {figures.grad_norm_max:.3g}"


def _memory(figures: RunFigures) -> str:
    return f"{_optional_bytes(figures.host_memory_bytes)} / {_optional_bytes(figures.device_memory_bytes)}"


def _optional_bytes(count: int | None) -> str:
    return "-" if count is None else human_bytes(count)


def _equal(figures: RunFigures) -> str:
    if figures.digests_equal is None:
        return "needs two islands that ended at the same outer step"
    digest = next((digest for digest in figures.digests if digest), "")
    return f"yes ({digest[:12]})" if figures.digests_equal else "NO"


def _ballots(figures: RunFigures) -> str:
    """How many, by what went wrong and whom it names."""
    rows = [
        f"{count} {KINDS.get(kind, kind)}{f' ({name})' if name else ''}"
        for kind, name, count in figures.ballots_failed
    ]
    return ", ".join(rows) or "none"


def _rounds(figures: RunFigures) -> str:
    return f"{max(figures.rounds_committed)} / {max(figures.rounds_failed)} (of the island with most)"
