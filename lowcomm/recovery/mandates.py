"""Going on after most of those who may decide are lost for good, by an operator's mandate.

An island that stands still for lack of a majority says so in `standstill.json` of its run folder: where it
stands, who is here and who is away. `lowcomm recover` makes a mandate of that, in `mandates/` there; the
island takes it up once it has not heard a majority for a grace itself, keeps it on disk before it goes by
it, and tells the others, where the run names an operator whose signature they can check.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.certificate import is_quorum
from lowcomm.ledger.mandate import Mandate, parse_mandate
from lowcomm.recovery.member import Member
from lowcomm.storage.files import write_atomically
from lowcomm.types import Digest, Json, PeerId

logger = logging.getLogger(__name__)

FOLDER, STANDSTILL = "mandates", "standstill.json"
LOOK_S = 2.0
MAX_HEARD = 16
"""Mandates of others that are kept; the operator gives few."""


@dataclass(frozen=True, slots=True)
class Given:
    """A mandate in the run folder, and the fragments that go by it already."""

    mandate: Mandate
    in_force: tuple[int, ...] = ()


def mandate_path(folder: Path, mandate: Mandate) -> Path:
    """Where a mandate stands in a run folder."""
    return folder / FOLDER / f"{mandate.digest[:16]}.json"


def write_mandate(folder: Path, given: Given) -> None:
    """Keep a mandate, durably.

    Raises:
        OSError: it can't be written.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    body = {"mandate": given.mandate.to_json(), "in_force": list(given.in_force)}
    write_atomically(mandate_path(folder, given.mandate), (json.dumps(body, indent=2) + "\n").encode())


def read_mandates(folder: Path) -> list[Given]:
    """The mandates in a run folder.

    Raises:
        ProtocolError: one is damaged; it names the file.
        OSError: one can't be read.
    """
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            fields = Fields("mandate", json.loads(path.read_bytes()))
            in_force = fields.integers("in_force", 100_000)
            found.append(Given(parse_mandate(fields.inner("mandate")), in_force))
        except (ValueError, ProtocolError) as error:
            raise ProtocolError(f"{path}: expected a mandate of `lowcomm recover`, got {error}") from error
    return found


class Mandates:
    """The mandates of one peer; call only from the exchange's loop."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._heard: dict[Digest, Mandate] = {}
        self._followers: dict[Digest, set[PeerId]] = {}
        self._told: set[tuple[PeerId, Digest]] = set()
        self._said: set[str] = set()
        self._standstill: dict[str, Json] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go by what an earlier life of this peer went by, and look for mandates from now on.

        Raises:
            ProtocolError, OSError: what it went by can't be read.
        """
        member = self._member
        if member.context.policy.partition != "majority":
            return
        if member.folder is not None:
            await member.in_pool(_note, member.folder / STANDSTILL, None)  # as an earlier life has left it
            for given in await member.in_pool(read_mandates, member.folder):
                self._allow(given.mandate)
                member.context.authority.put_in_force(given.mandate, given.in_force)
        if member.folder is not None or member.context.authority.operator:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """End looking for mandates."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_mandate(self, peer: PeerId, fields: Fields) -> None:
        """Another island goes by this mandate.

        Raises:
            ProtocolError: the run's operator has not signed it.
        """
        authority = self._member.context.authority
        if not authority.operator or self._task is None:
            return
        mandate = parse_mandate(fields.inner("mandate"))
        authority.check(mandate)
        self._heard[mandate.digest] = mandate
        self._followers.setdefault(mandate.digest, set()).add(peer)
        while len(self._heard) > MAX_HEARD:
            self._followers.pop(next(iter(self._heard)), None)
            del self._heard[next(iter(self._heard))]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except (OSError, ProtocolError) as error:
                self._say(f"mandates of `lowcomm recover` can't be taken up: {error}")

    async def _look(self) -> None:
        member, folder = self._member, self._member.folder
        if folder is not None:
            for given in await member.in_pool(read_mandates, folder):
                self._allow(given.mandate)
                await self._consider(given.mandate)
        for mandate in list(self._heard.values()):
            await self._consider(mandate)
        self._tell()
        standstill = self._stuck_at()
        if standstill != self._standstill and folder is not None:
            await member.in_pool(_note, folder / STANDSTILL, standstill)
        self._standstill = standstill

    def _allow(self, mandate: Mandate) -> None:
        """Whoever may write into the run folder agrees to it for this island."""
        self._member.context.authority.allowed.add(mandate.digest)

    async def _consider(self, mandate: Mandate) -> None:
        """Go by a mandate where it is in order and needed."""
        member, authority = self._member, self._member.context.authority
        try:
            authority.check(mandate)
            fragments = [f for f in mandate.positions if self._is_due(mandate, f)]
        except ProtocolError as error:
            self._say(f"refused: {error}")
            return
        if not fragments:
            return
        if member.folder is not None:
            known = [f for f, position in mandate.positions.items() if authority.of(f, *position) == mandate]
            given = Given(mandate, tuple(sorted({*known, *fragments})))
            await member.in_pool(write_mandate, member.folder, given)
        authority.put_in_force(mandate, fragments)
        for fragment in fragments:
            logger.warning(
                "fragment %d: by an operator's %s more than half of its members decide outer step %d",
                fragment, self._named(str(mandate)), mandate.positions[fragment][0] + 1,
            )  # fmt: skip
            member.rounds[fragment].renew()
        member.changed.notify()

    def _is_due(self, mandate: Mandate, fragment: int) -> bool:
        """Whether a fragment has to go by a mandate from now on.

        Raises:
            ProtocolError: it never can.
        """
        member = self._member
        outer_step, head = mandate.positions[fragment]
        if fragment >= len(member.state.chains):
            raise ProtocolError(f"{mandate} is about fragment {fragment}, the model has fewer")
        chain = member.state.chains[fragment]
        if chain.outer_step != outer_step:
            return False  # decided, or to be caught up with
        if chain.head != head:
            raise ProtocolError(f"{mandate} follows another head than this island has at step {outer_step}")
        before = member.context.authority.of(fragment, outer_step, head)
        if before is not None and before.digest == mandate.digest:
            return False
        if before is not None and mandate.number <= before.number:
            raise ProtocolError(
                f"{mandate} is a second one for outer step {outer_step + 1}, where {before} is in force; if "
                "that has come to nothing, `lowcomm recover --replace` makes one that takes its place"
            )
        electorate = member.context.slot(fragment).electorate
        if is_quorum(mandate.members, electorate, ()):
            raise ProtocolError(f"{mandate}: they are most of those who may decide, so it is not needed")
        return not member.rounds[fragment].ahead() and not is_quorum(
            self._here(fragment, mandate), electorate, ()
        )

    def _here(self, fragment: int, mandate: Mandate | None = None) -> list[PeerId]:
        """Those who may decide that were heard within a grace, and don't go by `mandate` already."""
        member = self._member
        view, me = member.context.view(), member.signer.peer_id
        follow = self._followers.get(mandate.digest, set()) if mandate else set()
        return [
            peer
            for peer in member.context.slot(fragment).electorate
            if peer == me or (view.unheard(peer) < member.context.grace_s and peer not in follow)
        ]

    def _tell(self) -> None:
        """Tell all islands by which mandates this one goes, if they can see who has signed them."""
        member = self._member
        live = {peer.id for peer in member.peers.live()}
        self._told = {told for told in self._told if told[0] in live}
        if not member.context.authority.operator:
            return
        for fragment in range(len(member.state.chains)):
            mandate = member.context.slot(fragment).mandate
            if mandate is None:
                continue
            for peer in sorted(live):
                if (peer, mandate.digest) not in self._told:
                    self._told.add((peer, mandate.digest))
                    member.peers.post(peer, Message("mandate", {"mandate": mandate.to_json()}))

    def _stuck_at(self) -> dict[str, Json] | None:
        """Where this island stands for lack of a majority, who is here and who is away; or None."""
        member = self._member
        if member.peers.state.phase != "training":
            return None
        positions: list[Json] = []
        here, away = set[PeerId](), set[PeerId]()
        for fragment, chain in enumerate(member.state.chains):
            electorate = member.context.slot(fragment).electorate
            heard = self._here(fragment)
            if electorate and not is_quorum(heard, electorate, ()) and not member.rounds[fragment].ahead():
                positions.append([fragment, chain.outer_step, chain.head])
                away |= set(electorate) - set(heard)
                live = [p for p in member.peers.live() if p.state.phase == "training"]
                here |= {p.id for p in live if chain.head in p.state.heads} | {member.signer.peer_id}
        if not positions:
            return None
        names: dict[str, Json] = {p: n for p, n in member.peers.names.items() if p in here | away}
        return {
            "run_id": member.signer.run_id,
            "operator": str(member.context.authority.operator),
            "positions": positions,
            "here": [str(peer) for peer in sorted(here)],
            "away": [str(peer) for peer in sorted(away)],
            "names": {**names, member.signer.peer_id: member.peers.state.name},
        }

    def _named(self, text: str) -> str:
        for peer in self._member.peers.names:
            text = text.replace(peer, self._member.peers.called(peer))
        return text

    def _say(self, text: str) -> None:
        """Once."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", self._named(text))


def _note(path: Path, standstill: dict[str, Json] | None) -> None:
    if standstill is None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    else:
        write_atomically(path, (json.dumps(standstill, indent=2) + "\n").encode())


def known_names(standstill: Fields) -> dict[str, PeerId]:
    """Peers by their names, as far as only one has it."""
    names = [(str(name), PeerId(peer)) for peer, name in standstill.mapping("names").items() if name]
    count = [name for name, _ in names]
    return {name: peer for name, peer in names if count.count(name) == 1}


def choose_members(given: Iterable[str], standstill: Fields) -> list[PeerId]:
    """The peers meant by names or peer ids; all that are here where none is given."""
    here = [PeerId(peer) for peer in standstill.texts("here", 4_096)]
    names = known_names(standstill)
    return sorted({names.get(text, PeerId(text)) for text in given} or set(here))
