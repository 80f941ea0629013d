"""How the ranks of a process group find and connect to each other: a store, addresses, gloo's groups."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroupGloo
from torch.distributed.distributed_c10d import PrefixStore, Store

from lowcomm.errors import AddressError, PeerUnreachableError, PortInUseError
from lowcomm.exchanges.own_address import choose, split_address, toward

_NEVER = timedelta(days=365)


def open_store(address: str, rank: int, timeout_s: float) -> Store:
    """The store at `address` (HOST:PORT), hosted by rank 0.

    Raises:
        AddressError: not HOST:PORT.
        PortInUseError: rank 0 can't open the port.
        PeerUnreachableError: rank 0 did not open it within `timeout_s`.
    """
    host, port = split_address(address)
    try:
        store: Store = dist.TCPStore(  # type: ignore[attr-defined]  # missing in its __all__
            host,
            port,
            is_master=rank == 0,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
        return store
    except RuntimeError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise PortInUseError(
                f"group address {address}: port {port} is taken; choose another one"
            ) from error
        raise PeerUnreachableError(
            f"group address {address}: rank 0 did not open its store there within {timeout_s:g} s; start it, "
            f"or correct exchange.group_address ({first_line(error)})"
        ) from error


def first_line(error: BaseException) -> str:
    """What torch says of a failure, without its stack."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


class Meeting:
    """One rank on its way to the others; blocks, so run it in a thread that may be left behind.

    Args:
        store: of this run, reachable by all ranks.
        master: HOST:PORT of the store; empty where all ranks are on this machine.
        host: the address that the others reach this machine by; empty = the one on the way to `master`.

    Attributes:
        key: of the group's signatures, once they have met.
    """

    def __init__(
        self, store: Store, *, rank: int, world_size: int, master: str, host: str, timeout_s: float
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._master, self._host, self._timeout_s = master, host, timeout_s
        self.key = b""

    def groups(self, channels: Sequence[str]) -> dict[str, Any]:
        """Meet all other ranks, in a gloo group for each channel.

        Raises:
            AddressError: no way to `master`, or `host` is none of this machine's.
            PeerUnreachableError: not all came, or they can't connect.
        """
        if self._rank == 0:
            self._store.set("key", secrets.token_hex(32))
        mine, seen = ("127.0.0.1", "127.0.0.1")
        if self._master:
            mine, seen = toward(*split_address(self._master))
        rank_0 = self._tell_all("seen", seen)
        host = self._host or choose(mine, rank_0)
        offered = self._tell_all("host", host)
        self.key = self._store.get("key")
        gloo: Any = ProcessGroupGloo  # torch's stubs know only part of it
        try:
            device = gloo.create_device(hostname=host)
        except RuntimeError as error:
            raise AddressError(
                f"exchange.group_listen {host!r}: expected an address of this machine ({first_line(error)})"
            ) from error
        found: dict[str, Any] = {}
        for channel in channels:
            options = gloo._Options()
            options._devices = [device]
            options._timeout = timedelta(seconds=self._timeout_s)
            try:
                group = gloo(PrefixStore(channel, self._store), self._rank, self._world_size, options)
                group.barrier().wait()  # connects all pairs, while a missing rank still times out
            except (RuntimeError, ValueError) as error:
                offers = ", ".join(f"rank {rank} at {host}" for rank, host in enumerate(offered))
                raise PeerUnreachableError(
                    f"rank {self._rank}: all are there, but can't connect within {self._timeout_s:g} s: "
                    f"{offers} (exchange.group_listen); each must be reached from the others' machines, at "
                    f"any TCP port ({first_line(error)})"
                ) from error
            group.set_timeout(_NEVER)
            found[channel] = group
        return found

    def _tell_all(self, what: str, value: str) -> list[str]:
        """Each rank's value, by rank."""
        keys = [f"{what}/{rank}" for rank in range(self._world_size)]
        self._store.set(keys[self._rank], value)
        try:
            self._store.wait(keys, timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            absent = [str(rank) for rank, key in enumerate(keys) if not self._store.check([key])]
            raise PeerUnreachableError(
                f"rank {self._rank}: not all {self._world_size} ranks met within {self._timeout_s:g} s; "
                f"missing: rank {', '.join(absent)}"
            ) from error
        return [self._store.get(key).decode() for key in keys]
