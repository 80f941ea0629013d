"""The samples of one island on their way into the ledger: reserved, leased, trained on, credited.

`reserved` units are leased and told to others, and not handed out yet; `leased` ones the loader has; what
was trained on waits for a committed entry that credits it. All of these are held; others don't train on them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from lowcomm.exchanges.base import Signer
from lowcomm.ledger.chain import KEPT_HEADS, Chain
from lowcomm.ledger.credits import MAX_RUNS
from lowcomm.ledger.entry import ContributionId, Entry
from lowcomm.peers.leases import Leases
from lowcomm.recovery.forks import Switch
from lowcomm.spans import Spans, beginning, flat, joined, parse_spans, size, without
from lowcomm.types import Json

logger = logging.getLogger(__name__)

HANDED_S, HANDED_PER_ISLAND_S = 0.5, 0.05
"""Samples for so long are handed out at a time, or for so long for each island, as leases are told to all."""
AHEAD = 4
"""So many times as many are reserved before they are handed out, so that who else has taken one says so in
time."""
MOST_UNLANDED = 64
"""Entries that are committed here and not in the local parameters yet: one at most, and some room."""
_Trained = tuple[Spans, int]
"""Samples, and their tokens."""


class Units:
    """The units of this island; but for `trained`, call only from the exchange's loop.

    Args:
        chain: of the first fragment, whose entries credit samples.
    """

    def __init__(self, signer: Signer, chain: Chain, leases: Leases) -> None:
        self._signer, self._chain, self.leases = signer, chain, leases
        self._reserved: list[tuple[int, int]] = []  # each of one unit, in the order in which they were taken
        self._leased: Spans = ()
        self._waiting: list[_Trained] = []
        self._posted: deque[_Trained] = deque()
        self._has_trained = False
        self._announced: dict[ContributionId, None] = {}
        self._credited: deque[tuple[int, list[_Trained]]] = deque(maxlen=MOST_UNLANDED)
        self._samples_per_s, self._asked_s, self._handed = 0.0, 0.0, 0
        self._warned = False

    @property
    def credited(self) -> Spans:
        """What the anchor has seen."""
        last = self._chain.last
        return last.samples.credited if last is not None and last.samples is not None else ()

    @property
    def held(self) -> Spans:
        """What no other island should train on."""
        self._drain()
        waiting = (span for spans, _ in self._waiting for span in spans)
        return joined((*self._reserved, *self._leased, *waiting))

    def trained(self, samples: Spans, tokens: int) -> None:
        """These were trained on; the one call that is the training thread's."""
        self._posted.append((samples, tokens))

    def _drain(self) -> None:
        while self._posted:
            samples, tokens = self._posted.popleft()
            self._has_trained = True
            self._leased = without(self._leased, samples)
            if self._waiting and len(joined((*self._waiting[-1][0], *samples))) == 1:
                before, counted = self._waiting.pop()
                samples, tokens = joined((*before, *samples)), counted + tokens
            self._waiting.append((samples, tokens))

    # -- leasing -----------------------------------------------------------------------------------

    async def lease(self, count: int) -> list[int]:
        """At least so many samples more to train on, as spans one after the other."""
        now_s = asyncio.get_running_loop().time()
        if self._handed:
            rate = self._handed / max(1e-3, now_s - self._asked_s)
            self._samples_per_s = (rate + (self._samples_per_s or rate)) / 2
        else:
            await self.leases.know_others()
        self._asked_s = now_s
        gone = joined((*self.leases.yielded(joined(self._reserved)), *self.credited))
        self._reserved = [part for span in self._reserved for part in without((span,), gone)]
        pace_s = max(HANDED_S, HANDED_PER_ISLAND_S * self.leases.islands)
        handed = max(count, int(self._samples_per_s * pace_s))
        wanted = AHEAD * handed if self._samples_per_s else count
        if (lacking := wanted - size(joined(self._reserved))) > 0:
            taken = joined((*self.credited, *self.held, *self.leases.held_by_others()))
            self._reserved += self.leases.choose(lacking, taken)
        leased = self._hand_out(handed)
        self._leased, self._handed = joined((*self._leased, *leased)), size(leased)
        self.leases.tell(self.held)
        return flat(leased)

    def _hand_out(self, count: int) -> Spans:
        """At least so many of the reserved samples, those that others have known of for longest."""
        found: list[tuple[int, int]] = []
        while self._reserved and count > 0:
            span = self._reserved.pop(0)
            found.append(span)
            count -= span[1] - span[0]
        return joined(found)

    async def retake(self, samples: Sequence[int]) -> list[int]:
        """What of these, leased by an earlier process of this island, is still free; it is leased again."""
        await self.leases.know_others()
        taken = joined((*self.credited, *self.held, *self.leases.held_by_others()))
        again = without(parse_spans("samples", samples, len(samples)), taken)
        self._leased = joined((*self._leased, *again))
        self.leases.tell(self.held)
        return flat(again)

    # -- crediting ---------------------------------------------------------------------------------

    def announce(self, contribution: ContributionId) -> Spans:
        """The samples of a contribution: those that have waited longest."""
        self._drain()
        if not self._waiting:
            return ()
        tokens = contribution.tokens
        self._announced[contribution] = None
        if len(self._announced) > KEPT_HEADS:
            del self._announced[next(iter(self._announced))]
        chosen: list[tuple[int, int]] = []
        for spans, count in self._waiting:
            part = spans if count <= tokens else beginning(spans, size(spans) * tokens // count)
            if len(joined((*chosen, *part))) > MAX_RUNS:
                self._warn(len(self._waiting))
                break
            chosen += part
            tokens -= count
            if tokens <= 0:
                break
        return joined(chosen)

    def _warn(self, runs: int) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "what this island has trained on is in %d runs of samples, an entry names %d of one island; "
                "the rest comes with the next ones: raise shared.data.unit_samples, or sync more often",
                runs,
                MAX_RUNS,
            )

    def committed(self, entry: Entry) -> None:
        """An entry was committed here."""
        if entry.samples is None:
            return
        self._drain()
        gone = self._credit(entry) if self._is_own(entry) else []
        self._credited.append((entry.outer_step, gone))

    def _is_own(self, entry: Entry) -> bool:
        """Whether an entry's part of this island is of this process, or of what its checkpoint has."""
        name = entry.contribution_of(self._signer.peer_id)
        return name in self._announced or not self._has_trained

    def switched(self, switch: Switch, dropped: int) -> None:
        """Another history was taken over: what only the one before credited waits again.

        Args:
            dropped: tokens of it that can't be brought in any more, the oldest.
        """
        self._drain()
        me = self._signer.peer_id
        own = [one.entry for one in switch.taken if self._is_own(one.entry)]
        now = joined(span for entry in own for span in entry.samples_of(me))
        again: list[_Trained] = []
        for one in switch.left or ():
            mine, tokens = one.entry.samples_of(me), one.entry.tokens_of(me) or 0
            lost = without(mine, now)
            tokens = tokens * size(lost) // max(1, size(mine))
            skipped = min(tokens, dropped)
            dropped -= skipped
            kept = without(lost, beginning(lost, size(lost) * skipped // max(1, tokens)))
            if kept:
                again.append((kept, tokens - skipped))
        self._waiting[:0] = again
        self._credited.clear()
        for entry in own:
            self._credit(entry)
        self.leases.tell(self.held)

    def _credit(self, entry: Entry) -> list[_Trained]:
        """What waits no more, as an entry credits it."""
        samples = entry.samples_of(self._signer.peer_id)
        kept: list[_Trained] = []
        gone: list[_Trained] = []
        for spans, tokens in self._waiting:
            rest = without(spans, samples)
            left = tokens * size(rest) // size(spans)
            kept += [(rest, left)] if rest else []
            gone += [(without(spans, rest), tokens - left)] if rest != spans else []
        self._waiting = kept
        return gone

    async def forget(self) -> None:
        """What was trained on before a checkpoint is given up; its samples are free again."""
        self._drain()
        self._waiting = []

    # -- checkpoints -------------------------------------------------------------------------------

    async def state(self, outer_step: int) -> list[Json]:
        """What waited, for a checkpoint, when the outer step was decided that has come into it."""
        self._drain()
        later = [one for step, gone in self._credited if step > outer_step for one in gone]
        return [[list(flat(spans)), tokens] for spans, tokens in (*later, *self._waiting)]

    async def load(self, saved: Sequence[Sequence[Any]]) -> None:
        """Restore `state`, before a join."""
        self._waiting = [(parse_spans("samples", spans, len(spans)), tokens) for spans, tokens in saved]


def unit_state(state: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    """What a checkpoint has of it; nothing in those of versions before 0.3."""
    found: Sequence[Sequence[Any]] = state.get("samples", ())
    return found
