"""The only place that touches the network. See base.py for the seam.

`swarm`, `process_group` and `loopback` make an exchange; what they need (hivemind, torch) is
imported when they are first used, so that importing this package stays fast.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lowcomm.exchanges.base import Directory, Exchange, Links, Message, Receiver, Signer, Traffic
from lowcomm.methods import Methods

if TYPE_CHECKING:
    from lowcomm.exchanges.loopback import hub, loopback
    from lowcomm.exchanges.process_group import process_group
    from lowcomm.exchanges.swarm.exchange import swarm

METHODS: Methods[Exchange] = Methods(
    __name__,
    "exchange",
    {
        "swarm": "swarm.exchange",
        "process_group": "process_group",
    },
    key="kind",
)
"""What a recipe can choose; `loopback` works in one process only."""

__all__ = [
    "Directory",
    "Exchange",
    "Links",
    "Message",
    "Receiver",
    "Signer",
    "Traffic",
    "hub",
    "loopback",
    "process_group",
    "swarm",
]


class _Package(ModuleType):
    """Keeps `exchanges.swarm` and its like the functions they are.

    Importing the submodule `swarm` sets the attribute `swarm` of its package; without this, every
    second use of a factory would find a module in its place.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in METHODS.names:
            return METHODS.spec(name).make
        if name in ("hub", "loopback"):
            return getattr(importlib.import_module(f"{__name__}.loopback"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
