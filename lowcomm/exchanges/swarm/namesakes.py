"""Two live processes with one identity (a copied run folder, a key in a container image): the later one goes.

To the others such two look like one peer that connects again and again, each time with another history. So a
process names itself, by the time of its start and a random number, whenever it opens a link. Where a peer is
linked and another process of its name knocks, whoever is asked finds out first whether the linked one lives:

    newcomer -> host     link.open with its `process`; answered with WAIT until the rest is done
    host -> linked one   link.who: the newcomer's process
    linked one -> host   link.here: a `Proof` that it lives, signed over the newcomer's process
    host -> newcomer     USED with that proof, to its next knock

The linked one is dropped if no answer comes: a peer that was restarted, after a death that nobody has
noticed yet, gets in. Only the proof makes a process stop, so no peer can talk one out of the run: it is
signed with the very key, and over a number that did not exist before this process. Of the two, the one that
started first stays. If that is the newcomer (it was cut off, say), it answers with a proof of its own, which
is handed to the linked one (link.ousted).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import msgpack

from lowcomm.clock import Clock
from lowcomm.errors import JoinRefusedError, PeerUnreachableError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.swarm.identity import Identity, verify
from lowcomm.exchanges.swarm.streams import Verdict
from lowcomm.types import Json, PeerId

logger = logging.getLogger(__name__)

WHO, HERE, OUSTED = "link.who", "link.here", "link.ousted"
ANSWER_S = 4.0
"""How long a linked peer may take to show that it lives, before another process of its name is let in."""
MAX_CHECKS = 8
"""Newcomers of one name that are looked at, at a time."""
MAX_PROCESS, MAX_WHERE = 64, 200
_DOMAIN = "namesake"
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Proof:
    """The process `by`, at `where`, held the key of its peer id after the process `asked` had started."""

    asked: str
    by: str
    where: str
    signature: bytes

    @classmethod
    def make(cls, identity: Identity, run_id: str, *, asked: str, by: str, where: str) -> Self:
        """Prove that this process lives."""
        return cls(asked, by, where, identity.sign(_DOMAIN, _signed_bytes(run_id, asked, by, where)))

    @classmethod
    def parse(cls, body: object) -> Self | None:
        """Of `to_json`, from anybody; None if it is none."""
        if not isinstance(body, Mapping):
            return None
        asked, by, where = (body.get(key) for key in ("asked", "by", "where"))
        signature = body.get("signature")
        if not (_is_process(asked) and _is_process(by)) or not isinstance(where, str):
            return None
        if len(where) > MAX_WHERE or not where.isprintable():
            return None
        if not isinstance(signature, str) or len(signature) != 2 * _SIGNATURE_BYTES:
            return None
        try:
            return cls(str(asked), str(by), where, bytes.fromhex(signature))
        except ValueError:
            return None

    def to_json(self) -> dict[str, Json]:
        return {"asked": self.asked, "by": self.by, "where": self.where, "signature": self.signature.hex()}

    def holds(self, peer: PeerId, run_id: str) -> bool:
        """Whether `peer`'s key has signed it."""
        return verify(peer, _DOMAIN, _signed_bytes(run_id, self.asked, self.by, self.where), self.signature)


def _is_process(value: object) -> bool:
    return (
        isinstance(value, str) and 0 < len(value) <= MAX_PROCESS and value.isascii() and value.isprintable()
    )


def _signed_bytes(run_id: str, asked: str, by: str, where: str) -> bytes:
    packed: bytes = msgpack.packb([run_id, asked, by, where])
    return packed


class NamedLink(Protocol):
    """What is needed of a link."""

    peer: PeerId
    process: str

    @property
    def is_up(self) -> bool: ...

    def tell(self, message: Message) -> None: ...


@dataclass(slots=True)
class _Check:
    """Whether the linked process lives, for a newcomer of its name."""

    link: NamedLink
    proof: Proof | None = None
    ousted: bool = False


class Namesakes:
    """What one process knows of others with one name; call only from the exchange's loop.

    Args:
        where: says where this process can be reached, in words.
        key_file: where its key lies, for the error.
        on_proven: called with an error once another process has proven that this one is to go.

    Attributes:
        process: the name of this process.
        drop: ends a link, and the connection below it, for a reason; set by the table of links.
    """

    drop: Callable[[NamedLink, str], None]

    def __init__(
        self,
        identity: Identity,
        run_id: str,
        clock: Clock,
        *,
        where: Callable[[], str],
        key_file: str,
        on_proven: Callable[[JoinRefusedError], None],
    ) -> None:
        self._identity, self._run_id, self._where = identity, run_id, where
        self._key_file, self._on_proven = key_file, on_proven
        self.process = f"{int(clock.wall_s() * 1000):015d}-{secrets.token_hex(8)}"
        self._checks: dict[tuple[PeerId, str], _Check] = {}
        self._counters: dict[PeerId, Proof] = {}

    # -- the side that is knocked at -----------------------------------------------------------------

    def judge(self, link: NamedLink, opening: Mapping[str, Json]) -> tuple[Verdict, bytes] | None:
        """What a process that knocks hears while `link` has its name; None if it is the linked one itself."""
        newcomer = opening.get("process")
        if not _is_process(newcomer) or not link.process or newcomer == link.process:
            return None
        key = link.peer, str(newcomer)
        check = self._checks.get(key)
        if check is None:
            if link.is_up and sum(peer == link.peer for peer, _ in self._checks) < MAX_CHECKS:
                check = self._checks[key] = _Check(link)
                asyncio.get_running_loop().call_later(ANSWER_S, self._expire, key, check)
                link.tell(Message(WHO, {"process": newcomer}))
            return Verdict.WAIT, b""
        if check.proof is None or check.ousted:
            return Verdict.WAIT, b""
        counter = Proof.parse(opening.get("counter"))
        if check.proof.by > key[1] and counter is not None:
            fits = (counter.asked, counter.by) == (link.process, key[1])
            if fits and counter.holds(link.peer, self._run_id):
                check.ousted = True
                link.tell(Message(OUSTED, counter.to_json()))
                return Verdict.WAIT, b""
        packed: bytes = msgpack.packb(check.proof.to_json())
        return Verdict.USED, packed

    def on_here(self, link: NamedLink, body: Mapping[str, Json]) -> None:
        """A linked peer says that it lives."""
        proof = Proof.parse(body)
        check = None if proof is None else self._checks.get((link.peer, proof.asked))
        if proof is None or check is None or check.link is not link or proof.by != link.process:
            return
        if proof.holds(link.peer, self._run_id):
            check.proof = proof
            logger.warning("two live processes use the identity of %s; the later one is refused", link.peer)

    def _expire(self, key: tuple[PeerId, str], check: _Check) -> None:
        if self._checks.get(key) is not check:
            return  # its link is gone
        del self._checks[key]
        if check.ousted:
            self.drop(check.link, "another process of its identity started first")
        elif check.proof is None:
            self.drop(check.link, f"silent for {ANSWER_S:g} s, while a new process came with its identity")

    def forget(self, link: NamedLink) -> None:
        """A link is gone."""
        for key in [key for key, check in self._checks.items() if check.link is link]:
            del self._checks[key]

    # -- the side that is asked, or knocks -------------------------------------------------------------

    def answer(self, body: Mapping[str, Json]) -> Message | None:
        """The answer to `link.who`."""
        asked = body.get("process")
        if not _is_process(asked) or asked == self.process:
            return None
        return Message(HERE, self._prove(str(asked)).to_json())

    def opening(self, peer: PeerId) -> dict[str, Json]:
        """What goes into the opening frame of a stream to `peer`."""
        counter = self._counters.get(peer)
        return {"process": self.process} | ({"counter": counter.to_json()} if counter else {})

    def on_used(self, peer: PeerId, packed: bytes) -> None:
        """`peer` has refused this process as another one of its name is linked there.

        Raises:
            JoinRefusedError: that one lives, and started first.
            PeerUnreachableError: it does not prove that; or this one started first, and the next try says so.
        """
        try:
            proof = Proof.parse(msgpack.unpackb(packed))
        except (ValueError, msgpack.UnpackException):
            proof = None
        if proof is None or not self._is_about_me(proof):
            raise PeerUnreachableError(f"{peer} says that another process uses this identity, without proof")
        if proof.by > self.process:
            self._counters[peer] = self._prove(proof.by)
            raise PeerUnreachableError(f"{peer} is linked to a later process with this identity")
        error = self.refusal(proof.where)
        self._on_proven(error)
        raise error

    def on_ousted(self, body: Mapping[str, Json]) -> None:
        """A linked peer hands on that another process of this name lives, and started first."""
        proof = Proof.parse(body)
        if proof is not None and self._is_about_me(proof) and proof.by < self.process:
            self._on_proven(self.refusal(proof.where))

    def refusal(self, where: str) -> JoinRefusedError:
        """The error of the process that has to go."""
        at = f" at {where}" if where else ""
        mend = f"delete {self._key_file}" if self._key_file else "give it another key"
        return JoinRefusedError(
            f"peer id {self._identity.peer_id} is already used by another live process{at}; two with one "
            f"identity would make two histories. If this is a copy (of a run folder, a container), {mend}, "
            "or name another file in exchange.identity, and start again; else end the other process first"
        )

    def _is_about_me(self, proof: Proof) -> bool:
        mine = self._identity.peer_id
        return proof.asked == self.process != proof.by and proof.holds(mine, self._run_id)

    def _prove(self, asked: str) -> Proof:
        where = self._where()[:MAX_WHERE]
        return Proof.make(self._identity, self._run_id, asked=asked, by=self.process, where=where)
