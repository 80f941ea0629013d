"""What an entry credits: the samples of its participants, and all that were credited before."""

import pytest

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger import credits
from lowcomm.ledger.credits import Credits, credits_after, parse_credits
from lowcomm.spans import Spans

FIRST = Credits(data="corpus", trained=(((0, 4),), ((8, 12),)), credited=((0, 4), (8, 12)))


def test_where_nobody_names_samples_nothing_is_credited() -> None:
    assert credits_after(None, "corpus", [(), ()]) is None


def test_what_was_credited_adds_up() -> None:
    assert credits_after(None, "corpus", [((0, 4),), ((8, 12),)]) == FIRST
    after = credits_after(FIRST, "another", [((4, 6),), ()])
    assert after == Credits(data="corpus", trained=(((4, 6),), ()), credited=((0, 6), (8, 12)))
    assert credits_after(after, "corpus", [()]) == Credits(
        data="corpus", trained=((),), credited=((0, 6), (8, 12))
    )


@pytest.mark.parametrize(
    ("trained", "twice"),
    [([((2, 6),)], 2), ([((4, 8),), ((6, 8),)], 2), ([((0, 12),), ((0, 12),)], 8 + 12)],
    ids=["credited before", "in one entry", "both"],
)
def test_what_comes_twice_is_counted(trained: list[Spans], twice: int) -> None:
    after = credits_after(FIRST, "corpus", trained)
    assert after is not None
    assert after.twice == twice


def test_what_has_no_room_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credits, "MAX_CREDITED", 2)
    after = credits_after(FIRST, "corpus", [((20, 25),), ((4, 8),)])
    assert after is not None
    assert (after.credited, after.uncounted, after.twice) == (((0, 12),), 5, 0)


def test_it_travels_whole() -> None:
    fields = Fields("entry.samples", FIRST.to_json())
    assert parse_credits(fields, 2) == FIRST
    with pytest.raises(ProtocolError, match=r"trained: expected one for each of 3 participants"):
        parse_credits(fields, 3)
