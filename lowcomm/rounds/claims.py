"""What a contribution may claim: tokens that are possible, a norm like those before it.

Judged from the roster, before a byte of it has been decoded, by every participant: the leader
doesn't propose a peer whose claim is out of bounds, and nobody takes part in a ballot with one.
The reducers then hold each peer to the norm that it announced (`lowcomm.rounds.transfer`), so a
claim that is small does not let a large vector pass. Clipping (Sun et al. 2019, arXiv:1911.07963)
scales a contribution down to a multiple of the roster's median norm; it is computed from the signed
roster, so all reducers scale alike.

The bound on the norm is `norm_limit` times the running median of committed rounds, or times the
median of this roster if that is larger: where most norms jump together, nobody lies. Both bounds
grow with the rounds that a peer has missed, since its progress does. Who has seen no rounds yet takes
into account that norms grow with tokens: islands that have just come back contribute little.

Tokens and steps are bounded by time as well: no more than `TIME_SLACK` times what fits, at the speed that the
peer tells, into the time since the outer step of its last contribution was opened, and a little on top. Its
speed may rise `RISE` times from one contribution to the next. Whoever was not seen to contribute in this
peer's life, since either of them has just come, is held to the ranges of the fields only.

With error feedback a peer also sends what it owes: what its last encoding lost, and what it lost of
the mean as a reducer, divided by its share. Both may be far above the norm of a small pseudo-gradient,
so such a peer may move the mean as much as one with an even share and the usual norm may.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.arguments import number, whole
from lowcomm.ledger.entry import MAX_TOTAL_TOKENS, Entry
from lowcomm.peers.bans import BAN_S
from lowcomm.rounds.roster import Participant
from lowcomm.types import PeerId

TIME_SLACK, TIME_GRACE_S = 16.0, 60.0
RISE = 16.0
LEAST_STEP_S = 1e-4
"""No step is believed to be shorter."""
HISTORY = 16
"""Committed rounds whose median norms the running median is taken over."""

HISTORY_NEEDED = 3
"""With fewer the roster alone must do."""

NORM_SLACK = 1.5
"""What encoding may add to a norm; with error feedback the residual comes on top."""

NORM_SLACK_WITH_RESIDUAL = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is accepted.

    Attributes:
        norm_limit: times the running median norm; 0 = any norm.
        clip_norm: contributions are scaled down to this many median norms; 0 = never.
        max_tokens: one island's tokens between two commits of a fragment; 0 = any number.
        max_rejections: after so many rejections in a row a peer is out.
        ban_s: seconds that it is out; twice as long each further time; 0 = for good.

    Raises:
        ConfigError: one is of another type, or out of range.
    """

    norm_limit: float = 0.0
    clip_norm: float = 0.0
    max_tokens: int = 0
    max_rejections: int = 3
    ban_s: float = BAN_S

    def __post_init__(self) -> None:
        for name in ("norm_limit", "clip_norm", "ban_s"):
            object.__setattr__(self, name, number(f"Limits: {name}", getattr(self, name), least=0))
        for name, least in (("max_tokens", 0), ("max_rejections", 1)):
            object.__setattr__(self, name, whole(f"Limits: {name}", getattr(self, name), least=least))


@dataclass(frozen=True, slots=True)
class _Last:
    """A peer's last contribution that was committed here.

    Attributes:
        since_s: when its outer step was opened; what it contributes next was trained after that.
        tokens_per_s: as it has told; 0 = it has not.
    """

    outer_step: int
    since_s: float
    tokens_per_s: float
    inner_step: int


class ClaimJudge:
    """Judges the contributions to one fragment's rounds and counts rejections.

    Attributes:
        asleep_s: for how long this machine has been suspended; others have trained meanwhile.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.asleep_s = limits, 0.0
        self.rejected: list[str] = []
        self._norms: deque[float] = deque(maxlen=HISTORY)
        self._last: dict[PeerId, _Last] = {}
        self._strikes: dict[PeerId, list[PeerId]] = {}

    def judge(
        self,
        members: Sequence[Participant],
        outer_step: int,
        total_tokens: int = 0,
        now_s: float = math.inf,
    ) -> dict[PeerId, str]:
        """Why members of a roster can't be accepted; empty where all can.

        Args:
            total_tokens: what the chain has counted before.
            now_s: infinite where nobody knows how much time has passed.
        """
        limits = self.limits
        refused: dict[PeerId, str] = {}
        usual = self._usual(members)
        left = MAX_TOTAL_TOKENS - total_tokens
        claims = sorted(members, key=lambda member: member.tokens)
        while sum(member.tokens for member in claims) > left:
            largest = claims.pop()
            refused[largest.peer] = f"{largest.tokens} tokens, where the ledger can count {left} more"
        for member in members:
            last = self._last.get(member.peer)
            rounds = max(1, outer_step - (last.outer_step if last else outer_step - 1))
            most_tokens, most_norm = limits.max_tokens * rounds, limits.norm_limit * usual * rounds
            if limits.max_tokens and member.tokens > most_tokens:
                refused[member.peer] = (
                    f"{member.tokens} tokens in {rounds} rounds, at most {most_tokens} are possible"
                )
            elif limits.norm_limit and usual > 0.0 and member.norm > most_norm:
                refused[member.peer] = (
                    f"a pseudo-gradient of norm {member.norm:.4g}, at most {most_norm:.4g} is accepted "
                    f"({limits.norm_limit:g} times the median of {usual:.4g})"
                )
            elif last is not None and (why := self._beyond_its_time(member, last, now_s)):
                refused[member.peer] = why
        return refused

    def _beyond_its_time(self, member: Participant, last: _Last, now_s: float) -> str:
        """What a member claims that the time since its last contribution does not allow; empty if nothing."""
        speed, passed_s = member.speed, now_s + self.asleep_s - last.since_s
        told = speed.tokens_per_s
        if last.tokens_per_s:
            told = min(told or math.inf, RISE * last.tokens_per_s)
        most = TIME_SLACK * (told * (passed_s + TIME_GRACE_S) + speed.step_tokens)
        if told and member.tokens > most:
            return (
                f"{member.tokens} tokens in {passed_s:.0f} s, at most {most:.0f} are possible at its "
                f"{told:.4g} tokens per second"
            )
        before = max(known.inner_step for known in self._last.values())
        most_steps = TIME_SLACK * (passed_s + TIME_GRACE_S) / max(speed.step_s, LEAST_STEP_S)
        if member.inner_step - before > most_steps:
            return (
                f"inner step {member.inner_step}, {passed_s:.0f} s after nobody was beyond {before}; at most "
                f"{most_steps:.0f} steps are possible"
            )
        return ""

    def scales(self, members: Sequence[Participant]) -> list[float]:
        """What each contribution is multiplied with: 1, or less to clip it."""
        most = self.limits.clip_norm * _low_median(members)
        return [
            min(1.0, most / member.norm) if most > 0.0 and member.norm > 0.0 else 1.0 for member in members
        ]

    def bounds(self, members: Sequence[Participant], *, residual: bool) -> list[float]:
        """The largest norm that each one's decoded contribution may have."""
        if not self.limits.norm_limit and not self.limits.clip_norm:
            return [float("inf")] * len(members)
        if not residual:
            return [NORM_SLACK * member.norm for member in members]
        usual = self._usual(members)
        even = sum(member.tokens for member in members) / len(members)
        owed = [usual * max(1.0, even / max(1, member.tokens)) for member in members]
        return [
            NORM_SLACK_WITH_RESIDUAL * max(member.norm, most)
            for member, most in zip(members, owed, strict=True)
        ]

    def reject(self, peer: PeerId, reason: str, accuser: PeerId, *, company: bool) -> bool:
        """Count a rejection; whether the peer is out now.

        Rejections that others report count, too, so that all put a liar out at about the same time;
        but two accusers are needed, or one liar could put others out. Where nobody else can have seen
        it, or nobody else has for twice as long, one accuser is enough.

        Args:
            accuser: who saw it.
            company: whether there are others that could have.
        """
        self.rejected.append(f"{peer}: {reason}")
        del self.rejected[:-HISTORY]
        strikes = self._strikes.setdefault(peer, [])
        strikes.append(accuser)
        least = self.limits.max_rejections
        if len(set(strikes)) > 1 or not company:
            return len(strikes) >= least
        return False

    def insists(self, peer: PeerId, me: PeerId) -> bool:
        """Whether this peer alone has rejected another twice as often as it takes."""
        return self._strikes.get(peer, []).count(me) >= 2 * self.limits.max_rejections

    def committed(self, entry: Entry, members: Sequence[Participant], opened_s: float | None = None) -> None:
        """A round has committed: its participants were fine.

        Args:
            opened_s: since when anybody was ready for it; None where that isn't known.
        """
        told = {member.peer: member for member in members}
        for peer, _ in entry.participants:
            self._strikes.pop(peer, None)
            before, member = self._last.get(peer), told.get(peer)
            since_s = before.since_s if before else -math.inf
            since_s = since_s if opened_s is None else opened_s + self.asleep_s
            self._last[peer] = _Last(
                entry.outer_step,
                since_s,
                member.speed.tokens_per_s if member else before.tokens_per_s if before else 0.0,
                member.inner_step if member else before.inner_step if before else 0,
            )
        if members:
            self._norms.append(_low_median(members))

    def refused_by(self, reason: str) -> None:
        """Others don't accept this island's own contribution."""
        self.rejected.append(reason)
        del self.rejected[:-HISTORY]

    def take_rejected(self) -> tuple[str, ...]:
        """The rejections since the last call, as `peer: reason`."""
        taken = tuple(self.rejected)
        self.rejected.clear()
        return taken

    def _usual(self, members: Sequence[Participant]) -> float:
        """The norm that a contribution to this round usually has."""
        if len(self._norms) >= HISTORY_NEEDED:
            return max(statistics.median(self._norms), _low_median(members))
        tokens = statistics.median_high(member.tokens for member in members)
        return statistics.median_low(
            member.norm * max(1.0, tokens / max(1, member.tokens)) for member in members
        )


def _low_median(members: Sequence[Participant]) -> float:
    """The lower median: of two norms the smaller, so that one liar of two can't raise it."""
    return statistics.median_low(member.norm for member in members)
