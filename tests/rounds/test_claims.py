"""Which claims are accepted, and how rejections add up."""

import pytest

from lowcomm.ledger.entry import MAX_TOTAL_TOKENS, Entry, hash_bytes
from lowcomm.rounds.claims import ClaimJudge, Limits
from lowcomm.rounds.roster import Participant
from lowcomm.types import PeerId


def members(**norms: float) -> list[Participant]:
    return [Participant(PeerId(peer), 100, norm, 10) for peer, norm in norms.items()]


def commit(contributions: ClaimJudge, outer_step: int, **norms: float) -> None:
    entry = Entry(
        run_id="run",
        fragment=0,
        outer_step=outer_step,
        participants=tuple((PeerId(peer), 100) for peer in norms),
        total_tokens=100 * len(norms) * outer_step,
        stops=(4,),
        chunk_elements=4,
        update_hash=hash_bytes(b""),
        update_bytes=0,
        state_digest=hash_bytes(b""),
        previous=hash_bytes(b""),
    )
    contributions.committed(entry, members(**norms))


def test_a_norm_far_above_the_running_median_is_refused() -> None:
    contributions = ClaimJudge(Limits(norm_limit=10.0))
    for outer_step in range(1, 5):
        commit(contributions, outer_step, a=1.0, b=1.1, c=0.9)
    refused = contributions.judge(members(a=1.0, b=1.2, c=13.0), 5)
    assert list(refused) == ["c"]
    assert "norm 13, at most 12" in refused[PeerId("c")]
    assert not contributions.judge(members(a=1.0, b=1.2, c=9.0), 5)


def test_one_liar_of_two_does_not_raise_the_median() -> None:
    assert list(ClaimJudge(Limits(norm_limit=10.0)).judge(members(a=1.0, b=50.0), 1)) == ["b"]


def test_where_most_norms_jump_nobody_lies() -> None:
    contributions = ClaimJudge(Limits(norm_limit=10.0))
    for outer_step in range(1, 5):
        commit(contributions, outer_step, a=1.0, b=1.0)
    assert not contributions.judge(members(a=100.0, b=110.0), 5)
    assert not contributions.judge(members(a=100.0), 5)


def test_bounds_grow_with_the_rounds_that_a_peer_missed() -> None:
    contributions = ClaimJudge(Limits(norm_limit=10.0, max_tokens=150))
    for outer_step in range(1, 5):
        commit(contributions, outer_step, a=1.0, b=1.0, **({"c": 1.0} if outer_step == 1 else {}))
    late = [*members(a=1.0, b=1.0), Participant(PeerId("c"), 600, 35.0, 10)]
    assert not contributions.judge(late, 5)
    early = [*members(a=1.0), Participant(PeerId("b"), 151, 1.0, 10)]
    assert "at most 150 are possible" in contributions.judge(early, 5)[PeerId("b")]


def test_clipping_scales_to_the_median_of_the_roster() -> None:
    contributions = ClaimJudge(Limits(clip_norm=2.0))
    assert contributions.scales(members(a=1.0, b=1.0, c=8.0)) == pytest.approx([1.0, 1.0, 0.25])
    assert ClaimJudge(Limits()).scales(members(a=1.0, b=99.0)) == [1.0, 1.0]
    assert contributions.bounds(members(a=2.0), residual=False) == [3.0]


def test_rejections_in_a_row_by_two_put_a_peer_out() -> None:
    contributions = ClaimJudge(Limits(max_rejections=2))
    liar, me, other = PeerId("liar"), PeerId("me"), PeerId("other")
    assert not contributions.reject(liar, "nan", me, company=True)
    commit(contributions, 1, liar=1.0)
    assert not contributions.reject(liar, "nan", me, company=True)
    assert contributions.reject(liar, "nan again", other, company=True)
    assert contributions.take_rejected()[-1] == "liar: nan again"
    assert contributions.take_rejected() == ()


def test_one_accuser_puts_nobody_out_for_the_others() -> None:
    contributions = ClaimJudge(Limits(max_rejections=2))
    honest, me, liar = PeerId("honest"), PeerId("me"), PeerId("liar")
    assert not any(contributions.reject(honest, "nan", liar, company=True) for _ in range(50))
    assert not contributions.insists(honest, me)


def test_alone_with_a_liar_one_accuser_is_enough() -> None:
    contributions = ClaimJudge(Limits(max_rejections=2))
    liar, me = PeerId("liar"), PeerId("me")
    assert [contributions.reject(liar, "nan", me, company=False) for _ in range(2)] == [False, True]
    for _ in range(2):
        contributions.reject(liar, "nan", me, company=True)
    assert contributions.insists(liar, me)


def sized(**claims: tuple[int, float]) -> list[Participant]:
    """Participants from (tokens, norm)."""
    return [Participant(PeerId(peer), tokens, norm, 10) for peer, (tokens, norm) in claims.items()]


def test_an_island_that_has_just_come_back_accuses_no_honest_one() -> None:
    newcomer = ClaimJudge(Limits(norm_limit=20.0))
    roster = sized(newcomer=(256, 0.07), one=(10_240, 1.5), other=(512, 0.13))
    assert newcomer.judge(roster, 65) == {}
    assert newcomer.judge(sized(newcomer=(256, 0.07), liar=(256, 1.5)), 65) != {}


def test_what_a_small_contribution_owes_from_earlier_rounds_is_let_through() -> None:
    contributions = ClaimJudge(Limits(norm_limit=20.0))
    for outer_step in range(1, 5):
        commit(contributions, outer_step, a=1.0, b=1.0)
    roster = sized(back=(500, 0.1), one=(10_000, 1.0), other=(10_000, 1.0))
    small, *whole = contributions.bounds(roster, residual=True)
    assert small > 10.0  # a fifteenth of the mean's weight, so no more of the mean than the others'
    assert whole == [4.0, 4.0]
    assert contributions.bounds(roster, residual=False)[0] == pytest.approx(0.15)


def test_the_largest_claims_are_refused_where_the_ledger_could_not_count_them() -> None:
    claims = [
        Participant(PeerId(peer), tokens, 1.0, 10) for peer, tokens in [("a", 10), ("b", 90), ("c", 80)]
    ]
    contributions = ClaimJudge(Limits())
    assert not contributions.judge(claims, 5, MAX_TOTAL_TOKENS - 180)
    refused = contributions.judge(claims, 5, MAX_TOTAL_TOKENS - 100)
    assert refused == {PeerId("b"): "90 tokens, where the ledger can count 100 more"}
    assert set(contributions.judge(claims, 5, MAX_TOTAL_TOKENS - 10)) == {"b", "c"}
