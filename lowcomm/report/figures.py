"""The figures of a run: one flat summary that the page, the table and `--json` all print."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from lowcomm.metrics.summary import data_parallel_bytes, mean_islands
from lowcomm.reasons import called_by, count_failed
from lowcomm.report.runs import IslandRun, Line, Run
from lowcomm.types import Json, PeerId


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """What came out of a run.

    Attributes:
        eval_loss: of the anchor on what is held out, in `loss_unit`; None before the first evaluation.
        eval_metrics: what the task tells beside it, e.g. `accuracy`.
        baseline_eval_loss: of data-parallel training at equal tokens, where it is known.
        islands: that took part in the run, with a folder here or not.
        names: of those with a folder; the tuples below have their figures, in this order.
        mean_islands: how many shared the work in the mean, see `lowcomm.metrics.summary.mean_islands`.
        tokens: of all islands together.
        tokens_from: where that comes from: the islands' own counts; where not all have a folder here, the
            ledger's credits; where these aren't known either, the islands that are here.
        wan_bytes_sent, wan_bytes_received: counted on the sockets, over all sessions.
        data_parallel_bytes: what each island would have sent with a ring all-reduce of fp32
            gradients in each inner step; None where the number of parameters isn't known yet.
        diverged: whether the loss ended clearly above where it began, on any island.
        tokens_per_s: of the islands here together, the median over each one's lines.
        grad_norm, grad_norm_max: of the last lines, and the highest of the run.
        mfu: part of the devices' peak that the model's FLOPs are, where that peak is known.
        host_memory_bytes, device_memory_bytes: the most that one process has had.
        ratio: data_parallel_bytes / the mean of wan_bytes_sent.
        digests: of the outer state at the end, one per island; None for one that has not ended.
        digests_equal: None unless at least two islands have ended, all at the same outer step.
        round_s_median: of the committed rounds of all islands.
        ballots_failed: (kind of reason, island that it names, how often), as the island with most counted;
            also those of rounds that then committed.
        last_failure: why the newest round that needed more than one ballot, or was not committed, did.
        wait_share: part of the time of training in which it stood still for the network.
        data_wait_share: the same for batches.
    """

    run_id: str
    names: tuple[str, ...]
    islands: int
    mean_islands: float
    parameters: int | None
    inner_steps: int
    outer_steps: int
    tokens: int
    tokens_from: Literal["islands", "ledger", "here"]
    loss_unit: str
    eval_metrics: dict[str, float]
    eval_loss: float | None
    baseline_eval_loss: float | None
    wan_bytes_sent: tuple[int, ...]
    wan_bytes_received: tuple[int, ...]
    data_parallel_bytes: int | None
    ratio: float | None
    digests: tuple[str | None, ...]
    digests_equal: bool | None
    rounds_committed: tuple[int, ...]
    rounds_failed: tuple[int, ...]
    round_s_median: float | None
    ballots_failed: tuple[tuple[str, str, int], ...]
    last_failure: str
    wait_share: float | None
    data_wait_share: float | None
    wall_s: float
    diverged: bool
    tokens_per_s: float | None
    grad_norm: float | None
    grad_norm_max: float | None
    mfu: float | None
    host_memory_bytes: int | None
    device_memory_bytes: int | None

    def to_dict(self) -> dict[str, Json]:
        """The same as JSON's types."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.__dict__.items()
        }


def run_figures(run: Run) -> RunFigures:
    """Sum up a run, ended or not."""
    islands = run.islands
    parameters = _first(
        _of_summary(island, "parameters") or _value(island.start, "parameters") for island in islands
    )
    steps = [_inner_steps(island) for island in islands]
    inner_steps = max(steps) if run.equal_steps else round(statistics.fmean(steps))
    sent = tuple(_sent(island, "wan_bytes_sent", "bytes_sent") for island in islands)
    shared_by = _mean_islands(run)
    whole = _data_parallel_bytes(run, shared_by, parameters, inner_steps)
    tokens, tokens_from = _tokens_of_all(run)
    digests = tuple(_digest(island) for island in islands)
    committed = [line["round_s"] for island in islands for line in island.rounds if line.get("committed")]
    baseline = run.baseline.get("eval_loss") if run.baseline else None
    mean_sent = statistics.fmean(sent)
    return RunFigures(
        run_id=run.run_id,
        names=tuple(island.name for island in islands),
        islands=len(run.peers),
        mean_islands=shared_by,
        parameters=None if parameters is None else int(parameters),
        inner_steps=inner_steps,
        outer_steps=max(_outer_steps(island) for island in islands),
        tokens=tokens,
        tokens_from=tokens_from,
        loss_unit=run.loss_unit,
        eval_metrics=run.eval_metrics,
        eval_loss=_eval_loss(islands),
        baseline_eval_loss=None if baseline is None else float(baseline),
        wan_bytes_sent=sent,
        wan_bytes_received=tuple(_sent(island, "wan_bytes_received", "bytes_received") for island in islands),
        data_parallel_bytes=whole,
        ratio=whole / mean_sent if whole and mean_sent else None,
        digests=digests,
        digests_equal=_digests_equal(islands),
        rounds_committed=tuple(_rounds(island, committed=True) for island in islands),
        rounds_failed=tuple(_rounds(island, committed=False) for island in islands),
        round_s_median=statistics.median(committed) if committed else None,
        ballots_failed=_ballots_failed(run),
        last_failure=_last_failure(run),
        wait_share=_share("wait_s", islands),
        data_wait_share=_share("data_s", islands),
        wall_s=max(island.wall_s for island in islands),
        diverged=any(bool((island.summary or {}).get("diverged")) for island in islands),
        tokens_per_s=_over_islands(run, "tokens_per_s", statistics.median, sum),
        grad_norm=_over_islands(run, "grad_norm", lambda values: values[-1], statistics.fmean),
        grad_norm_max=_over_islands(run, "grad_norm_max", max, max),
        mfu=_over_islands(run, "mfu", statistics.median, statistics.fmean),
        host_memory_bytes=_whole(_over_islands(run, "host_memory_bytes", max, max)),
        device_memory_bytes=_whole(_over_islands(run, "device_memory_bytes", max, max)),
    )


def _ballots_failed(run: Run) -> tuple[tuple[str, str, int], ...]:
    counts: Counter[tuple[str, str]] = Counter()
    for island in run.islands:
        counts |= count_failed(island.rounds)
    called = called_by(run.names)
    rows = [(kind, called(PeerId(peer)) if peer else "", count) for (kind, peer), count in counts.items()]
    return tuple(sorted(rows, key=lambda row: (-row[2], row)))


def _last_failure(run: Run) -> str:
    told = [(line, island.name) for island in run.islands for line in island.rounds if run.why(line)]
    if not told:
        return ""
    line, name = max(told, key=lambda pair: float(pair[0].get("time_s") or 0.0))
    after = "" if line.get("committed") else "after "
    where = f"{after}outer step {line.get('outer_step', 0)} of fragment {line.get('fragment', 0)}"
    return f"{run.why(line)} ({where}, told by {name})"


def _mean_islands(run: Run) -> float:
    """As the islands counted it up to their end; before that by their lines."""
    ended = [value for island in run.islands if (value := _of_summary(island, "mean_islands")) is not None]
    if ended:
        return statistics.fmean(ended)
    rounds = [
        (float(line.get("tokens") or 0), len(line.get("participants") or ()))
        for island in run.islands
        for line in island.rounds
        if line.get("committed") and line.get("fragment", 0) == 0 and line.get("participants")
    ]
    tokens, even = sum(own for own, _ in rounds), sum(own / count for own, count in rounds)
    return mean_islands(tokens, even, len(run.peers))


def _data_parallel_bytes(run: Run, islands: float, parameters: float | None, inner_steps: int) -> int | None:
    """As the islands' summaries have it; before that by the same rule."""
    ended = [
        float((island.summary or {}).get("data_parallel_bytes", 0))
        for island in run.islands
        if _of_summary(island, "mean_islands") is not None
    ]
    if ended:
        return round(statistics.fmean(ended))
    return None if parameters is None else data_parallel_bytes(islands, int(parameters), inner_steps)


def _tokens_of_all(run: Run) -> tuple[int, Literal["islands", "ledger", "here"]]:
    here = sum(_tokens(island) for island in run.islands)
    if run.complete:
        return here, "islands"
    credited = max(int(max(_credited(island), default=0)) for island in run.islands)
    return (credited, "ledger") if credited else (here, "here")


def _credited(island: IslandRun) -> Iterable[float]:
    """What the ledger credits to all islands, wherever it is told."""
    yield _of_summary(island, "swarm_tokens") or 0.0
    for line in island.rounds:
        if line.get("committed") and line.get("fragment", 0) == 0:
            yield _value(line, "total_tokens") or 0.0
    for line in island.evals:
        yield _value(line, "swarm_tokens") or 0.0


def _over_islands(
    run: Run,
    key: str,
    over_lines: Callable[[list[float]], float],
    over_islands: Callable[[list[float]], float],
) -> float | None:
    """A field of the train lines, of each island and then of all that have it."""
    of_each = [
        [value for line in island.train if (value := _value(line, key)) is not None] for island in run.islands
    ]
    known = [over_lines(values) for values in of_each if values]
    return over_islands(known) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _of_summary(island: IslandRun, key: str) -> float | None:
    return _value(island.summary or {}, key)


def _value(line: Line, key: str) -> float | None:
    value = line.get(key)
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return value if known else None


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _sent(island: IslandRun, summary_key: str, line_key: str) -> int:
    """Bytes over all sessions, to the very end where there is one."""
    logged = max((int(line.get(line_key, 0)) for line in island.train), default=0)
    return max(logged, int(_of_summary(island, summary_key) or 0))


def _tokens(island: IslandRun) -> int:
    ended = _of_summary(island, "tokens")
    return _last(island.train, "tokens") if ended is None else int(ended)


def _inner_steps(island: IslandRun) -> int:
    ended = _of_summary(island, "inner_steps")
    return int(ended) if ended is not None else _last(island.train, "inner_step")


def _outer_steps(island: IslandRun) -> int:
    ended = _of_summary(island, "outer_steps")
    return int(ended) if ended is not None else _last(island.train, "outer_step")


def _last(lines: tuple[Line, ...], key: str) -> int:
    return int(lines[-1].get(key, 0)) if lines else 0


def _digest(island: IslandRun) -> str | None:
    value = (island.summary or {}).get("digest")
    return value if isinstance(value, str) and value else None


def _digests_equal(islands: tuple[IslandRun, ...]) -> bool | None:
    """States of different outer steps differ, and say nothing."""
    ended = [island for island in islands if _digest(island) is not None]
    if len(ended) < 2 or len({_outer_steps(island) for island in ended}) > 1:
        return None
    return len({_digest(island) for island in ended}) == 1


def _eval_loss(islands: tuple[IslandRun, ...]) -> float | None:
    """The islands evaluate the same anchor on the same text: the first that has a figure speaks."""
    for island in islands:
        ended = _of_summary(island, "eval_loss")
        if ended is not None:
            return ended
    logged = [line for island in islands for line in island.evals]
    newest = max(logged, key=lambda line: line.get("inner_step", 0), default=None)
    return None if newest is None else float(newest["eval_loss"])


def _rounds(island: IslandRun, *, committed: bool) -> int:
    ended = _of_summary(island, "rounds_committed" if committed else "rounds_failed")
    logged = sum(bool(line.get("committed")) == committed for line in island.rounds)
    return max(logged, int(ended)) if ended is not None else logged


def _share(key: str, islands: tuple[IslandRun, ...]) -> float | None:
    """Of one counter in the time of training, the mean of the islands."""
    lasts = [island.train[-1] for island in islands if island.train]
    wholes = [sum(line[name] for name in ("compute_s", "data_s", "wait_s")) for line in lasts]
    parts = [line[key] / whole for line, whole in zip(lasts, wholes, strict=True) if whole > 0]
    return statistics.fmean(parts) if parts else None
