"""The only place that touches the network. See base.py for the seam.

`swarm`, `process_group` and `loopback` make an exchange; what they need (hivemind, torch) is
imported when they are called, so that importing this package stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowcomm.exchanges.base import Exchange, Message, Receiver, Traffic
from lowcomm.types import PeerId

if TYPE_CHECKING:
    from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub

__all__ = ["Exchange", "Message", "Receiver", "Traffic", "hub", "loopback"]


def hub() -> LoopbackHub:
    """A new hub, for `loopback`."""
    from lowcomm.exchanges.loopback import LoopbackHub

    return LoopbackHub()


def loopback(hub: LoopbackHub, *, run_id: str, peer_id: str, founder: bool) -> LoopbackExchange:
    """An exchange between peers of this process; see `lowcomm.exchanges.loopback`."""
    from lowcomm.exchanges.loopback import LoopbackExchange

    return LoopbackExchange(hub, run_id, PeerId(peer_id), founder=founder)
