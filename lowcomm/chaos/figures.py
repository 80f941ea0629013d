"""The figures of a chaos run: what `lowcomm chaos --json` writes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from lowcomm.chaos.invariants import (
    Verdict,
    check_all,
    credited_tokens,
    final_eval,
    tokens_lost,
    trained_tokens,
)
from lowcomm.chaos.records import Story
from lowcomm.types import Json


def participation(story: Story) -> float | None:
    """Participants over live peers, mean over the commits with any of these; None without any."""
    taking_part = [(len(set(c.live) & set(c.participants)), len(c.live)) for c in story.commits]
    shares = [taken / live for taken, live in taking_part if taken]
    return sum(shares) / len(shares) if shares else None


def eval_at(story: Story, tokens: int) -> float | None:
    """The anchor's loss when so many tokens were credited, between the two evaluations next to it."""
    evals: dict[int, float] = {}
    for island in story.islands:
        for life in island.lives:
            for line in life.of("eval"):
                evals[int(line["outer_step"])] = float(line["eval_loss"])
    points = [(credited_tokens(story, step), loss) for step, loss in sorted(evals.items())]
    if not points:
        return None
    for (low, loss_low), (high, loss_high) in pairwise(points):
        if low <= tokens < high:
            return loss_low + (loss_high - loss_low) * (tokens - low) / (high - low)
    return points[0][1] if tokens < points[0][0] else points[-1][1]


def contract(story: Story, fault_free: Story | None) -> dict[str, Any]:
    """These keys and no others; losses and means are null where there are none.

    `tokens_dropped` is what was trained and is in no committed round: on killed islands after what
    the others had of them, and on all when they left; `tokens_lost` of it was passed over by credits.
    """
    trained = sum(trained_tokens(island) for island in story.islands)
    credited = credited_tokens(story)
    last = final_eval(story)
    invariants: dict[str, Verdict] = check_all(story)
    return {
        "faults": [fault.to_json() for fault in story.faults],
        "invariants": invariants,
        "partition": story.partition,
        "rounds_committed": len(story.credits()),
        "outer_steps_forked": len(story.forked()),
        "participation": participation(story),
        "tokens_trained": trained,
        "tokens_credited": credited,
        "tokens_dropped": trained - credited,
        "tokens_lost": tokens_lost(story),
        "slowest_return_s": slowest_returns(story),
        "eval_loss": last["eval_loss"] if last else None,
        "fault_free_eval_loss": eval_at(fault_free, credited) if fault_free else None,
    }


def slowest_returns(story: Story) -> dict[str, float]:
    """Kind of fault -> the longest that an island took, after its end, to be in a commit again."""
    slowest: dict[str, float] = {}
    for returned in story.returns:
        slowest[returned.kind] = max(slowest.get(returned.kind, 0.0), round(returned.seconds, 1))
    return slowest


def rows(figures: dict[str, Json]) -> list[tuple[str, str]]:
    """The figures for people, one per row."""
    found = []
    for key, value in figures.items():
        if key in ("faults", "invariants", "partition"):
            continue
        if isinstance(value, dict):
            found += [(f"slowest return after {kind}", f"{seconds} s") for kind, seconds in value.items()]
            continue
        number = (
            f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else "-"
        )
        found.append((key.replace("_", " "), number))
    loss, free = figures["eval_loss"], figures["fault_free_eval_loss"]
    if isinstance(loss, float) and isinstance(free, float):
        found.append(("eval loss against fault-free", f"{100 * (loss / free - 1):+.2f} %"))
    return found
