"""What a long run costs early and late: memory and time per round, by tenths of its rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lowcomm.clock import process_cpu_s
from lowcomm.errors import ConfigError
from lowcomm.types import Json

TENTHS = 10
EARLY, LATE = 1, 9
"""The second tenth, after all is warm, and the last."""
MOST_GROWTH = 0.05
REFERENCE = "reference_ms"
"""Processor time of a fixed piece of work, which says how fast the machine was at a look."""
REFERENCE_STEPS = 50_000
BUSY = ("wall_ms", "processor_ms")
"""What says little where that was not the same early and late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A look at a run.

    Attributes:
        rounds: committed so far.
        times: seconds so far, by what is measured: `wall_s`, `processor_s`.
        sizes: what must not grow, by name; sizes of memory in MiB, else counts.
    """

    rounds: int
    times: Mapping[str, float]
    sizes: Mapping[str, float]


def tenths(samples: Sequence[Sample], rounds: int) -> dict[str, list[float]]:
    """Ten values of each size, its mean, and of each time, in ms per round; in the order of the rounds.

    Raises:
        ConfigError: a tenth has fewer than two looks.
    """
    parts: list[list[Sample]] = [[] for _ in range(TENTHS)]
    for sample in samples:
        if sample.rounds < rounds:
            parts[sample.rounds * TENTHS // rounds].append(sample)
    if any(len(part) < 2 for part in parts):
        raise ConfigError(f"--rounds {rounds}: expected enough for two looks in each tenth; take more")
    ends = [*(part[0] for part in parts), samples[-1]]
    found: dict[str, list[float]] = {}
    for name in samples[0].times:
        found[f"{name.removesuffix('_s')}_ms"] = [
            1e3 * (after.times[name] - before.times[name]) / (after.rounds - before.rounds)
            for before, after in pairwise(ends)
        ]
    for name in samples[0].sizes:
        found[name] = [statistics.fmean(sample.sizes[name] for sample in part) for part in parts]
    found["processor_per_reference"] = [
        taken / reference for taken, reference in zip(found["processor_ms"], found[REFERENCE], strict=True)
    ]
    return found


def growth(values: Sequence[float]) -> float:
    """By which share the last tenth is above the second."""
    return values[LATE] / values[EARLY] - 1 if values[EARLY] else float(values[LATE] > 0)


def figures(samples: Sequence[Sample], rounds: int) -> dict[str, Json]:
    """For the log: each measure by tenths, and how much it grew."""
    return {
        name: {"tenths": [round(value, 3) for value in values], "growth": round(growth(values), 4)}
        for name, values in tenths(samples, rounds).items()
    }


def rows(log: Mapping[str, Json]) -> list[tuple[str, str, str, str]]:
    """For people: each measure in the second and in the last tenth."""
    found = []
    for name, measure in log.items():
        assert isinstance(measure, dict)
        values, grown = measure["tenths"], measure["growth"]
        assert isinstance(values, list)
        found.append((name.replace("_", " "), f"{values[EARLY]:,}", f"{values[LATE]:,}", f"{grown:+.1%}"))
    return found


def grown(log: Mapping[str, Json]) -> list[str]:
    """One sentence for each measure that grew by more than a twentieth.

    Times are left out where the machine became slower or faster by as much: what they came to in units of the
    fixed piece of work is among the measures.
    """
    growths = {
        name: more
        for name, measure in log.items()
        if isinstance(measure, dict) and isinstance(more := measure["growth"], float)
    }
    steady = abs(growths[REFERENCE]) <= MOST_GROWTH
    judged = [name for name in growths if name != REFERENCE and (steady or name not in BUSY)]
    return [
        f"{name}: expected at most {MOST_GROWTH:.0%} more in the last tenth of rounds than in the second, "
        f"got {growths[name]:+.1%}"
        for name in judged
        if growths[name] > MOST_GROWTH
    ]


def reference_s() -> float:
    """Processor seconds of the fixed piece of work, now."""
    began_s, value = process_cpu_s(), 0
    for number in range(REFERENCE_STEPS):
        value = (value * 31 + number) % 1_000_003
    return process_cpu_s() - began_s
