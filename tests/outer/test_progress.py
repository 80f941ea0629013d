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
