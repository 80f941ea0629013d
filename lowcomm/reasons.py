"""Why a ballot or a round came to nothing, in words: the one place where reasons become text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast, get_args

from lowcomm.types import BallotEnd, PeerId, Reason, ReasonKind, RoundReport, short

SHOWN = 3
"""Ballots of one round that a line speaks of, the newest."""

KINDS: dict[str, str] = {
    "gone": "link broke",
    "silent": "silent",
    "stalled": "part withheld",
    "votes": "vote withheld",
    "declined": "takes no part",
    "superseded": "a later ballot",
    "differ": "another state",
    "claims": "claims what it may not",
    "bad": "bad data",
    "own": "own failure",
    "disk": "promise not written",
    "fetch": "update not handed over",
    "few": "too few",
    "bound": "bound by an earlier vote",
    "told": "ended by another",
}
"""Of reasons, in a few words."""

Called = Callable[[PeerId], str]
"""What people call a peer."""


def called_by(names: Mapping[Any, Any]) -> Called:
    """Peers by their names, and those without one by the end of their id."""
    return lambda peer: str(names.get(peer) or short(peer))


def words_of(reason: Reason, called: Called) -> str:
    """A reason with the peers' names: `island-2 withheld its part for 5.1 s`."""
    who, several = ", ".join(called(peer) for peer in reason.peers), len(reason.peers) > 1
    lasted = f" for {reason.seconds:.1f} s" if reason.seconds else ""
    was, its = ("were", "their") if several else ("was", "its")
    words = {
        "gone": f"the link to {who} broke",
        "silent": f"{who} {was} silent{lasted}",
        "stalled": f"{who} withheld {its} part{'s' if several else ''}{lasted}",
        "votes": f"{who} withheld {its} vote{'s' if several else ''}{lasted}",
        "differ": f"{who} computed another state",
    }
    if who and reason.kind in words:
        return words[reason.kind]
    text = reason.text
    for peer in sorted(reason.peers, key=len, reverse=True):
        text = text.replace(peer, called(peer))
    return text


def why(ballots: Sequence[BallotEnd], participants: Iterable[str], called: Called) -> str:
    """Why ballots of a round that then committed came to nothing, in one line; empty where none did."""
    if not ballots:
        return ""
    last, told = ballots[-1], list(dict.fromkeys(words_of(end.reason, called) for end in ballots))
    who = "them" if len(last.reason.peers) > 1 else "it"
    blamed = set(last.reason.peers)
    if last.committed:
        outcome = f"committed without {who}"
    elif blamed:
        outcome = f"formed again with{'' if blamed & set(participants) else 'out'} {who}"
    else:
        outcome = "formed again"
    return "; ".join([*told[-SHOWN:], outcome])


def why_report(report: RoundReport, names: Mapping[PeerId, str]) -> str:
    """The same of a round's report, also why it was not committed."""
    if report.committed:
        return why(report.ballots, report.participants, called_by(names))
    return _given_up(report.reason, report.ballots, names)


def why_of(line: Mapping[str, Any]) -> str:
    """The same of a round line of metrics.jsonl, also why it was not committed; empty where all went well."""
    given, ends = line.get("names"), ends_of(line)
    names = given if isinstance(given, dict) else {}
    if line.get("committed"):
        return why(ends, line.get("participants") or (), called_by(names))
    return _given_up(str(line.get("reason") or ""), ends, names)


def _given_up(reason: str, ballots: Sequence[BallotEnd], names: Mapping[Any, Any]) -> str:
    """Why a round was given up, and what came before that."""
    last = ballots[-1].reason if ballots else None
    if last is not None and last.text not in reason:
        told = words_of(last, called_by(names))
        reason = f"{reason} (before that {told})" if reason else told
    for peer, name in names.items():
        reason = reason.replace(str(peer), str(name) or short(peer))
    return reason


def ends_of(line: Mapping[str, Any]) -> tuple[BallotEnd, ...]:
    """The ballots of a round line; what is no ballot is left out."""
    ballots, found = line.get("ballots"), []
    for item in ballots if isinstance(ballots, (list, tuple)) else ():
        told = item.get("reason") if isinstance(item, Mapping) else None
        if not isinstance(told, Mapping) or told.get("kind") not in get_args(ReasonKind):
            continue
        reason = Reason(
            cast("ReasonKind", told["kind"]),
            str(told.get("text", "")),
            _peers(told.get("peers")),
            float(told.get("seconds") or 0.0),
        )
        attempt, leader = int(item.get("attempt") or 0), PeerId(str(item.get("leader", "")))
        took_part, seconds = _peers(item.get("participants")), float(item.get("seconds") or 0.0)
        committed = bool(item.get("committed"))
        found.append(BallotEnd(attempt, leader, took_part, reason, seconds, committed))
    return tuple(found)


def count_failed(lines: Iterable[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """How many ballots came to nothing, by the kind of reason and the peer that it names, or nobody ("")."""
    found: Counter[tuple[str, str]] = Counter()
    for line in lines:
        for end in ends_of(line):
            if not end.committed:
                found.update((end.reason.kind, str(peer)) for peer in end.reason.peers or ("",))
    return found


def _peers(value: object) -> tuple[PeerId, ...]:
    return tuple(PeerId(str(peer)) for peer in value) if isinstance(value, (list, tuple)) else ()
