"""Why a round came to nothing, in one line with the islands' names."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import pytest

from lowcomm.metrics.console import describe
from lowcomm.reasons import KINDS, count_failed, ends_of, why_of
from lowcomm.types import BallotEnd, PeerId, Reason, ReasonKind

A, B, C = (PeerId(f"12D3KooW{letter * 44}") for letter in "ABC")
NAMES = {A: "island-0", B: "island-1", C: "island-2"}


def end(kind: ReasonKind, *peers: PeerId, seconds: float = 0.0, committed: bool = False) -> BallotEnd:
    text = f"{kind} of {', '.join(peers)}"
    return BallotEnd(1, A, (A, B, C), Reason(kind, text, peers, seconds), 2.0, committed)


def line(*ends: BallotEnd, participants: tuple[PeerId, ...] = (A, B, C), reason: str = "") -> dict[str, Any]:
    return {
        "kind": "round", "committed": not reason, "reason": reason, "participants": list(participants),
        "names": NAMES, "ballots": [asdict(one) for one in ends], "fragment": 0, "outer_step": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (line(), ""),
        (
            line(end("stalled", C, seconds=5.12), participants=(A, B)),
            "island-2 withheld its part for 5.1 s; formed again without it",
        ),
        (line(end("stalled", C, seconds=5.0)), "island-2 withheld its part for 5.0 s; formed again with it"),
        (
            line(end("stalled", B, C, seconds=9.0), participants=(A,)),
            "island-1, island-2 withheld their parts for 9.0 s; formed again without them",
        ),
        (
            line(end("votes", C, seconds=3.0, committed=True)),
            "island-2 withheld its vote for 3.0 s; committed without it",
        ),
        (
            line(
                end("gone", B),
                end("silent", C, seconds=4.0),
                end("silent", C, seconds=4.0),
                participants=(A,),
            ),
            "the link to island-1 broke; island-2 was silent for 4.0 s; formed again without it",
        ),
        (line(end("superseded")), "superseded of ; formed again"),
        (line(end("told", C)), "told of island-2; formed again with it"),
        (line(reason=f"1 of 3 were ready; {B} is away"), "1 of 3 were ready; island-1 is away"),
        (
            line(end("votes", C, seconds=3.0), reason="the others committed without this island"),
            "the others committed without this island (before that island-2 withheld its vote for 3.0 s)",
        ),
        (
            line(end("bad", C), reason=f"no commit within 240 s: bad of {C}"),
            "no commit within 240 s: bad of island-2",
        ),
    ],
)
def test_a_round_is_told_in_one_line(told: dict[str, Any], says: str) -> None:
    assert why_of(told) == says
    shown = describe({**told, "digest": "0" * 64}, 100)
    assert says in shown
    assert "\n" not in shown
    assert ("(after: " in shown) == bool(told["committed"] and says)


def test_ballots_are_counted_by_kind_and_peer() -> None:
    lines = [
        line(end("stalled", C), end("stalled", B, C)),
        line(end("superseded"), reason="no commit"),
        line(end("votes", C, committed=True)),
    ]
    assert count_failed(lines) == {("stalled", C): 2, ("stalled", B): 1, ("superseded", ""): 1}
    assert set(KINDS) == set(get_args(ReasonKind))


@pytest.mark.parametrize("ballots", [None, 3, ["x"], [{"reason": "x"}], [{"reason": {"kind": "new"}}]])
def test_lines_of_other_versions_are_read(ballots: Any) -> None:
    assert ends_of({"ballots": ballots}) == ()
    assert why_of({"committed": False, "reason": "because", "ballots": ballots}) == "because"
