"""Who trains on what next: units of the data's endless order are leased, without anybody who hands them out.

An island takes the unit that rendezvous hashing (Thaler and Ravishankar 1998) gives to it, among the first
free ones: those that no entry credits and that no other island says it holds. So islands rarely choose alike,
also while they can't hear each other. What it takes it tells all others, a while before it trains on it; of
two that have taken the same unit at once the one with the better right keeps it. What an island held that is
gone is free again after a grace, or at once where it has said goodbye (docs/design/0026-units.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lowcomm.exchanges.base import Message, Signer
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.credits import MAX_CREDITED
from lowcomm.ledger.entry import hash_value
from lowcomm.peers.notice import Notice
from lowcomm.peers.table import Peers
from lowcomm.spans import Spans, common, flat, joined, parse_spans, size, without
from lowcomm.types import PeerId

WINDOW = 16
"""Free units for each island that one is chosen from, at least: twice as many as are asked for, so that these
are mostly its own. The wider, the longer those that can't hear each other choose apart; the narrower, the
closer the order of the data is kept."""
GIVEN_BACK_S = 60.0
"""Whoever is gone without a goodbye keeps what it holds, and its right to units, for so long."""
TELL_PATIENCE_S = 3.0
"""A newcomer waits so long for the others to say what they hold."""


class Leases:
    """What this island and others hold; call only from the exchange's loop.

    Args:
        unit_samples: samples in a unit; 0 = this island leases nothing.
    """

    def __init__(self, signer: Signer, peers: Peers, changed: Notice, unit_samples: int) -> None:
        self._signer, self._peers, self._changed, self._unit = signer, peers, changed, unit_samples
        self._theirs: dict[PeerId, Spans] = {}
        self._gone_s: dict[PeerId, float] = {}
        self._told: dict[PeerId, Spans] = {}
        self._held: Spans = ()
        self._rights: dict[PeerId, np.uint64] = {}

    @property
    def islands(self) -> int:
        """How many train, this one included."""
        return 1 + len(self._training())

    async def know_others(self) -> None:
        """Wait for those who train to say what they hold."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + TELL_PATIENCE_S
        while (left_s := give_up_s - loop.time()) > 0.0:
            if all(peer in self._theirs for peer in self._training()):
                return
            await self._changed.wait(min(0.1, left_s))

    def tell(self, held: Spans) -> None:
        """Tell all others what this island holds, as far as they listen."""
        self._held = held[:MAX_CREDITED]
        self.look()

    def look(self) -> None:
        """Tell those who don't know it yet."""
        if not self._unit:
            return
        for peer in self._peers.live():
            if peer.state.role == "island" and self._told.get(peer.id) != self._held:
                self._told[peer.id] = self._held
                self._peers.post(peer.id, Message("units", {"held": list(flat(self._held))}))

    def on_units(self, peer: PeerId, fields: Fields) -> None:
        """`units`: another island says what it holds.

        Raises:
            ProtocolError: it is no set of spans.
        """
        held = parse_spans("units.held", fields.integers("held", 2 * MAX_CREDITED), MAX_CREDITED)
        self._theirs[peer] = held
        self._gone_s.pop(peer, None)
        self._changed.notify()

    def on_peer_down(self, peer: PeerId) -> None:
        """A link is about to be taken down."""
        entry = self._peers.linked.get(peer)
        self._told.pop(peer, None)
        if entry is not None and entry.state.phase == "leaving":
            self._theirs.pop(peer, None)
        elif peer in self._theirs:
            self._gone_s[peer] = asyncio.get_running_loop().time()

    def held_by_others(self) -> Spans:
        """What is not free, as others hold it."""
        now_s = asyncio.get_running_loop().time()
        for peer in self._theirs.keys() - self._peers.linked.keys():
            self._gone_s.setdefault(peer, now_s)
        for peer in [peer for peer, gone_s in self._gone_s.items() if now_s - gone_s > GIVEN_BACK_S]:
            del self._gone_s[peer], self._theirs[peer]
        return joined(span for held in self._theirs.values() for span in held)

    def choose(self, count: int, taken: Spans) -> list[tuple[int, int]]:
        """At least so many samples, in whole units as far as these are free; each span is of one unit.

        Args:
            taken: credited, or held by anybody.
        """
        islands = [*{self._signer.peer_id, *self._training(), *self._gone_s}]
        chosen: list[tuple[int, int]] = []
        while count > 0:
            wide = max(WINDOW, 2 * -(-count // self._unit)) * len(islands)
            window = list(self._free(joined((*taken, *chosen)), wide))
            rank = self._ranks(np.array([number for number, _ in window], dtype=np.uint64), islands)
            for place in np.flatnonzero(rank == rank.min()).tolist():
                chosen += window[place][1]
                count -= size(window[place][1])
                if count <= 0:
                    break
        return chosen

    def yielded(self, reserved: Spans) -> Spans:
        """What of units that are leased but not begun another island has taken, by a better right."""
        if not reserved:
            return ()
        lost: list[tuple[int, int]] = []
        for peer, held in self._theirs.items():
            for first, stop in common(reserved, held):
                units = np.arange(first // self._unit, (stop - 1) // self._unit + 1, dtype=np.uint64)
                beaten = self._ranks(units, [self._signer.peer_id, peer]) > 0
                lost += [(int(u) * self._unit, (int(u) + 1) * self._unit) for u in units[beaten]]
        return common(reserved, joined(lost))

    def _training(self) -> list[PeerId]:
        return [
            peer.id
            for peer in self._peers.live()
            if peer.state.role == "island" and peer.state.phase == "training"
        ]

    def _free(self, taken: Spans, most: int) -> Iterator[tuple[int, Spans]]:
        """The first units with a free sample, and which of theirs are free."""
        unit, found, number = self._unit, 0, 0
        while found < most:
            whole = (number * unit, (number + 1) * unit)
            if free := without((whole,), taken):
                yield number, free
                found += 1
                number += 1
            else:
                until = next(stop for first, stop in taken if first <= whole[0] < stop)
                number = max(number + 1, until // unit)

    def _ranks(self, units: NDArray[np.uint64], islands: list[PeerId]) -> NDArray[np.int64]:
        """(units,) how many of these islands have a better right to each one than this one has."""
        for peer in islands:
            if peer not in self._rights:
                self._rights[peer] = np.uint64(int(hash_value(["lowcomm units", peer])[:16], 16))
        scores = _mix(units[:, None] ^ np.array([self._rights[peer] for peer in islands])[None, :])
        mine = scores[:, islands.index(self._signer.peer_id)]
        better: NDArray[np.int64] = (scores > mine[:, None]).sum(axis=1)
        return better


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread each word over all 64 bits (the finalizer of SplitMix64; Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))
