"""What must hold after every chaos run: each check returns True, or a sentence that names what broke.

They read what the islands wrote themselves (metrics.jsonl, ledger.jsonl) and what the player saw
from outside; docs/guarantees.md says which guarantee each stands for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from lowcomm.chaos.records import IslandLog, Life, Line, Story
from lowcomm.chaos.tape import ON_REQUEST

Verdict = bool | str
"""True, or what is wrong."""
TOGETHER_S = 60.0


def digests_equal(story: Story) -> Verdict:
    """G1, G2: an outer step of a fragment has one state and one entry on all islands.

    Where sides of a split may both commit, equal entries have equal states, and all end with one history.
    """
    if story.partition == "continue":
        return _one_history_at_the_end(story)
    states: dict[tuple[int, int], dict[str, str]] = defaultdict(dict)
    heads: dict[tuple[int, int], dict[str, str]] = defaultdict(dict)
    for island in story.islands:
        for life in island.lives:
            for line in life.commits:
                step = (line["fragment"], line["outer_step"])
                states[step].setdefault(line["digest"], island.name)
        for line in island.ledger:
            step = (line["fragment"], line["outer_step"])
            states[step].setdefault(line["state_digest"], island.name)
            heads[step].setdefault(line["head"] if line.get("snapshot") else line["hash"], island.name)
    for what, found in (("states", states), ("entries", heads)):
        for (fragment, outer_step), by in sorted(found.items()):
            if len(by) > 1:
                sides = ", ".join(f"{name}: {digest[:12]}" for digest, name in by.items())
                return f"fragment {fragment}, outer step {outer_step} has {len(by)} {what} ({sides})"
    return True if states else "nothing was committed"


def _one_history_at_the_end(story: Story) -> Verdict:
    history = story.credits()
    if not history:
        return "nothing was committed"
    states = dict[str, str]()
    for island in story.islands:
        for line in island.ledger:
            head = str(line["head"] if line.get("snapshot") else line["hash"])
            if states.setdefault(head, line["state_digest"]) != line["state_digest"]:
                return f"entry {head[:12]}, outer step {line['outer_step']}: another state on {island.name}"
        own = [line for line in island.ledger if line["fragment"] == 0]
        if not own or not island.stayed:
            continue
        step, head = int(own[-1]["outer_step"]), own[-1]["head" if own[-1].get("snapshot") else "hash"]
        if step not in history or history[step]["hash"] != head:
            return f"{island.name} ends with another history, at outer step {step}: {head[:12]}"
    return True


def outer_step_monotone(story: Story) -> Verdict:
    """An island commits each outer step of a fragment once, and in order, over all its lives.

    Of those in the run's history, where sides of a split may both commit.
    """
    history = {line["state_digest"] for line in story.credits().values()}
    forks = story.partition == "continue"
    for island in story.islands:
        last: dict[int, int] = defaultdict(int)
        for life in island.lives:
            for line in life.commits:
                if forks and line["digest"] not in history:
                    continue
                if line["outer_step"] <= last[line["fragment"]]:
                    return (
                        f"{island.name}: outer step {line['outer_step']} of fragment {line['fragment']} was "
                        f"committed after {last[line['fragment']]}"
                    )
                last[line["fragment"]] = line["outer_step"]
    return True


def tokens_accounted(story: Story) -> Verdict:
    """G8: trained = credited + dropped; no token twice; what an island counts is what the ledger says."""
    entries = story.credits()
    for island in story.islands:
        spare = story.batch_tokens * sum(life.ended != "left" for life in island.lives)
        trained, credited = trained_tokens(island), sum(_credited(island.peer, entries).values())
        if credited > trained + spare:
            return f"{island.name}: the ledger credits {credited:,} tokens, it has trained {trained:,}"
        for life in island.lives:
            for problem in (_resumed(island, life, entries), _summed_up(island, life, entries)):
                if problem:
                    return f"{island.name}: {problem}"
    return True


def residual_conserved(story: Story) -> Verdict:
    """G3: what encodings lost stays as it is until the round that sends it commits."""
    seen = False
    for island in story.islands:
        for life in island.lives:
            kept: dict[int, float] = {}
            for line in life.of("round"):
                before, after = line.get("residual_before"), line.get("residual_norm")
                if before is None or after is None:
                    continue
                seen = seen or after > 0
                expected = kept.get(line["fragment"])
                where = f"{island.name}, outer step {line['outer_step']}"
                if expected is not None and before != expected:
                    return (
                        f"{where}: the residual went from {expected:.6g} to {before:.6g} between two rounds"
                    )
                if not line["committed"] and not line["adopted"] and after != before:
                    return f"{where}: no commit, but the residual went from {before:.6g} to {after:.6g}"
                kept[line["fragment"]] = after
    return True if seen else "no island has kept a residual; is error feedback on?"


def credited_once(story: Story) -> Verdict:
    """G8: no token of an island is in two entries of the history."""
    for name, ranges in _contributions(story):
        end = 0
        for outer_step, start, tokens in ranges:
            if start < end:
                return (
                    f"{name}: outer step {outer_step} credits {tokens:,} tokens from {start:,} on, but those "
                    f"up to {end:,} were credited before"
                )
            end = start + tokens
    return True


def no_work_lost(story: Story) -> Verdict:
    """G3: what an island trained before a contribution that was credited is credited, too."""
    lost = tokens_lost(story)
    return f"{lost:,} tokens were trained, and passed over by what was credited after them" if lost else True


def together_again(story: Story) -> Verdict:
    """G4: after an outage of any length the islands are together within a minute."""
    for returned in story.returns:
        if returned.kind in ON_REQUEST and returned.seconds > TOGETHER_S:
            return (
                f"{returned.island} was in a round again {returned.seconds:.1f} s after the end of the "
                f"{returned.kind}, expected at most {TOGETHER_S:g} s"
            )
    return True


def no_hang(story: Story) -> Verdict:
    """G5: while enough islands are alive rounds commit, islands train on, and who is asked to leave does."""
    return story.hangs[0] if story.hangs else True


def no_orphan(story: Story) -> Verdict:
    """No process outlives its island."""
    return story.orphans[0] if story.orphans else True


def no_failure(story: Story) -> Verdict:
    """No island ends by itself, whatever happens to it and to the others."""
    return story.failures[0] if story.failures else True


def loss_falls(story: Story) -> Verdict:
    """The anchor is better at the end than the first model was."""
    first = [line["loss"] for i in story.islands for life in i.lives[:1] for line in life.of("train")[:1]]
    last = final_eval(story)
    if not first or last is None:
        return "no loss was written"
    return (
        True
        if last["eval_loss"] < max(first)
        else f"it went from {max(first):.3f} to {last['eval_loss']:.3f}"
    )


INVARIANTS: Mapping[str, Callable[[Story], Verdict]] = {
    check.__name__: check
    for check in (
        digests_equal, outer_step_monotone, tokens_accounted, credited_once, no_work_lost,
        residual_conserved, together_again, no_hang, no_orphan, no_failure, loss_falls,
    )
}  # fmt: skip


def check_all(story: Story) -> dict[str, Verdict]:
    """Every invariant by its name."""
    return {name: check(story) for name, check in INVARIANTS.items()}


# -- figures that checks and reports share -------------------------------------------------------------


def trained_tokens(island: IslandLog) -> int:
    """What all lives of an island have trained, also what was lost with a killed process."""
    return sum(life.tokens - int(life.start["tokens"]) for life in island.lives)


def credited_tokens(story: Story, up_to: int | None = None) -> int:
    """What committed rounds have credited to all islands, up to an outer step."""
    return sum(
        tokens
        for outer_step, line in story.credits().items()
        if up_to is None or outer_step <= up_to
        for _, tokens in line["participants"]
    )


def tokens_lost(story: Story) -> int:
    """Tokens of islands that are in no entry of the history, though later ones of the same life are.

    What was trained after the last credited contribution of a life is not counted: a killed island has lost
    it, others had no round for it any more.
    """
    lost = 0
    for _, ranges in _contributions(story):
        ends = [start + tokens for _, start, tokens in ranges]
        lost += sum(max(0, start - end) for end, (_, start, _) in zip(ends, ranges[1:], strict=False))
    return lost


def _contributions(story: Story) -> list[tuple[str, list[tuple[int, int, int]]]]:
    """(outer step, first token, tokens) in the history, of each life of each island.

    Without lives in which entries of the history are known to nobody.
    """
    history = story.credits()
    found = []
    for island in story.islands:
        begins = [int(life.start["outer_steps"][0]) for life in island.lives]
        ends = [*begins[1:], max(history, default=0)]
        for begun, until in zip(begins, ends, strict=True):
            entries = [history[step] for step in range(begun + 1, until + 1) if step in history]
            if len(entries) == until - begun:
                ranges = [
                    (int(entry["outer_step"]), int(start), int(tokens))
                    for entry in entries
                    for (peer, tokens), (start, _) in zip(
                        entry["participants"], entry["contributions"], strict=True
                    )
                    if peer == island.peer
                ]
                found.append((island.name, ranges))
    return found


def final_eval(story: Story) -> Line | None:
    """The evaluation of the furthest anchor."""
    evals = [line for island in story.islands for life in island.lives for line in life.of("eval")]
    return max(evals, key=lambda line: int(line["outer_step"]), default=None)


def _credited(peer: str, entries: Mapping[int, Line]) -> dict[int, int]:
    """Outer step -> tokens that its entry credits to a peer."""
    return {
        step: tokens
        for step, line in entries.items()
        for name, tokens in line["participants"]
        if name == peer
    }


def _resumed(island: IslandLog, life: Life, entries: Mapping[int, Line]) -> str:
    """An island that replayed what it had missed counts exactly what the ledger credits it."""
    if life.start["how"] == "snapshot" or any(
        earlier.start["how"] == "snapshot" for earlier in island.lives[1:]
    ):
        return ""  # what was credited in between is not known to it, as G8 says
    height = life.start["outer_steps"][0]
    ledger = sum(tokens for step, tokens in _credited(island.peer, entries).items() if step <= height)
    own = int(life.start["tokens_credited"])
    return (
        ""
        if ledger == own
        else f"started at outer step {height} with {own:,} tokens credited, the ledger has {ledger:,}"
    )


def _summed_up(island: IslandLog, life: Life, entries: Mapping[int, Line]) -> str:
    """An island that left in order: its summary adds up, and agrees with the ledger over its life."""
    ends = [line["summary"] for line in life.of("end") if line["summary"]]
    if not ends:
        return ""
    end = ends[-1]
    if end["tokens"] != end["tokens_credited"] + end["tokens_dropped"]:
        return (
            f"left with {end['tokens']:,} tokens trained, but {end['tokens_credited']:,} credited and "
            f"{end['tokens_dropped']:,} dropped"
        )
    begun, height = life.start["outer_steps"][0], end["outer_steps"]
    credits = _credited(island.peer, entries)
    ledger = sum(tokens for step, tokens in credits.items() if begun < step <= height)
    own = end["tokens_credited"] - int(life.start["tokens_credited"])
    if ledger != own:
        return (
            f"counts {own:,} tokens credited from outer step {begun} to {height}, the ledger has {ledger:,}"
        )
    return ""
