"""Each invariant of a chaos run holds on a sound one, and names what is wrong on a broken one."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.chaos.figures import contract, eval_at, participation, rows
from lowcomm.chaos.invariants import INVARIANTS, check_all
from lowcomm.chaos.island import Island
from lowcomm.chaos.records import Returned, Story, load_island
from tests.chaos.stories import BATCH, PERIOD, entry, round_line, sound_life, sound_story


def summary(story: Story, island: int) -> dict:
    return story.islands[island].lives[-1].lines[-1]["summary"]


def resume(story: Story, tokens_credited: int, how: str = "replayed") -> None:
    """Island a was killed after its third round, and came back with what it could know."""
    first, second = story.islands[0].lives[0], sound_life("a")
    first.ended, first.lines = "killed", first.lines[:6]
    short = 3 * PERIOD - tokens_credited
    second.start |= {
        "how": how,
        "outer_steps": [3],
        "tokens": tokens_credited,
        "tokens_credited": tokens_credited,
    }
    second.lines = second.lines[6:]
    for line in second.lines:
        if line["kind"] == "train":
            line["tokens"] -= short
        elif line["kind"] == "end":
            line["summary"]["tokens"] -= short
            line["summary"]["tokens_credited"] -= short
    story.islands[0].lives.append(second)


def test_a_sound_story_has_no_broken_invariant() -> None:
    assert check_all(sound_story()) == dict.fromkeys(INVARIANTS, True)


def test_a_kill_and_a_resumption_are_sound() -> None:
    story = sound_story()
    resume(story, 3 * PERIOD)
    assert check_all(story) == dict.fromkeys(INVARIANTS, True)


def other_digest(story: Story) -> None:
    story.islands[1].lives[0].commits[2]["digest"] = "another"


def other_participants(story: Story) -> None:
    story.islands[1].ledger[2]["hash"] = "another"


def other_state_in_the_ledger(story: Story) -> None:
    story.islands[1].ledger[2]["state_digest"] = "another"


def no_commit(story: Story) -> None:
    for island in story.islands:
        island.ledger.clear()
        island.lives[0].lines = [line for line in island.lives[0].lines if line["kind"] != "round"]


def step_twice(story: Story) -> None:
    story.islands[0].lives[0].lines.append(round_line(5))


def step_again_after_a_restart(story: Story) -> None:
    resume(story, 3 * PERIOD)
    story.islands[0].lives[1].lines.insert(0, round_line(3))


def dropped_without_a_word(story: Story) -> None:
    summary(story, 0)["tokens_dropped"] = 0


def credited_beyond_the_ledger(story: Story) -> None:
    summary(story, 0)["tokens_credited"] += BATCH
    summary(story, 0)["tokens_dropped"] -= BATCH


def credited_twice(story: Story) -> None:
    for island in story.islands:
        island.ledger = [entry(step, tokens=2 * PERIOD) for step in range(1, 6)]


def resumed_with_too_few_credits(story: Story) -> None:
    resume(story, 2 * PERIOD)


def contributed_twice(story: Story) -> None:
    for island in story.islands:
        for line in island.ledger[2:]:
            line["contributions"][1][0] -= BATCH


def passed_over(story: Story) -> None:
    for island in story.islands:
        for line in island.ledger[2:]:
            line["contributions"][0][0] += BATCH


def long_apart(story: Story) -> None:
    story.returns += [
        Returned(kind="freeze", island="island-a", seconds=99.0),
        Returned(kind="halves", island="island-b", seconds=61.0),
    ]


def residual_lost_between_rounds(story: Story) -> None:
    story.islands[0].lives[0].commits[2]["residual_before"] = 0.0


def residual_changed_without_commit(story: Story) -> None:
    story.islands[0].lives[0].lines.append(round_line(5, committed=False, before=1.0, after=0.5))


def no_residual_at_all(story: Story) -> None:
    for island in story.islands:
        for line in island.lives[0].of("round"):
            line["residual_before"] = line["residual_norm"] = None


def loss_rises(story: Story) -> None:
    for island in story.islands:
        for line in island.lives[0].of("eval"):
            line["eval_loss"] = 5.0


def hang(story: Story) -> None:
    story.hangs.append("nothing was committed")


def orphan(story: Story) -> None:
    story.orphans.append("p2pd has outlived island-0")


def failure(story: Story) -> None:
    story.failures.append("island-0 ended by itself")


@pytest.mark.parametrize(
    ("harm", "invariant", "says"),
    [
        (other_digest, "digests_equal", "outer step 3 has 2 states"),
        (other_participants, "digests_equal", "outer step 3 has 2 entries"),
        (other_state_in_the_ledger, "digests_equal", "outer step 3 has 2 states"),
        (step_twice, "outer_step_monotone", "outer step 5 of fragment 0 was committed after 5"),
        (step_again_after_a_restart, "outer_step_monotone", "outer step 3 .* after 3"),
        (dropped_without_a_word, "tokens_accounted", "210 tokens trained, but 200 credited and 0 dropped"),
        (credited_beyond_the_ledger, "tokens_accounted", "counts 210 tokens .* the ledger has 200"),
        (credited_twice, "tokens_accounted", "credits 400 tokens, it has trained 210"),
        (resumed_with_too_few_credits, "tokens_accounted", "with 80 tokens credited, the ledger has 120"),
        (
            contributed_twice,
            "credited_once",
            "island-b: outer step 3 credits 40 tokens from 70 on, but those up to 80",
        ),
        (passed_over, "no_work_lost", "^10 tokens were trained"),
        (long_apart, "together_again", "island-b was in a round again 61.0 s after the end of the halves"),
        (residual_lost_between_rounds, "residual_conserved", "from 1 to 0 between two rounds"),
        (residual_changed_without_commit, "residual_conserved", "no commit, but .* from 1 to 0.5"),
        (no_residual_at_all, "residual_conserved", "is error feedback on"),
        (loss_rises, "loss_falls", "from 4.000 to 5.000"),
        (hang, "no_hang", "nothing was committed"),
        (orphan, "no_orphan", "p2pd"),
        (failure, "no_failure", "by itself"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_is_broken_is_named(harm, invariant, says) -> None:
    story = sound_story()
    harm(story)
    found = check_all(story)
    assert isinstance(found[invariant], str)
    assert re.search(says, found[invariant])
    assert [name for name, held in found.items() if held is not True] == [invariant]


def test_nothing_committed_is_no_success() -> None:
    story = sound_story()
    no_commit(story)
    assert check_all(story)["digests_equal"] == "nothing was committed"


def test_credits_that_a_snapshot_skipped_are_no_fault_of_the_island() -> None:
    story = sound_story()
    resume(story, 2 * PERIOD, how="snapshot")
    assert check_all(story)["tokens_accounted"] is True


def test_the_contract_adds_up() -> None:
    story = sound_story()
    resume(story, 3 * PERIOD)
    figures = contract(story, sound_story())
    assert list(figures) == [
        "faults", "invariants", "partition", "rounds_committed", "outer_steps_forked", "participation",
        "tokens_trained", "tokens_credited", "tokens_dropped", "tokens_lost", "slowest_return_s", "eval_loss",
        "fault_free_eval_loss",
    ]  # fmt: skip
    assert figures["rounds_committed"] == 5
    assert figures["tokens_credited"] == 2 * 5 * PERIOD
    assert figures["tokens_trained"] == figures["tokens_credited"] + figures["tokens_dropped"]
    assert (figures["eval_loss"], figures["fault_free_eval_loss"]) == (0.8, 0.8)


def test_participation_counts_live_peers_only() -> None:
    story = sound_story()
    story.commits = [
        replace(story.commits[0], participants=("a", "b", "gone"), live=("a", "b")),
        replace(story.commits[1], participants=("a",), live=("a", "b")),
        replace(story.commits[2], live=()),
        replace(story.commits[3], participants=("a",), live=("b",)),  # of a side that is cut off
    ]
    assert participation(story) == 0.75


def test_the_loss_at_equal_tokens_lies_between_two_evaluations() -> None:
    story = sound_story()
    lines = story.islands[0].lives[0].lines
    lines.append({"kind": "eval", "outer_step": 4, "eval_loss": 1.0})
    assert eval_at(story, 2 * 4 * PERIOD) == 1.0
    assert eval_at(story, 2 * 4 * PERIOD + PERIOD) == pytest.approx(0.9)
    assert eval_at(story, 10**9) == 0.8


def test_half_a_line_of_a_killed_process_is_passed_over(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "start", "peer": "a", "tokens": 0}\n{"kind": "tra\n'
        '{"kind": "start", "peer": "a", "tokens": 5}\n{"kind": "train", "tokens": 9}\n'
    )
    log = load_island(tmp_path, ["killed", "left"])
    assert ([life.ended for life in log.lives], log.torn, log.lives[1].tokens) == (["killed", "left"], 1, 9)
    assert log.ledger == []


def split(*, repaired: bool, credited_again: bool) -> Story:
    """With `continue`: in outer step 3 each commits alone; b's side has lost, and takes the other's state."""
    story = sound_story()
    story.partition = "continue"
    (a, b), alone = story.islands, entry(3, peers=("b",))
    alone |= {"hash": "fork-3", "state_digest": "fork-state-3"}
    a.ledger[2] = entry(3, peers=("a",)) | {"total_tokens": 5 * PERIOD}
    later = [entry(4), entry(5)]
    for number, line in enumerate(later):
        line["total_tokens"] = (7 + 2 * number) * PERIOD
    if credited_again:
        later[0]["participants"] = [["a", PERIOD], ["b", 2 * PERIOD]]
        later[0]["contributions"][1] = [2 * PERIOD, "sum-3-4-b"]
    a.ledger[3:] = later
    b.ledger[2:] = [alone]
    b.lives[0].commits[2]["digest"] = "fork-state-3"
    if repaired:
        snapshot = {
            "snapshot": True,
            "fragment": 0,
            "outer_step": 3,
            "head": "head-3",
            "state_digest": "state-3",
        }
        b.ledger += [snapshot, *later]
    else:
        for step in (4, 5):
            fork = {
                "hash": f"fork-{step}",
                "previous": f"fork-{step - 1}",
                "state_digest": f"fork-state-{step}",
            }
            b.ledger.append(entry(step, peers=("b",)) | fork)
    return story


def test_a_fork_that_was_repaired_without_a_loss_is_sound() -> None:
    story = split(repaired=True, credited_again=True)
    assert check_all(story) == dict.fromkeys(INVARIANTS, True)
    assert contract(story, None)["outer_steps_forked"] == 1


def test_a_side_that_stayed_behind_is_another_history_at_the_end() -> None:
    story = split(repaired=False, credited_again=False)
    del story.islands[1].ledger[-2:]
    assert check_all(story)["digests_equal"] == (
        "island-b ends with another history, at outer step 3: fork-3"
    )
    story.islands[1].stayed = False  # it left while they were apart
    assert check_all(story)["digests_equal"] is True


def test_an_island_is_back_from_a_split_in_a_round_of_all() -> None:
    island = Island("island-a", Path("island-a"), shard=0, port=20_000)
    island.peer = "a"
    for kind, alone in (("freeze", True), ("halves", False)):
        island.back(kind, 10.0)
        assert bool(island.committed(11.0, frozenset({"a"}), {"a", "b"})) == alone
    assert island.took_part == 0
    assert island.committed(12.0, frozenset({"a", "b"}), {"a", "b"}) == Returned(
        kind="halves", island="island-a", seconds=2.0
    )
    assert island.took_part == 1


def test_work_on_the_side_that_lost_is_missed() -> None:
    verdicts = check_all(split(repaired=True, credited_again=False))
    assert verdicts["tokens_accounted"] == (
        f"island-b: counts {5 * PERIOD} tokens credited from outer step 0 to 5, the ledger has {4 * PERIOD}"
    )
    assert verdicts["no_work_lost"] == (
        f"{PERIOD} tokens were trained, and passed over by what was credited after them"
    )
    missed = ("tokens_accounted", "no_work_lost")
    assert all(held is True for name, held in verdicts.items() if name not in missed)


def test_the_slowest_return_of_each_kind_is_told() -> None:
    story = sound_story()
    story.returns = [
        Returned(kind="blip", island=name, seconds=seconds) for name, seconds in (("a", 1.0), ("b", 2.26))
    ]
    figures = contract(story, None)
    assert figures["slowest_return_s"] == {"blip": 2.3}
    assert ("slowest return after blip", "2.3 s") in rows(figures)


def test_a_fork_that_lasts_is_named() -> None:
    verdict = check_all(split(repaired=False, credited_again=True))["digests_equal"]
    assert verdict == "island-b ends with another history, at outer step 5: fork-5"


def test_a_fork_is_none_where_a_majority_commits() -> None:
    story = split(repaired=True, credited_again=True)
    story.partition = "majority"
    assert "outer step 3 has 2 states" in str(check_all(story)["digests_equal"])
