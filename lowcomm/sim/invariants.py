"""What must hold in every run, whatever went wrong in it."""

from __future__ import annotations

from collections import defaultdict

from lowcomm.ledger.entry import Entry
from lowcomm.sim.swarm import Outcome, name
from lowcomm.spans import size


def broken(outcome: Outcome) -> list[str]:
    """One sentence per invariant that did not hold; empty = all is well."""
    return [
        *outcome.errors,
        *_one_history(outcome),
        *_monotone(outcome),
        *_tokens(outcome),
        *_samples(outcome),
        *(lost(outcome) if outcome.settings.policy.partition == "majority" else ()),
        *_together_again(outcome),
    ]


def lost(outcome: Outcome) -> list[str]:
    """G8: what an island counts as credited is in the history that all have at the end, once.

    One sentence per island and fragment of which it is not. Where sides of a split both commit it isn't.
    """
    lives: dict[int, int] = defaultdict(int)
    for life in outcome.lives:
        lives[life.number] += 1
    problems = []
    for fragment in range(outcome.settings.schedule.num_fragments):
        history = _history(outcome, fragment)
        for life in outcome.final:
            if lives[life.number] > 1:
                continue  # an earlier life's last commit may not have been counted before it was killed
            height = life.node.state.chains[fragment].outer_step
            ledger = sum(
                entry.tokens_of(name(life.number)) or 0 for entry in history if entry.outer_step <= height
            )
            credited = life.credited[fragment] + life.node.submissions.late_tokens(fragment)
            if ledger != credited:
                problems.append(
                    f"{name(life.number)}, fragment {fragment}: counts {credited} tokens as credited, "
                    f"the ledger credits {ledger}"
                )
    return problems


def _history(outcome: Outcome, fragment: int) -> list[Entry]:
    """The entries up to the furthest head at the end, newest first."""
    entries = {e.hash: e for life in outcome.lives for e in life.record.entries if e.fragment == fragment}
    chain = max((life.node.state.chains[fragment] for life in outcome.final), key=lambda c: c.standing)
    found, head = [], chain.head
    while head in entries:
        found.append(entries[head])
        head = entries[head].previous
    return found


def _one_history(outcome: Outcome) -> list[str]:
    """G1 and G2: an outer step of a fragment has one entry, so one state and one participant set."""
    if outcome.settings.policy.partition == "continue":
        return []  # sides of a split may both commit; that they are repaired is checked at the end
    found: dict[tuple[int, int], set[str]] = defaultdict(set)
    for life in outcome.lives:
        for entry in life.record.entries:
            found[entry.fragment, entry.outer_step].add(entry.hash)
    return [
        f"fragment {fragment}, outer step {outer_step}: {len(hashes)} different entries were committed"
        for (fragment, outer_step), hashes in sorted(found.items())
        if len(hashes) > 1
    ]


def _monotone(outcome: Outcome) -> list[str]:
    """Without forks an outer step only ever grows in one life."""
    if outcome.settings.policy.partition == "continue":
        return []
    problems = []
    for life in outcome.lives:
        last: dict[int, int] = defaultdict(int)
        for entry in life.record.entries:
            if entry.outer_step <= last[entry.fragment]:
                problems.append(f"{name(life.number)}: outer step {entry.outer_step} came twice or late")
            last[entry.fragment] = entry.outer_step
    return problems


def _tokens(outcome: Outcome) -> list[str]:
    """G8: what an island has trained is credited, or still to come."""
    problems = []
    for life in outcome.lives:
        # the first fragment stands for the model where a life goes on from what others know of one before
        for fragment, credited in enumerate(life.credited[: 1 if life.goes_on else None]):
            trained, left = life.progress.tokens_trained, life.progress.tokens[fragment]
            dropped = life.dropped[fragment] if fragment else life.progress.tokens_dropped
            if credited + left + dropped != trained:
                problems.append(
                    f"{name(life.number)}, fragment {fragment}: trained {trained} tokens, "
                    f"credited {credited}, still to come {left}"
                )
    return problems


def _samples(outcome: Outcome) -> list[str]:
    """G8 in samples, each of one token: the anchor has seen as many as tokens are credited, or says of which
    it has not that they came twice.
    """
    problems = []
    for life in outcome.final:
        last = life.node.state.chains[0].last
        named = last.samples if last else None
        if last is None or named is None:
            continue
        seen = size(named.credited)
        if seen + named.twice + named.uncounted != last.total_tokens:
            problems.append(
                f"{name(life.number)}: {last.total_tokens} tokens are credited, and {seen} samples with "
                f"{named.twice} twice"
            )
    return problems


def _together_again(outcome: Outcome) -> list[str]:
    """After the faults all are at (nearly) the same outer step of one history, and further than before."""
    problems = []
    fragments = outcome.settings.schedule.num_fragments
    for fragment in range(fragments):
        final = {number: standings[fragment] for number, standings in outcome.final_standings.items()}
        steps = {number: standing.outer_step for number, standing in final.items()}
        before = max(standings[fragment] for standings in outcome.standings_when_quiet.values())
        if max(steps.values()) - min(steps.values()) > 1:
            problems.append(f"fragment {fragment}: the islands are apart at the end: {steps}")
        if min(final.values()) <= before:
            problems.append(f"fragment {fragment}: no progress after the faults: {before} -> {final}")
        by_step: dict[int, set[str]] = defaultdict(set)
        for number, step in steps.items():
            by_step[step].add(outcome.final_heads[number][fragment])
        if any(len(heads) > 1 for heads in by_step.values()):
            problems.append(f"fragment {fragment}: forked at the end, at {sorted(by_step)}")
    last = [max((r.outer_step for r in i.reports if r.committed), default=0) for i in outcome.final]
    biggest = max(
        (len(r.participants) for i in outcome.final for r in i.reports[-4:] if r.committed), default=0
    )
    if biggest < len(outcome.final):
        problems.append(f"the last rounds had at most {biggest} of {len(outcome.final)} islands ({last})")
    return problems
