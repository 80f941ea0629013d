"""What becomes of an island's own work in a history that does not stand, however often sides part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from lowcomm.ledger.certificate import Ballot, Certificate
from lowcomm.ledger.chain import Certified
from lowcomm.ledger.entry import ContributionId, Entry
from lowcomm.outer.at_risk import MOST_NAMES, MOST_OPEN, MOST_SUMS, AtRisk, Settlement
from lowcomm.recovery.forks import Switch
from lowcomm.rounds.contribution import Accepted, Contribution
from lowcomm.types import Digest, PeerId

ME = PeerId("me")


class Story:
    """One island's entries; the n-th contribution has n tokens, and a one at its n-th place."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.at_risk, self.entries, self.made = AtRisk(pool), list[Certified](), 0

    def contribution(self) -> Contribution:
        self.made += 1
        values = torch.zeros(1024)
        values[self.made] = 1.0
        made = Contribution.of(values, start=100 * self.made, tokens=self.made, norm=1.0, inner_step=0)
        self.at_risk.sends(made.id)
        return made

    def commits(self, others: str, absent: str, sent: Sequence[Contribution] = ()) -> Certified:
        own = self.contribution()
        entry = named(own.id, others, len(self.entries) + 1)
        certificate = Certificate(Ballot(1, ME), tuple(PeerId(p) for p in absent), ())
        accepted = cast(Any, Accepted)(
            certificate.ballot, entry, None, None, None, None, None, own, (), 0.0, 0.0
        )
        self.at_risk.committed(accepted, certificate, [*sent, own])
        self.entries.append(Certified(entry, certificate))
        return self.entries[-1]

    def switches(
        self, left: Sequence[Certified], taken: Sequence[Certified] = (), sent: Sequence[Contribution] = ()
    ) -> Settlement:
        held = {contribution.id: contribution.values for contribution in sent}
        settlement = self.at_risk.switched(Switch(tuple(left), tuple(taken), held), ME)
        assert settlement is not None
        return settlement


def named(own: ContributionId, others: str, outer_step: int) -> Entry:
    return Entry(
        run_id="run",
        fragment=0,
        outer_step=outer_step,
        participants=((ME, own.tokens), *((PeerId(peer), 1) for peer in others)),
        total_tokens=0,
        stops=(1024,),
        chunk_elements=1024,
        update_hash=Digest("0" * 64),
        update_bytes=8,
        state_digest=Digest("0" * 64),
        previous=Digest("0" * 64),
        contributions=((own.start, own.sum), *((0, "0" * 32) for _ in others)),
    )


def taken(settlement: Settlement, tokens: int = 0) -> dict[int, float]:
    """What the settlement takes out of the island's progress, by the contributions' numbers."""
    settlement._added.result()
    found = settlement.taken(torch.zeros(1024), tokens)
    return {} if found is None else {int(at): round(float(found[at]), 6) for at in found.nonzero()}


@pytest.fixture
def story() -> Iterator[Story]:
    with ThreadPoolExecutor(1) as pool:
        yield Story(pool)


def test_only_what_follows_the_common_entry_is_lost(story: Story) -> None:
    story.commits("", "abc")
    story.commits("b", "")  # a side of two now, from which it is parted in turn
    left = [story.commits("", "b"), story.commits("", "")]
    settlement = story.switches(left)
    assert (settlement.lost, settlement.back, settlement.dropped) == (7, 0, 0)
    assert taken(settlement) == {3: -1.0, 4: -1.0}


def test_a_side_that_was_left_and_stands_in_the_end_has_its_work(story: Story) -> None:
    first = [story.commits("a", "bc"), story.commits("a", "")]
    assert taken(story.switches(first)) == {1: -1.0, 2: -1.0}
    second = [story.commits("b", ""), story.commits("b", "")]
    settlement = story.switches(second, first)
    assert (settlement.lost, settlement.back) == (7, 3)
    assert taken(settlement) == {1: 1.0, 2: 1.0, 3: -1.0, 4: -1.0}


def test_what_was_left_is_kept_until_all_of_that_side_are_here(story: Story) -> None:
    first = [story.commits("a", "bc")]
    story.switches(first)
    story.commits("bc", "")  # nobody is absent of those who may decide, but `a` is still on the other side
    assert taken(story.switches(story.entries[-1:], first)) == {1: 1.0, 2: -1.0}
    story.commits("abc", "")
    settlement = story.switches(story.entries[-1:])
    assert (settlement.lost, settlement.dropped, taken(settlement)) == (3, 3, {})


def test_what_others_have_committed_of_what_was_sent_is_taken_out(story: Story) -> None:
    early = story.contribution()
    left = [story.commits("", "ab", [early])]
    theirs = Certified(named(early.id, "ab", 1), None)
    settlement = story.switches(left, [theirs])
    assert (settlement.lost, settlement.back, settlement.unknown) == (2, 1, 0)
    assert taken(settlement) == {1: 1.0, 2: -1.0}
    late = story.contribution()
    assert story.at_risk.found(theirs.entry, ME) is not None  # the same, learned of by a replay
    assert story.at_risk.found(named(replace(late.id, start=1), "ab", 1), ME) is None  # of an earlier life


def test_within_a_sum_the_share_goes_by_tokens(story: Story) -> None:
    story.commits("a", "b")
    settlement = story.switches([story.commits("a", "")])
    assert settlement.lost == 2
    assert taken(settlement) == {1: pytest.approx(-2 / 3, abs=1e-6), 2: pytest.approx(-2 / 3, abs=1e-6)}


def test_tokens_add_up_however_often_sides_part(story: Story) -> None:
    for turn in range(5 * MOST_SUMS):
        story.commits("a" if turn % 2 else "", "ab"[turn % 2 : turn % 2 + 1] + "c")
    settlement = story.switches(story.entries)
    assert (settlement.lost, settlement.dropped) == (sum(range(1, 5 * MOST_SUMS + 1)), 0)
    assert taken(settlement) == {n: -1.0 for n in range(1, 5 * MOST_SUMS + 1)}


def test_what_is_kept_is_bounded_and_what_is_not_kept_is_named(story: Story) -> None:
    count = MOST_SUMS * MOST_NAMES + 1
    for _ in range(count):
        story.commits("a", "b")
    for _ in range(MOST_OPEN + 1):
        story.commits("a", "b", [story.contribution()])
    assert len(story.at_risk._sums) == MOST_SUMS
    assert len(story.at_risk._open) == MOST_OPEN
    settlement = story.switches(story.entries)
    kept = {number for number, value in taken(settlement).items() if value == -1.0}
    ours = {one.entry.participants[0][1] for one in story.entries}
    assert settlement.lost == sum(ours)
    assert settlement.dropped == sum(ours - kept) > 0


def test_of_what_is_not_known_but_by_its_tokens_a_part_is_taken_out(story: Story) -> None:
    early = story.contribution()
    for _ in range(MOST_OPEN + 1):
        story.commits("", "a", [story.contribution()])
    settlement = story.switches([], [Certified(named(early.id, "a", 1), None)])
    assert (settlement.back, settlement.unknown) == (1, 1)
    progress = torch.full((1024,), 8.0)
    found = settlement.taken(progress, 4)
    assert found is not None
    assert found.unique().tolist() == [2.0]
