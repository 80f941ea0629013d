"""Which claims are accepted, and how rejections add up."""

import pytest

from lowcomm.algorithms.intervals import UNMEASURED, Speed
from lowcomm.ledger.entry import MAX_TOTAL_TOKENS, Entry, hash_bytes
from lowcomm.rounds.claims import ClaimJudge, Limits
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.rounds.roster import Participant
from lowcomm.sim.island import IslandSettings, SimIsland, toy_schedule
from lowcomm.sim.swarm import SimSwarm, name
from lowcomm.sim.tapes import Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId


def members(**norms: float) -> list[Participant]:
    return [Participant(PeerId(peer), 100, norm, 10) for peer, norm in norms.items()]


def commit(contributions: ClaimJudge, outer_step: int, **norms: float) -> None:
    contributions.committed(entry_of(members(**norms), outer_step), members(**norms))


def entry_of(participants: list[Participant], outer_step: int) -> Entry:
    return Entry(
        run_id="run",
        fragment=0,
        outer_step=outer_step,
        participants=tuple((member.peer, member.tokens) for member in participants),
        total_tokens=sum(member.tokens for member in participants) * outer_step,
        stops=(4,),
        chunk_elements=4,
        update_hash=hash_bytes(b""),
        update_bytes=0,
        state_digest=hash_bytes(b""),
        previous=hash_bytes(b""),
    )


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


# -- time ------------------------------------------------------------------------------------------------

SPEED = Speed(0.5, 100)
"""200 tokens a second."""


def told(tokens: int, *, speed: Speed = SPEED, inner_step: int = 10, peer: str = "a") -> Participant:
    return Participant(PeerId(peer), tokens, 1.0, inner_step, speed)


def judged(claim: Participant, *, now_s: float, before: Participant, asleep_s: float = 0.0) -> str:
    """Why a claim is refused, of an island whose contribution `before` was committed at 1,000 s."""
    judge = ClaimJudge(Limits())
    judge.committed(entry_of([before, told(100, peer="b")], 1), [before, told(100, peer="b")], 1_000.0)
    judge.asleep_s = asleep_s
    return judge.judge([claim, told(100, peer="b")], 2, 0, now_s).get(PeerId("a"), "")


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(told(20_000), id="trained-all-the-time"),
        pytest.param(told(200_000), id="became-slower-by-ten"),
        pytest.param(told(300_000, speed=Speed(0.05, 100)), id="moved-to-a-machine-ten-times-as-fast"),
        pytest.param(told(0), id="trained-nothing"),
        pytest.param(told(10_000, speed=UNMEASURED), id="has-not-measured"),
    ],
)
def test_what_an_honest_island_may_come_to_is_accepted(claim: Participant) -> None:
    assert not judged(claim, now_s=1_100.0, before=told(100))


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (told(1 << 40), "at most 513600 are possible at its 200 tokens per second"),
        (told(1 << 40, speed=Speed(1e-6, 1 << 20)), "at its 3200 tokens per second"),
        (told(1 << 40, speed=UNMEASURED), "at its 3200 tokens per second"),
        (told(100, inner_step=1 << 40), "at most 5120 steps are possible"),
    ],
    ids=["tokens", "tokens-and-speed", "tokens-and-no-speed", "steps"],
)
def test_what_does_not_fit_into_the_time_is_refused(claim: Participant, said: str) -> None:
    assert said in judged(claim, now_s=1_100.0, before=told(100))


def test_an_outage_a_first_contribution_and_a_suspended_judge_refuse_nobody() -> None:
    day = told(200 * 86_400)
    assert not judged(day, now_s=1_000.0 + 86_400.0, before=told(100))
    assert not judged(day, now_s=1_100.0, before=told(100), asleep_s=86_400.0)
    assert judged(day, now_s=1_100.0, before=told(100))
    assert not judged(day, now_s=1_100.0, before=told(100, peer="c")), "it has just come, or the judge has"


def test_who_falls_in_with_the_others_takes_over_their_step() -> None:
    judge = ClaimJudge(Limits())
    known = [told(100), told(100, peer="b", inner_step=1_000_000)]
    judge.committed(entry_of(known, 1), known, 0.0)
    assert not judge.judge([told(100, inner_step=1_000_010), known[1]], 2, 0, 10.0)


class Liar(SimIsland):
    """Trains like any, and claims 2^20 tokens more for each step."""

    def _train(self) -> None:
        super()._train()
        if self.progress.inner_step > 60:
            self.progress.trained(1 << 20)


def test_one_that_lies_about_its_tokens_is_refused_and_the_others_go_on() -> None:
    policy = RoundPolicy(deadline_s=2.0, partition="majority")
    settings = IslandSettings(policy=policy, schedule=toy_schedule(num_fragments=1))
    swarm = SimSwarm(4, Tape(1, (), (), quiet_s=60.0), settings, kinds={3: Liar})
    outcome = run_virtually(swarm.run(), 200.0)
    assert not outcome.errors
    for island in outcome.final[:3]:
        assert island.record.entries[-1].outer_step > 40
        assert island.record.entries[-1].total_tokens < 1 << 20
        assert {peer for peer, _ in island.record.entries[-1].participants} == {name(0), name(1), name(2)}
        assert any("tokens per second" in said for report in island.reports for said in report.rejected)
