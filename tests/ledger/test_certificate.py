"""What makes an entry the one of its outer step, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.exchanges.loopback import LoopbackHub
from lowcomm.ledger.certificate import (
    Ballot,
    Certificate,
    Goodbye,
    check_certificate,
    goodbye_bytes,
    is_quorum,
    parse_certificate,
    vote_bytes,
)
from lowcomm.ledger.chain import Certified, Standing
from lowcomm.ledger.entry import Entry, hash_bytes
from lowcomm.ledger.mandate import Authority, Mandate
from lowcomm.recovery.forks import Branch, Side, other_stands
from lowcomm.types import PeerId

HUB = LoopbackHub()
A, B, C, D = (PeerId(name) for name in "abcd")
HASH = hash_bytes(b"x")
BALLOT = Ballot(2, A)
ENTRY = Entry(
    run_id="run", fragment=0, outer_step=5, participants=((A, 10), (B, 10)), total_tokens=100, stops=(4, 8),
    chunk_elements=4, update_hash=HASH, update_bytes=9, state_digest=HASH, previous=HASH,
    contributions=((7, "0" * 32), (9, "1" * 32)),
)  # fmt: skip


def verify(peer: PeerId, message: bytes, signature: bytes) -> bool:
    return HUB.signature(peer, message) == signature


def voted(*voters: PeerId, absent: tuple[PeerId, ...] = (), entry: Entry = ENTRY) -> Certificate:
    message = vote_bytes("run", 0, 5, BALLOT, absent, entry.hash)
    return Certificate(BALLOT, absent, tuple((peer, HUB.signature(peer, message)) for peer in voters))


def left(peer: PeerId, outer_step: int) -> Goodbye:
    return Goodbye(peer, (outer_step,), HUB.signature(peer, goodbye_bytes("run", peer, (outer_step,))))


def check(certificate: Certificate, electorate: tuple[PeerId, ...] | None, *, majority: bool = False) -> None:
    check_certificate(ENTRY, certificate, electorate, verify, majority=majority, min_participants=2)


def test_more_than_half_of_those_who_may_decide_are_enough() -> None:
    check(voted(A, B), (A, B, C))
    check(voted(A, B), (A, B, C), majority=True)
    check(voted(A, B, absent=(C, D)), (A, B, C, D))
    check(voted(A), None)  # who may decide isn't known, the signatures are right
    assert is_quorum([A], (), ())
    assert not is_quorum([], (), ())


@pytest.mark.parametrize(
    ("certificate", "says"),
    [
        (voted(A, B), "no majority of those who may decide"),
        (voted(A, B, D, entry=replace(ENTRY, total_tokens=101)), "the vote of a is not its own"),
        (voted(A, B, C, absent=(C,)), "who is said to be absent has voted"),
        (replace(voted(A, B, C), absent=(D,)), "the vote of a is not its own"),
        (replace(voted(A, B, C), ballot=Ballot(3, A)), "the vote of a is not its own"),
    ],
    ids=["half", "of-another-entry", "voter-absent", "absent-added", "of-another-ballot"],
)
def test_what_proves_nothing(certificate: Certificate, says: str) -> None:
    with pytest.raises(ProtocolError, match=f"fragment 0, outer step 5: .*{says}"):
        check(certificate, (A, B, C, D))


def test_too_few_participants_prove_nothing() -> None:
    with pytest.raises(ProtocolError, match="2 took part, at least 3 have to"):
        check_certificate(ENTRY, voted(A, B), (A, B), verify, majority=False, min_participants=3)


@pytest.mark.parametrize(
    ("goodbyes", "holds"),
    [
        ((left(D, 4),), True),
        ((left(D, 3),), True),
        ((left(D, 2),), False),
        ((), False),
        ((left(C, 4),), False),
        ((replace(left(D, 4), signature=b"made up"),), False),
    ],
    ids=["after-the-last-round", "in-it", "long-before", "none", "of-another", "forged"],
)
def test_with_majority_one_that_has_said_goodbye_may_be_left_out(
    goodbyes: tuple[Goodbye, ...], holds: bool
) -> None:
    certificate = replace(voted(A, B, absent=(D,)), goodbyes=goodbyes)
    if holds:
        check(certificate, (A, B, C, D), majority=True)
    else:
        with pytest.raises(ProtocolError, match="d was left out, and has not said goodbye"):
            check(certificate, (A, B, C, D), majority=True)


def test_with_majority_two_may_not_be_left_out() -> None:
    certificate = replace(voted(A, B, absent=(C, D)), goodbyes=(left(C, 4), left(D, 4)))
    with pytest.raises(ProtocolError, match="was left out"):
        check(certificate, (A, B, C, D), majority=True)


def test_a_certificate_travels_as_it_is() -> None:
    certificate = replace(voted(A, B, absent=(D,)), goodbyes=(left(D, 4),))
    assert parse_certificate(Fields("certificate", certificate.to_json())) == certificate


OPERATOR = PeerId("operator")
EVERYBODY = (A, B, C, D)


def given(*members: PeerId, step: int = 4, run_id: str = "run", signer: PeerId = OPERATOR) -> Mandate:
    mandate = Mandate(run_id=run_id, positions={0: (step, HASH)}, members=members, operator=OPERATOR)
    return replace(mandate, signature=HUB.signature(signer, mandate.content))


def under(mandate: Mandate, *voters: PeerId, names: Mandate | None = None) -> Certificate:
    message = vote_bytes("run", 0, 5, BALLOT, (), ENTRY.hash, (names or mandate).digest)
    votes = tuple((peer, HUB.signature(peer, message)) for peer in voters)
    return parse_certificate(Fields("certificate", Certificate(BALLOT, (), votes, mandate=mandate).to_json()))


def check_under(certificate: Certificate, operator: PeerId = OPERATOR, *, majority: bool = True) -> None:
    authority = Authority("run", operator, verify)
    check_certificate(
        ENTRY, certificate, EVERYBODY, verify, majority=majority, min_participants=1, authority=authority
    )


def test_with_a_mandate_more_than_half_of_its_members_are_enough() -> None:
    check_under(under(given(A), A))
    check_under(under(given(A, B), A, B))
    check(under(given(A), A), None, majority=True)  # who may decide isn't known, nor who may give one


@pytest.mark.parametrize(
    ("certificate", "says"),
    [
        (under(given(A, B), A), "no majority of those who may decide: a, b"),
        (under(given(A), B), "no majority of those who may decide: a"),
        (under(given(A, signer=A), A), "is not signed by the run's operator, operator"),
        (under(given(A, step=3), A), "is about another outer step"),
        (under(given(A, run_id="other"), A), "is one of run 'other', not of 'run'"),
        (under(given(A, B, C), A, B), "they are most of those who may decide, so it was not needed"),
        (under(given(A), A, names=given(A, B)), "the vote of a is not its own"),
        (voted(A), "no majority of those who may decide: a, b, c, d"),
    ],
    ids=["half", "stranger", "forged", "replayed", "other-run", "needless", "votes-for-another", "without"],
)
def test_what_makes_a_mandate_worthless(certificate: Certificate, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        check_under(certificate)


def test_a_mandate_counts_nowhere_in_vain() -> None:
    with pytest.raises(ProtocolError, match="with partition = continue nobody needs one"):
        check_under(under(given(A), A), majority=False)
    with pytest.raises(ProtocolError, match=r"names no operator.*that of this island has not agreed"):
        check_under(under(given(A), A), operator=PeerId(""))


def test_the_side_that_a_mandate_has_begun_stands() -> None:
    """Whoever was lost for good, and comes back with what only it and the other lost ones had decided."""
    lost, left = Certified(ENTRY, voted(A, B, C)), Certified(ENTRY, under(given(D), D))
    more, less = Side(Standing(900, 9), HASH, 5), Side(Standing(100, 5), HASH, 1)
    assert other_stands(Branch(EVERYBODY, lost, (left,)), more, less)
    assert not other_stands(Branch(EVERYBODY, left, (lost,)), less, more)
