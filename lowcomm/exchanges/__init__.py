"""The only place that touches the network. See base.py for the seam.

`swarm`, `process_group` and `loopback` make an exchange; what they need (hivemind, torch) is
imported when they are called, so that importing this package stays fast.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from lowcomm.arguments import flag, number, path, show, text, texts, whole
from lowcomm.arguments import run_id as name_of_run
from lowcomm.errors import ArgumentError
from lowcomm.exchanges.base import Exchange, Message, Receiver, Traffic
from lowcomm.types import PeerId

if TYPE_CHECKING:
    from pathlib import Path

    from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
    from lowcomm.exchanges.process_group import ProcessGroupExchange
    from lowcomm.exchanges.swarm.exchange import SwarmExchange
    from lowcomm.exchanges.swarm.identity import Gatekeeper

__all__ = ["Exchange", "Message", "Receiver", "Traffic", "hub", "loopback", "process_group", "swarm"]


MOST_STREAMS = 16


def swarm(
    *,
    run_id: str,
    initial_peers: Sequence[str] | str = (),
    listen: Sequence[str] | str = ("/ip4/127.0.0.1/tcp/0",),
    announce: Sequence[str] | str = (),
    identity_path: Path | str | None = None,
    connect_timeout_s: float = 20.0,
    streams: int = 4,
    relay: bool = True,
    auto_relay: bool = False,
    nat_port_map: bool = False,
    gate: Gatekeeper | None = None,
) -> SwarmExchange:
    """An exchange over the Internet; see `lowcomm.exchanges.swarm.exchange.SwarmExchange`.

    A single address may stand for a list of one.

    Raises:
        ConfigError: an argument is of another type, or out of range.
    """
    from lowcomm.exchanges.swarm.exchange import SwarmExchange

    return SwarmExchange(
        name_of_run("exchanges.swarm: run_id", run_id),
        initial_peers=texts("exchanges.swarm: initial_peers", initial_peers, "my-run@/ip4/.../p2p/..."),
        listen=texts("exchanges.swarm: listen", listen, "/ip4/0.0.0.0/tcp/31337"),
        announce=texts("exchanges.swarm: announce", announce, "/ip4/203.0.113.5/tcp/31337"),
        identity_path=path("exchanges.swarm: identity_path", identity_path),
        connect_timeout_s=number("exchanges.swarm: connect_timeout_s", connect_timeout_s, above=0),
        streams=whole("exchanges.swarm: streams", streams, least=1, most=MOST_STREAMS),
        relay=flag("exchanges.swarm: relay", relay),
        auto_relay=flag("exchanges.swarm: auto_relay", auto_relay),
        nat_port_map=flag("exchanges.swarm: nat_port_map", nat_port_map),
        gate=gate,
    )


def process_group(
    *,
    run_id: str,
    rank: int,
    world_size: int,
    master: str = "127.0.0.1:29400",
    host: str = "",
    join_timeout_s: float = 60.0,
) -> ProcessGroupExchange:
    """An exchange between a fixed set of peers on a LAN; see `lowcomm.exchanges.process_group`.

    `master` is HOST:PORT, where rank 0 opens the store that all ranks meet in; `host` the address that
    the others reach this machine by, by default the one on the way to `master`.

    Raises:
        AddressError: `master` is not HOST:PORT.
        ConfigError: an argument is of another type, or out of range.
    """
    from lowcomm.exchanges.meeting import open_store
    from lowcomm.exchanges.own_address import split_address
    from lowcomm.exchanges.process_group import ProcessGroupExchange

    run_id = name_of_run("exchanges.process_group: run_id", run_id)
    world_size = whole("exchanges.process_group: world_size", world_size, least=1)
    rank = whole("exchanges.process_group: rank", rank, least=0, most=world_size - 1)
    join_timeout_s = number("exchanges.process_group: join_timeout_s", join_timeout_s, above=0)
    split_address(text("exchanges.process_group: master", master))
    return ProcessGroupExchange(
        run_id,
        store=lambda: open_store(master, rank, join_timeout_s),
        rank=rank,
        world_size=world_size,
        master=master,
        host=host,
        join_timeout_s=join_timeout_s,
    )


def hub() -> LoopbackHub:
    """A new hub, for `loopback`."""
    from lowcomm.exchanges.loopback import LoopbackHub

    return LoopbackHub()


def loopback(hub: LoopbackHub, *, run_id: str, peer_id: str, founder: bool) -> LoopbackExchange:
    """An exchange between peers of this process; see `lowcomm.exchanges.loopback`.

    Raises:
        ConfigError: an argument is of another type, or out of range.
    """
    from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub

    if not isinstance(hub, LoopbackHub):
        raise ArgumentError(f"exchanges.loopback: expected what exchanges.hub() gives, got {show(hub)}")
    run_id = name_of_run("exchanges.loopback: run_id", run_id)
    peer = PeerId(text("exchanges.loopback: peer_id", peer_id))
    return LoopbackExchange(hub, run_id, peer, founder=flag("exchanges.loopback: founder", founder))


class _Package(ModuleType):
    """Keeps `exchanges.swarm` and its like the functions they are.

    Importing the submodule `swarm` sets the attribute `swarm` of its package; without this, every
    second call of a factory would find a module in its place.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
