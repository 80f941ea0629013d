"""What an island counts when it comes back and the ledger has more of it than its checkpoint."""

import pytest

from lowcomm.outer.progress import Progress


def restored(tokens: list[int]) -> Progress:
    progress = Progress(len(tokens))
    progress.tokens, progress.tokens_trained, progress.tokens_credited = tokens, 1_000, 1_000 - tokens[0]
    return progress


@pytest.mark.parametrize(
    ("left", "credited", "lost"),
    [(0, 0, 0), (0, 80, 80), (30, 80, 50), (30, 30, 0), (30, 0, 0), (30, 20, 0)],
    ids=["nothing", "all-after", "partly-before", "all-before", "none", "a-round-under-way"],
)
def test_replayed_tokens_are_trained_and_credited_once(left: int, credited: int, lost: int) -> None:
    progress = restored([left])
    assert progress.recover([credited]) == lost  # the text to skip lies behind the checkpoint
    assert progress.tokens_trained == 1_000 + lost
    assert progress.tokens_trained == progress.tokens_credited + progress.tokens[0]


def test_the_first_fragment_stands_for_the_model() -> None:
    progress = restored([10, 40])
    assert progress.recover([50, 90]) == 40
    assert progress.tokens == [0, 0]
    assert progress.tokens_trained == progress.tokens_credited == 1_040


@pytest.mark.parametrize(
    ("began", "swarm", "jump"),
    [(20, 20, 0), (12, 20, 8), (21, 20, 7), (28, 20, 0), (35, 20, 1)],
    ids=["in-step", "behind", "one-ahead", "an-interval-ahead", "nearly-two-ahead"],
)
def test_after_a_round_that_came_to_nothing_an_island_falls_in_with_the_others(
    began: int, swarm: int, jump: int
) -> None:
    progress = Progress(1, inner_step=began)
    assert progress.fall_in(0, began, 0, 8, out_of_step=True, committed=False) == 0
    assert progress.realign == [True]
    assert progress.fall_in(0, began, swarm, 8, out_of_step=False, committed=True) == jump
    assert progress.inner_step == began + jump
    assert (progress.inner_step - swarm) % 8 == 0
    assert progress.realign == [False]


def test_an_island_in_step_counts_its_own_steps() -> None:
    progress = Progress(1, inner_step=12)
    assert progress.fall_in(0, 12, 20, 8, out_of_step=False, committed=True) == 0
    assert progress.inner_step == 12


def contribution(progress: Progress, fresh: int) -> int:
    progress.trained(fresh)
    return progress.installment(0)


def test_up_to_four_intervals_come_in_as_one_and_more_by_two() -> None:
    progress = Progress(1)
    assert [contribution(progress, 10) for _ in range(4)] == [10, 20, 30, 40]  # none of them is committed
    assert contribution(progress, 10) == 20
    progress.credit(0, 20)
    assert contribution(progress, 10) == 40


def test_who_was_late_has_usual_intervals_still() -> None:
    """Else four rounds that were missed would come in by crumbs, and not all before the run ends."""
    progress = Progress(1)
    for _ in range(3):
        contribution(progress, 10)
    progress.realign[0] = True
    assert contribution(progress, 2) == 32
    progress.credit(0, 32)
    progress.realign[0] = False
    assert contribution(progress, 5) == 5
    assert progress.interval_tokens == [5]  # the schedule's may change


def test_an_interval_that_was_cut_short_does_not_make_the_next_one_come_in_by_crumbs() -> None:
    progress = Progress(1)
    progress.credit(0, contribution(progress, 40))
    assert contribution(progress, 1) == 1  # it stood still, and the others go on without this
    progress.realign[0] = True
    assert contribution(progress, 40) == 41


def test_a_first_contribution_of_one_who_is_late_is_its_interval() -> None:
    progress = Progress(1)
    progress.realign[0] = True
    assert contribution(progress, 7) == 7
