"""A chain knows where others part from it, also where it began with a state that was taken over."""

from __future__ import annotations

from dataclasses import replace

from lowcomm.ledger.chain import Certified, Chain
from lowcomm.ledger.entry import Entry
from lowcomm.types import Digest, PeerId


def entry(chain: Chain) -> Entry:
    return Entry(
        run_id="run",
        fragment=0,
        outer_step=chain.outer_step + 1,
        participants=((PeerId("a"), 10),),
        total_tokens=chain.total_tokens + 10,
        stops=(8,),
        chunk_elements=8,
        update_hash=Digest("0" * 64),
        update_bytes=8,
        state_digest=Digest("0" * 64),
        previous=chain.head,
        contributions=((chain.total_tokens, "0" * 32),),
    )


def test_a_chain_that_began_with_a_state_tells_the_entry_that_led_to_it() -> None:
    """So whoever takes that state over in turn sees what it was credited in the step that it missed."""
    whole, taken = Chain("run", 0, Digest("0" * 64)), Chain("run", 0, Digest("0" * 64))
    for _ in range(3):
        behind = whole.outer_step, whole.head
        whole.append(Certified(entry(whole), None), None)
    taken.restart_at(whole.outer_step, whole.head, whole.tip)
    assert taken.branch([behind]) == whole.branch([behind]) == [whole.tip]
    assert taken.branch([(behind[0] - 1, Digest("1" * 64))]) is None


def test_what_led_to_a_state_is_kept_where_it_is_known() -> None:
    whole, taken = Chain("run", 0, Digest("0" * 64)), Chain("run", 0, Digest("0" * 64))
    genesis = whole.outer_step, whole.head
    entries = []
    for _ in range(4):
        entries.append(Certified(entry(whole), None))
        whole.append(entries[-1], None)
        if len(entries) == 1:
            taken.append(entries[0], None)
    assert taken.restart_at(4, whole.head, whole.tip, entries[1:]) == []
    assert taken.branch([genesis]) == entries
    assert taken.restart_at(2, entries[1].entry.hash, entries[1]) == entries[2:]  # of this history
    assert taken.branch([genesis]) == entries[:2]
    assert taken.restart_at(4, whole.head, whole.tip, entries[2:3]) is None  # what is between isn't known
    assert taken.branch([genesis]) is None


def test_who_began_with_a_state_is_told_what_led_to_it() -> None:
    whole, taken = Chain("run", 0, Digest("0" * 64)), Chain("run", 0, Digest("0" * 64))
    genesis = whole.outer_step, whole.head
    entries = [Certified(entry(whole), None)]
    whole.append(entries[0], None)
    for _ in range(3):
        entries.append(Certified(entry(whole), None))
        whole.append(entries[-1], None)
    assert whole.until(3) == entries[2::-1]
    taken.restart_at(4, whole.head, whole.tip)
    taken.remember(entries[:2])  # not what led to the oldest head that it knows
    assert taken.branch([genesis]) is None
    taken.remember(entries[:3])
    assert taken.branch([genesis]) == entries
    assert taken.points() == whole.points()


def test_what_is_left_is_told_where_histories_part() -> None:
    one, other = Chain("run", 0, Digest("0" * 64)), Chain("run", 0, Digest("0" * 64))
    for chain in (one, other):
        chain.append(Certified(entry(chain), None), None)
    mine, theirs = [], []
    for chain, added, peer in ((one, mine, "a"), (other, theirs, "b")):
        for _ in range(3):
            made = replace(entry(chain), participants=((PeerId(peer), 10),))
            added.append(Certified(made, None))
            chain.append(added[-1], None)
    assert one.restart_at(other.outer_step, other.head, other.tip, theirs) == mine
    assert (one.outer_step, one.head, one.points()) == (other.outer_step, other.head, other.points())
