"""The figures of a run: one flat summary that the page, the table and `--json` all print."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from lowcomm.report.runs import IslandRun, Line, Run
from lowcomm.types import Json

FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """What came out of a run.

    Attributes:
        eval_loss: of the anchor on the held-out text, nats per token; None before the first evaluation.
        baseline_eval_loss: of data-parallel training at equal tokens, where it is known.
        tokens: of all islands together.
        wan_bytes_sent, wan_bytes_received: one per island, counted on its sockets.
        data_parallel_bytes: what each island would have sent with a ring all-reduce of fp32
            gradients in each inner step; None where the number of parameters isn't known yet.
        ratio: data_parallel_bytes / the mean of wan_bytes_sent.
        digests: of the outer state at the end, one per island; None for one that has not ended.
        digests_equal: None until at least two islands have ended.
        round_s_median: of the committed rounds of all islands.
        wait_share: part of the wall time in which training stood still for the network.
    """

    run_id: str
    islands: int
    parameters: int | None
    inner_steps: int
    outer_steps: int
    tokens: int
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
    wait_share: float | None
    wall_s: float

    def to_dict(self) -> dict[str, Json]:
        """The same as JSON's types."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in self.__dict__.items()
        }


def ring_bytes(islands: int, parameters: int, inner_steps: int) -> int:
    """Bytes that one of `islands` sends in `inner_steps` ring all-reduces of fp32 gradients.

    Each sends 2 (N-1)/N of the buffer: reduce-scatter and all-gather, N-1 pieces of 1/N each
    (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).
    """
    return 2 * (islands - 1) * FP32_BYTES * parameters * inner_steps // islands


def run_figures(run: Run) -> RunFigures:
    """Sum up a run, ended or not."""
    islands = run.islands
    parameters = _first(_of_summary(island, "parameters") for island in islands)
    steps = [_inner_steps(island) for island in islands]
    inner_steps = max(steps) if run.equal_steps else round(statistics.fmean(steps))
    sent = tuple(_sent(island, "wan_bytes_sent", "bytes_sent") for island in islands)
    whole = None if parameters is None else ring_bytes(len(islands), int(parameters), inner_steps)
    digests = tuple(_digest(island) for island in islands)
    known = [digest for digest in digests if digest is not None]
    committed = [line["round_s"] for island in islands for line in island.rounds if line.get("committed")]
    baseline = run.baseline.get("eval_loss") if run.baseline else None
    mean_sent = statistics.fmean(sent)
    return RunFigures(
        run_id=run.run_id,
        islands=len(islands),
        parameters=None if parameters is None else int(parameters),
        inner_steps=inner_steps,
        outer_steps=max(_outer_steps(island) for island in islands),
        tokens=sum(_tokens(island) for island in islands),
        eval_loss=_eval_loss(islands),
        baseline_eval_loss=None if baseline is None else float(baseline),
        wan_bytes_sent=sent,
        wan_bytes_received=tuple(_sent(island, "wan_bytes_received", "bytes_received") for island in islands),
        data_parallel_bytes=whole,
        ratio=whole / mean_sent if whole and mean_sent else None,
        digests=digests,
        digests_equal=len(set(known)) == 1 and len(known) == len(digests) if len(known) > 1 else None,
        rounds_committed=tuple(_rounds(island, committed=True) for island in islands),
        rounds_failed=tuple(_rounds(island, committed=False) for island in islands),
        round_s_median=statistics.median(committed) if committed else None,
        wait_share=_wait_share(islands),
        wall_s=max(island.wall_s for island in islands),
    )


def _of_summary(island: IslandRun, key: str) -> float | None:
    value = (island.summary or {}).get(key)
    return value if isinstance(value, (int, float)) else None


def _first(values: object) -> float | None:
    return next((value for value in values if value is not None), None)  # type: ignore[attr-defined]


def _sent(island: IslandRun, summary_key: str, line_key: str) -> int:
    """Bytes over all sessions; summary.json counts those of the last one, to its very end."""
    logged = max((int(line.get(line_key, 0)) for line in island.train), default=0)
    ended = _of_summary(island, summary_key)
    return logged if ended is None else max(logged, int(island.before[line_key] + ended))


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


def _wait_share(islands: tuple[IslandRun, ...]) -> float | None:
    parts = [
        island.train[-1]["wait_s"] / (island.train[-1]["wait_s"] + island.train[-1]["compute_s"])
        for island in islands
        if island.train and island.train[-1]["wait_s"] + island.train[-1]["compute_s"] > 0
    ]
    return statistics.fmean(parts) if parts else None
