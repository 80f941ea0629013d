"""Ledger files of islands with keys: what verifying finds, and what compacting leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.exchanges.swarm.identity import MESSAGES, Identity
from lowcomm.ledger.audit import Audit, Auditor, Law
from lowcomm.ledger.certificate import Ballot, Certificate, vote_bytes
from lowcomm.ledger.chain import Certified
from lowcomm.ledger.compaction import Compaction, compact
from lowcomm.ledger.entry import Entry, genesis_head, hash_bytes
from lowcomm.ledger.file import LedgerFile
from lowcomm.ledger.mandate import Mandate

ISLANDS = sorted((Identity.generate() for _ in range(3)), key=lambda identity: identity.peer_id)
OPERATOR, STRANGER = Identity.generate(), Identity.generate()
HASH = hash_bytes(b"x")
LAW = Law(majority=True, min_participants=2, operator=OPERATOR.peer_id)
GENESIS = [genesis_head("run", fragment, HASH) for fragment in range(2)]


def certified(
    before: Certified | None,
    fragment: int = 0,
    *,
    tokens: int = 10,
    voters: Sequence[Identity] = ISLANDS,
    mandate: Mandate | None = None,
    participants: Sequence[Identity] = ISLANDS,
) -> Certified:
    """The entry that follows another one."""
    last = before.entry if before else None
    step = last.outer_step + 1 if last else 1
    took_part = tuple((identity.peer_id, tokens) for identity in participants)
    entry = Entry(
        run_id="run", fragment=fragment, outer_step=step, participants=took_part,
        total_tokens=(last.total_tokens if last else 0) + tokens * len(took_part), stops=(4, 8, 12),
        chunk_elements=4, update_hash=HASH, update_bytes=9, state_digest=HASH,
        previous=last.hash if last else GENESIS[fragment],
        contributions=tuple((tokens * (step - 1), "0" * 32) for _ in took_part),
    )  # fmt: skip
    ballot, name = Ballot(1, voters[0].peer_id), mandate.digest if mandate else None
    signed = vote_bytes("run", fragment, step, ballot, (), entry.hash, name)
    votes = tuple(sorted((voter.peer_id, voter.sign(MESSAGES, signed)) for voter in voters))
    return Certified(entry, Certificate(ballot, (), votes, mandate=mandate))


def chain_of(count: int, before: Certified | None = None, fragment: int = 0) -> list[Certified]:
    found: list[Certified] = []
    for _ in range(count):
        before = certified(before, fragment)
        found.append(before)
    return found


def written(path: Path, *chains: Sequence[Certified]) -> Path:
    file = LedgerFile(path / "ledger.jsonl")
    for chain in chains:
        for one in chain:
            file.append(one, None)
    return path / "ledger.jsonl"


def audit(ledger: Path, law: Law = LAW) -> Auditor:
    return Auditor(Audit(), ledger, "run", law=law)


def small(ledger: Path, keep: int = 2) -> Compaction:
    auditor = audit(ledger)
    assert auditor.found.valid, auditor.found.problem
    signer = ISLANDS[0]
    return compact(
        ledger,
        auditor,
        dict.fromkeys(auditor.found.heads, keep),
        signer.peer_id,
        lambda data: signer.sign(MESSAGES, data),
    )


def mandate_after(before: Certified, *members: Identity, operator: Identity = OPERATOR) -> Mandate:
    mandate = Mandate(
        run_id="run",
        positions={0: (before.entry.outer_step, before.entry.hash)},
        members=tuple(sorted(member.peer_id for member in members)),
        operator=OPERATOR.peer_id,
    )
    return replace(mandate, signature=operator.sign(MESSAGES, mandate.content))


def test_votes_of_a_quorum_prove_each_entry(tmp_path: Path) -> None:
    first = chain_of(3)
    most = certified(first[-1], voters=ISLANDS[:2])
    mandate = mandate_after(most, ISLANDS[2])
    alone = certified(most, voters=[ISLANDS[2]], mandate=mandate, participants=ISLANDS[1:])
    ledger = written(tmp_path, first, [most, alone])
    found = audit(ledger).found
    assert (found.problem, found.proven, found.unsigned, found.mandates) == ("", 5, 0, 1)
    agreed = Law(majority=True, allowed=frozenset({mandate.digest}))
    assert audit(ledger, agreed).found.valid
    assert "that of this island has not agreed" in audit(ledger, Law(majority=True)).found.problem


def forged(before: Certified) -> Certified:
    entry, certificate = certified(before)
    assert certificate is not None
    (name, signature), *others = certificate.votes
    wrong = (name, bytes([signature[0] ^ 1]) + signature[1:])
    return Certified(entry, replace(certificate, votes=(wrong, *others)))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (forged, "fragment 0, outer step 4: the vote of 12D3KooW.* is not its own"),
        (
            lambda before: certified(before, voters=ISLANDS[:1]),
            "which is no majority of those who may decide",
        ),
        (lambda before: certified(before, voters=[STRANGER, ISLANDS[0]]), "no majority of those who may"),
        (lambda before: certified(before, participants=ISLANDS[:1]), "1 took part, at least 2 have to"),
        (lambda before: Certified(certified(before).entry, None), "has no votes, which it had"),
        (
            lambda before: certified(
                before, voters=ISLANDS[:1], mandate=mandate_after(before, ISLANDS[0], operator=STRANGER)
            ),
            "is not signed by the run's operator",
        ),
        (
            lambda before: certified(before, mandate=mandate_after(before, *ISLANDS[:2])),
            "so it was not needed",
        ),
    ],
    ids=["forged", "minority", "stranger", "too-few", "removed", "false-mandate", "needless-mandate"],
)
def test_an_entry_that_is_not_proven_is_named(
    tmp_path: Path, spoil: Callable[[Certified], Certified], says: str
) -> None:
    before = chain_of(3)
    ledger = written(tmp_path, before, [spoil(before[-1])])
    with pytest.raises(AssertionError, match=rf"ledger\.jsonl:4: .*{says}"):
        small(ledger)
    assert audit(ledger).found.entries == 3


def test_what_follows_from_dropped_entries_stays(tmp_path: Path) -> None:
    """Also when it is done again and again, while the island goes on in between."""
    chains = [chain_of(6, fragment=fragment) for fragment in range(2)]
    whole = written(tmp_path, *chains)
    (tmp_path / "small").mkdir()
    ledger = written(tmp_path / "small", *chains)
    for turn in range(3):
        assert small(ledger).dropped == (8 if turn == 0 else 4)
        for fragment in range(2):
            more = chain_of(2, chains[fragment][-1], fragment)
            chains[fragment] += more
            written(tmp_path, more)
            written(tmp_path / "small", more)
        before, after = audit(whole), audit(ledger)
        assert after.found.problem == ""
        assert after.found.compacted + after.found.entries == before.found.entries
        assert after.found.head == before.found.head
        assert after.found.credited == before.found.credited
        for fragment in range(2):
            part = after.newest_part(fragment)
            assert part == before.newest_part(fragment)
            assert part.credits[ISLANDS[0].peer_id].until == 10 * part.outer_step
            assert part.last == chains[fragment][-1]
    assert len(ledger.read_bytes().splitlines()) == 1 + 2 * 4
    assert small(ledger, keep=10).dropped == 0


def test_the_votes_after_what_was_compacted_are_checked_against_it(tmp_path: Path) -> None:
    chain = chain_of(6)
    ledger = written(tmp_path, chain)
    small(ledger, keep=1)
    assert audit(ledger).found.valid
    stranger = certified(chain[-2], voters=[STRANGER])
    first = ledger.read_bytes().splitlines()[0]
    ledger.write_bytes(first + b"\n")
    written(tmp_path, [stranger])
    assert "no majority of those who may decide" in audit(ledger).found.problem


def test_states_taken_from_others_and_what_restarts_left_behind(tmp_path: Path) -> None:
    """A chain, a gap that a state bridges, entries that were done twice, and a branch that was left."""
    chain = chain_of(12)
    left = certified(chain[2], tokens=5)
    ledger = written(tmp_path, chain[:3], [left], chain[1:5])
    tip = chain[7]
    LedgerFile(ledger).note_snapshot(0, 8, tip.entry.hash, HASH, tip)
    written(tmp_path, chain[8:])
    before = audit(ledger)
    assert before.found.problem == ""
    assert before.found.rewound > 0
    done = small(ledger)
    assert done.kept == 2
    found = audit(ledger)
    assert found.found.problem == ""
    assert (found.found.snapshots, found.found.rewound) == (1, before.found.rewound)
    compacted = found.compacted
    assert compacted is not None
    assert [(part.start, part.outer_step, part.entries) for part in compacted.parts] == [
        (0, 5, 5),
        (8, 10, 2),
    ]
    assert sum(credit.tokens for credit in compacted.parts[0].credits.values()) == 5 * 30
    assert found.found.head == before.found.head


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"lines":4', b'"lines":3', "is not signed by 12D3KooW.*: it was changed"),
        (b'"version":1', b'"version":2', "expected 1, got 2; use a newer lowcomm"),
        (b'"entries":4', b'"entries":5', "as many entries as outer steps"),
        (b'"run_id":"run","lines"', b'"run_id":"ran","lines"', "expected a ledger of run 'run', got 'ran'"),
    ],
    ids=["changed", "version", "parts", "run"],
)
def test_a_compacted_line_that_was_changed_is_named(
    tmp_path: Path, old: bytes, new: bytes, says: str
) -> None:
    ledger = written(tmp_path, chain_of(6))
    small(ledger)
    data = ledger.read_bytes()
    assert old in data
    ledger.write_bytes(data.replace(old, new))
    problem = audit(ledger).found.problem
    with pytest.raises(ValueError, match=rf"ledger\.jsonl:1: .*{says}"):
        raise ValueError(problem)


def test_a_crash_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = written(tmp_path, chain_of(6))
    before = ledger.read_bytes()

    def dies(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dies)
        with pytest.raises(Exception, match="can't be compacted, and is as it was: No space left on device"):
            small(ledger)
    assert ledger.read_bytes() == before
    (tmp_path / "ledger.jsonl.new").write_bytes(before[:100])  # as a kill leaves it
    assert small(ledger).dropped == 4
    assert audit(ledger).found.valid
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]


def test_a_first_line_stands_alone(tmp_path: Path) -> None:
    ledger = written(tmp_path, chain_of(6))
    small(ledger)
    first, *rest = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join([first, *rest, first]))
    assert "expected what was compacted in the first line only" in audit(ledger).found.problem
    assert json.loads(first)["compacted"]["signer"] == ISLANDS[0].peer_id
