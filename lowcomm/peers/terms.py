"""What islands must agree on: they greet with digests of it, and tell the lists only where those differ.

Lists travel in pages, so a model may have any number of tensors; whoever compares stops at the first tensor
that differs, and tells the other side in its words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgpack

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields, checked_text
from lowcomm.ledger.entry import hash_value
from lowcomm.peers.agreement import FROZEN_DIGEST, differences
from lowcomm.types import Digest, Json, Layout

SHARED, LAYOUT = "shared", "layout"
PAGE_BYTES = 1 << 18
MAX_PAGE_ITEMS = 1 << 16
MAX_ITEM_BYTES = 1 << 14
"""What is longer is told as its hash."""
MAX_NAME = 1_000
MAX_SETTINGS = 10_000
REFUSED_KEYS_SHOWN = 8

Ask = Callable[[str, int], Awaitable[Fields]]
"""Asks the other side for a page of a list; an empty one is the end."""


@dataclass(frozen=True, slots=True)
class Differences:
    """In what two peers differ, as each of them says it; empty where they don't."""

    here: tuple[str, ...] = ()
    there: tuple[str, ...] = ()


class Terms:
    """Shared settings and layout of one peer.

    Attributes:
        digests: of both lists, by name.
    """

    def __init__(self, shared: Mapping[str, Json], layout: Layout) -> None:
        self._lists: dict[str, list[Json]] = {
            SHARED: [_told(key, shared[key]) for key in sorted(shared)],
            LAYOUT: [_told(spec.name, list(spec.shape)) for spec in layout],
        }
        self.digests: dict[str, Digest] = {name: hash_value(items) for name, items in self._lists.items()}
        self._pages: dict[str, list[list[Json]]] = {}

    @property
    def page_count(self) -> int:
        """Pages that whoever compares asks for, the empty last ones included."""
        return sum(len(self._paged(name)) + 1 for name in self._lists)

    def page(self, fields: Fields) -> dict[str, Json]:
        """The answer to a request for a page.

        Raises:
            ProtocolError: there is no such list.
        """
        name, number = fields.text("list"), fields.integer("page")
        if name not in self._lists:
            raise ProtocolError(f"terms?.list: expected {SHARED} or {LAYOUT}, got {name!r}")
        pages = self._paged(name)
        items: list[Json] = pages[number] if number < len(pages) else []
        return {"list": name, "page": number, "items": items}

    def _paged(self, name: str) -> list[list[Json]]:
        if name not in self._pages:
            pages: list[list[Json]] = []
            size = PAGE_BYTES
            for item in self._lists[name]:
                size += len(msgpack.packb(item))
                if size > PAGE_BYTES:
                    size = 0
                    pages.append([])
                pages[-1].append(item)
            self._pages[name] = pages
        return self._pages[name]

    async def compare(self, theirs: Mapping[str, Digest], ask: Ask) -> Differences:
        """In what another peer, with these digests, differs; in nothing, if its digests came damaged.

        Raises:
            ProtocolError: what it tells is malformed, too much, or not what its digests stand for.
            PeerUnreachableError: it doesn't answer.
        """
        found = Differences()
        if theirs[SHARED] != self.digests[SHARED]:
            mine, told = _as_mapping(self._lists[SHARED]), await _all_settings(ask)
            found = Differences(_shown(differences(mine, told)), _shown(differences(told, mine)))
        if theirs[LAYOUT] != self.digests[LAYOUT] and all(r.startswith(FROZEN_DIGEST) for r in found.here):
            first = await self._first_tensor(ask)
            if first is None:
                return found
            here, there = first
            found = Differences(
                _shown([f"model: here tensor {here!r}, there {there!r}"]),
                _shown([f"model: here tensor {there!r}, there {here!r}"]),
            )
        return found

    async def _first_tensor(self, ask: Ask) -> tuple[Json, Json] | None:
        """The first that differs, here and there; None where there is none more."""
        own, index, number = self._lists[LAYOUT], 0, 0
        while items := _items(await ask(LAYOUT, number), LAYOUT, number):
            for item in items:
                here = own[index] if index < len(own) else None
                if item != here:
                    return here, item
                index += 1
            number += 1
        return (own[index], None) if index < len(own) else None


def _shown(reasons: list[str]) -> tuple[str, ...]:
    return tuple(reason[:MAX_NAME] for reason in reasons[:REFUSED_KEYS_SHOWN])


def _told(name: str, value: Json) -> Json:
    size = len(msgpack.packb([name, value]))
    if size <= MAX_ITEM_BYTES and len(name) <= MAX_NAME:
        return [name, value]
    return [name[:MAX_NAME], f"{size} bytes, hash {hash_value([name, value])[:16]}"]


async def _all_settings(ask: Ask) -> dict[str, Json]:
    found: list[Json] = []
    number = 0
    while items := _items(await ask(SHARED, number), SHARED, number):
        found += items
        number += 1
        if len(found) > MAX_SETTINGS:
            raise ProtocolError(f"{SHARED}: expected at most {MAX_SETTINGS} settings")
    return _as_mapping(found)


def _items(fields: Fields, name: str, number: int) -> list[Json]:
    if (fields.text("list"), fields.integer("page")) != (name, number):
        raise ProtocolError(f"terms: expected page {number} of {name}")
    items = fields.items("items", MAX_PAGE_ITEMS)
    for item in items:
        if not isinstance(item, list) or len(item) != 2:
            raise ProtocolError(f"terms.items: expected [name, value], got {item!r:.80}")
        checked_text("terms.items", item[0], MAX_NAME)
    return items


def _as_mapping(items: list[Json]) -> dict[str, Json]:
    return {str(item[0]): item[1] for item in items if isinstance(item, list)}
