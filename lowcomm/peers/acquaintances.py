"""Peers that were heard of, from other peers or the directory: dialled, and forgotten again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from lowcomm.errors import ExchangeError, ProtocolError
from lowcomm.exchanges.base import Links, Signer
from lowcomm.exchanges.fields import Fields
from lowcomm.types import Json, PeerId

MAX_KNOWN = 1_024
MAX_ADDRESSES = 16
MAX_DIALS = 16
"""At a time, so that junk in the directory neither exhausts this host nor floods others."""
REDIAL_S, REDIAL_LONGEST_S = 1.0, 30.0
FORGET_AFTER_S = 600.0
MAX_KEPT = 32
"""Who was linked and has not said goodbye is not forgotten, or an outage would part a swarm for good; so
many, the latest: one that comes back tells of all others. More that are off would fill up `MAX_DIALS`."""
PUT_OFF_S, PUT_OFF_LONGEST_S = 1.0, 600.0
"""A peer that doesn't fit is dialled again after so long, doubling: it may be mended by then."""


@dataclass(slots=True)
class _Known:
    """A peer that was heard of; `next_dial_s` in loop time, 0 = never tried; `met` = it was linked.

    `lives`: who has a link to it says so, and no dial has failed since; the directory also names the dead.
    """

    addresses: tuple[str, ...]
    heard_at_s: float
    lives: bool
    backoff_s: float = REDIAL_S
    next_dial_s: float = 0.0
    dialing: bool = False
    met: bool = False

    @property
    def worth(self) -> tuple[bool, float]:
        """Ascending in the order of dialling; the last one is the first to be forgotten."""
        return not self.met, self.backoff_s


class Acquaintances:
    """Everyone this peer may want a link to.

    Args:
        linked: whether there is a link to a peer.
        departed: whether a peer has said goodbye.
        spawn: runs a task that ends with the owner.
    """

    def __init__(
        self,
        links: Links,
        signer: Signer,
        linked: Callable[[PeerId], bool],
        departed: Callable[[PeerId], bool],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._links, self._signer, self._spawn = links, signer, spawn
        self._linked, self._departed = linked, departed
        self._known: dict[PeerId, _Known] = {}
        self._refused: set[PeerId] = set()
        self._put_off: dict[PeerId, tuple[float, float]] = {}
        self._dials = 0

    def __len__(self) -> int:
        return len(self._known)

    def has(self, peer: PeerId, addresses: Sequence[str]) -> bool:
        """Whether a peer was heard of before, with these addresses."""
        known = self._known.get(peer)
        return known is not None and known.addresses == tuple(addresses[:MAX_ADDRESSES])

    @property
    def dialing(self) -> bool:
        """Whether a link to a peer that lives is being made, or about to be tried for the first time."""
        return any(
            known.lives and (known.dialing or not (known.next_dial_s or self._linked(peer)))
            for peer, known in self._known.items()
        )

    def refuse(self, peer: PeerId) -> None:
        """Don't dial a peer (again)."""
        self._refused.add(peer)
        self._known.pop(peer, None)
        self._put_off.pop(peer, None)

    def put_off(self, peer: PeerId) -> bool:
        """A peer doesn't fit: it is dialled later. Returns whether it was not put off already."""
        now = asyncio.get_running_loop().time()
        until_s, pause_s = self._put_off.get(peer, (0.0, PUT_OFF_S / 2))
        if now < until_s:
            return False
        pause_s = min(PUT_OFF_LONGEST_S, 2 * pause_s)
        self._put_off[peer] = now + pause_s, pause_s
        if peer in self._known:
            self._known[peer].next_dial_s = now + pause_s
        return True

    def pardon(self, peer: PeerId) -> None:
        """A peer may be dialled again, once it is heard of."""
        self._refused.discard(peer)

    def lost(self, peer: PeerId) -> None:
        """A link broke: it is dialled again, a little later."""
        if peer in self._known:
            self._known[peer].lives = False
            soon_s = asyncio.get_running_loop().time() + REDIAL_S
            self._known[peer].next_dial_s = max(soon_s, self._put_off.get(peer, (0.0, 0.0))[0])

    def to_json(self) -> list[Json]:
        """Those that this peer has a link to; what it has only heard of may be junk, who is gone be dead."""
        return [[name, list(known.addresses)] for name, known in self._known.items() if self._linked(name)]

    def learn(self, peer: PeerId, addresses: Sequence[str], *, lives: bool) -> None:
        """A peer was heard of; it is dialled at the next `dial_due`.

        Args:
            lives: it is linked, here or to the peer that tells of it.
        """
        if peer == self._signer.peer_id or peer in self._refused:
            return
        now, addresses = asyncio.get_running_loop().time(), tuple(addresses[:MAX_ADDRESSES])
        known = self._known.get(peer)
        if known is not None:
            known.addresses, known.heard_at_s = addresses or known.addresses, now
            known.lives = known.lives or lives
            return
        if len(self._known) >= MAX_KNOWN and not self._linked(peer):
            least = max(self._known, key=lambda name: self._known[name].worth)
            if self._known[least].met:
                return
            del self._known[least]
        put_off_s, _ = self._put_off.get(peer, (0.0, 0.0))
        self._known[peer] = _Known(addresses, now, lives, next_dial_s=put_off_s)

    def dial_due(self) -> None:
        """Dial those whose time has come, a few at a time, first those that were never tried."""
        now, due = asyncio.get_running_loop().time(), []
        self._forget(now)
        for peer, known in self._known.items():
            if self._linked(peer):
                known.heard_at_s, known.backoff_s, known.met = now, 1.0, True
            elif not known.dialing and now >= known.next_dial_s:
                due.append(peer)
        for peer in sorted(due, key=lambda peer: self._known[peer].worth)[: MAX_DIALS - self._dials]:
            self._known[peer].dialing = True
            self._dials += 1
            self._spawn(self._dial(peer, self._known[peer]))

    def _forget(self, now: float) -> None:
        """Drop those of whom nothing was heard for long, but the latest that were met and may come back."""
        old = {
            peer: known.met and not self._departed(peer)
            for peer, known in self._known.items()
            if not self._linked(peer) and now - known.heard_at_s > FORGET_AFTER_S
        }
        missed = sorted((p for p, stays in old.items() if stays), key=lambda p: self._known[p].heard_at_s)
        for peer in old.keys() - set(missed[-MAX_KEPT:]):
            del self._known[peer]

    async def _dial(self, peer: PeerId, known: _Known) -> None:
        try:
            await self._links.connect(peer, known.addresses)
        except ExchangeError:
            known.lives = False
            known.next_dial_s = asyncio.get_running_loop().time() + known.backoff_s
            known.backoff_s = min(REDIAL_LONGEST_S, 2 * known.backoff_s)
        finally:
            known.dialing = False
            self._dials -= 1
        self.dial_due()


def record_addresses(record: bytes) -> tuple[str, ...]:
    """The addresses in a record of the directory.

    Raises:
        ProtocolError: it is not one.
    """
    try:
        body = msgpack.unpackb(record, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"directory: a record is not msgpack: {error}") from error
    return Fields("record", body).texts("addresses", 64, 512)
