"""The run on the terminal: a progress bar, or a plain line per log where there is no terminal."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lowcomm.metrics.base import Record
from lowcomm.reasons import why_of
from lowcomm.types import Json

NAMES_SHOWN = 8
STEPS, TOKENS = "inner_step", "swarm_tokens"
"""What a run is counted in, as lines name it."""


class PlainSink:
    """One line per record.

    Args:
        total: inner steps, or tokens of all islands, of the whole run.
        key: which of the two, as lines name it: `inner_step` or `swarm_tokens`.
        stream: where the lines go; the standard error by default.
    """

    def __init__(self, total: int, stream: TextIO | None = None, key: str = STEPS) -> None:
        self._total, self._key = total, key
        self._stream = stream if stream is not None else sys.stderr

    def log(self, record: Record) -> None:
        line = describe(record, self._total, self._key)
        if line:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        return None


class ProgressSink:
    """A bar over the inner steps with the figures of the moment; rounds scroll by above it.

    Args:
        total: inner steps, or tokens of all islands, of the whole run.
        key: which of the two, as lines name it: `inner_step` or `swarm_tokens`.
        console: where it is drawn; the standard error by default.
    """

    def __init__(self, total: int, console: Console | None = None, key: str = STEPS) -> None:
        self._total, self._key = total, key
        self._console = console if console is not None else Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            transient=False,
        )
        self._task = self._progress.add_task("", total=total, figures="waiting for the swarm")
        self._progress.start()

    def log(self, record: Record) -> None:
        kind = record.get("kind")
        if kind == "train":
            self._progress.update(self._task, completed=_number(record, self._key), figures=_figures(record))
            return
        if kind == "start":
            self._progress.update(self._task, completed=_number(record, self._key))
        line = describe(record, self._total, self._key)
        if line:
            self._console.print(line, markup=False)

    def close(self) -> None:
        self._progress.stop()


def console_sink(
    mode: str, total: int, stream: TextIO | None = None, key: str = STEPS
) -> PlainSink | ProgressSink | None:
    """The sink for `metrics.console`: auto, progress, plain or off (None).

    Args:
        mode: auto draws a bar if the standard error is a terminal.
        total: inner steps, or tokens of all islands, of the whole run.
        key: which of the two, as lines name it: `inner_step` or `swarm_tokens`.
        stream: used instead of the standard error.
    """
    out = stream if stream is not None else sys.stderr
    if mode == "off" or out is None:  # a process may have been started without a standard error
        return None
    if mode == "progress" or (mode == "auto" and out.isatty()):
        return ProgressSink(total, Console(file=out, highlight=False), key)
    return PlainSink(total, out, key)


def position(record: Record, total: int, key: str) -> str:
    """How far a train line is: `step 30/300`, or `1,024/9,999 tokens` of all islands."""
    if key == STEPS:
        return f"step {int(_number(record, key))}/{total}"
    return f"{int(_number(record, key)):,}/{total:,} tokens"


def describe(record: Record, total: int, key: str = STEPS) -> str:
    """One line for a record; empty for kinds that aren't shown."""
    kind = record.get("kind")
    if kind == "train":
        return f"{position(record, total, key)}  {_figures(record)}"
    if kind == "round":
        return _round_line(record)
    if kind == "eval":
        return (
            f"eval at step {int(_number(record, 'inner_step'))}: loss {_number(record, 'eval_loss'):.4f}"
            f" {record.get('unit', 'nats')}".rstrip()
            + f"{_beside(record)} after {int(_number(record, 'tokens')):,} tokens of this island"
        )
    if kind == "start":
        how, saved = record.get("how"), record.get("resumed_from")
        if saved is not None:  # nobody was there, or what was taken over beside it
            how = f"resumed from step {saved}" + ("" if how == "founded" else f", {how}")
        joined = f" ({how}, at inner step {int(_number(record, 'inner_step'))})" if how else ""
        named = f"{name}, " if (name := record.get("name")) else ""
        run = f"run {record.get('run_id', '?')} as {named}peer {short(record.get('peer'))}{joined}"
        return "\n".join([run, *_opening_lines(record)])
    if kind == "end":
        return f"{record.get('reason', 'ended')} after {_number(record, 'time_s'):.1f} s{_waited(record)}"
    return ""


def short(name: Json) -> str:
    """The last eight characters of a peer id: the first ones are the same for all peers."""
    text = str(name) if name is not None else "?"
    return text if len(text) <= 10 else "…" + text[-8:]


def human_bytes(count: float) -> str:
    """`count` bytes with a decimal unit: 999 B, 1.5 kB, 23.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def time_split(record: Record) -> str:
    """Compute / wait / transfer as percentages of their sum ("-" before anything was measured).

    The wait is that for rounds and for batches. The transfer runs beside the training, so that it is time of
    the link, not of the processor.
    """
    waited = _number(record, "data_s") + _number(record, "wait_s")
    parts = [_number(record, "compute_s"), waited, _number(record, "transfer_s")]
    whole = sum(parts)
    if whole <= 0:
        return "-"
    return "/".join(f"{100 * part / whole:.0f}" for part in parts) + " %"


def _figures(record: Record) -> str:
    return (
        f"loss {_number(record, 'loss'):.3f}  {_number(record, 'tokens_per_s'):,.0f} tok/s"
        f"  outer {int(_number(record, 'outer_step'))}  peers {int(_number(record, 'peers'))}"
        f"  sent {human_bytes(_number(record, 'bytes_sent'))}"
        f"  compute/wait/transfer {time_split(record)}"
    )


def _opening_lines(record: Record) -> list[str]:
    """What is trained on what; see `lowcomm.training.opening`. Nothing for runs that don't say it."""
    if "documents" not in record:
        return []
    shard, left_out = int(_number(record, "shard")), int(_number(record, "left_out_files"))
    part = f"shard {shard} has {_count(record, 'epoch_tokens')} of {_count(record, 'all_epoch_tokens')}"
    ranks, files = int(_number(record, "ranks")), "file is" if left_out == 1 else "files are"
    return [
        f"data: {_count(record, 'documents')} documents, {human_bytes(_number(record, 'text_bytes'))}"
        f"{f' ({left_out:,} {files} left out)' if left_out else ''}, digest"
        f" {str(record.get('data_digest'))[:12]}; tokens in an epoch:"
        f" {part if shard >= 0 else _count(record, 'epoch_tokens')}",
        f"model: {_count(record, 'parameters')} parameters on {record.get('device')} in"
        f" {record.get('precision')}, {record.get('engine')} with {ranks} rank{'s' if ranks > 1 else ''};"
        f" {_count(record, 'step_tokens')} tokens in an inner step of this island",
    ]


def _beside(record: Record) -> str:
    """What a task tells beside its loss: `, accuracy 0.9400`."""
    found = {key.removeprefix("eval_"): record[key] for key in record if key.startswith("eval_")}
    return "".join(f", {name} {value:.4f}" for name, value in found.items() if name != "loss")


def _waited(record: Record) -> str:
    """The share of waits for data, where the summary of an end line tells it."""
    summary = record.get("summary")
    share = summary.get("data_wait_share") if isinstance(summary, dict) else None
    return f"; {share:.1%} of the time of training waited for data" if isinstance(share, float) else ""


def _count(record: Record, key: str) -> str:
    return f"{int(_number(record, key)):,}"


def _round_line(record: Record) -> str:
    fragment, step = int(_number(record, "fragment")), int(_number(record, "outer_step"))
    if not record.get("committed"):
        return (
            f"round of fragment {fragment} not committed, outer step stays {step}:"
            f" {why_of(record) or 'no reason given'}; the progress goes into the next round"
        )
    participants = record.get("participants")
    who = participants if isinstance(participants, list) else []
    cosine = record.get("cosine")
    after = why_of(record)
    alike = f", cosine {cosine:.2f}" if isinstance(cosine, (int, float)) else ""
    return (
        f"outer step {step} of fragment {fragment}: {_islands(who, _names(record))},"
        f" {_number(record, 'round_s'):.2f} s, sent {human_bytes(_number(record, 'bytes_sent'))}{alike},"
        f" digest {str(record.get('digest', ''))[:12]}{f' (after: {after})' if after else ''}"
    )


def _names(record: Record) -> dict[str, Json]:
    names = record.get("names")
    return names if isinstance(names, dict) else {}


def _islands(participants: list[Json], names: dict[str, Json]) -> str:
    """How many, and who, as long as that fits into a line."""
    count = f"{len(participants)} island{'' if len(participants) == 1 else 's'}"
    known = sorted(str(names.get(str(peer)) or short(peer)) for peer in participants)
    return f"{count} ({', '.join(known)})" if names and len(known) <= NAMES_SHOWN else count


def _number(record: Record, key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0
