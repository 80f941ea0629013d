"""Which address of this machine the others of a process group reach it by."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable

from lowcomm.errors import AddressError


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 address stands in brackets.

    Raises:
        AddressError: it is something else.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise AddressError(f"group address {address!r}: expected HOST:PORT, such as 192.168.0.10:29400")
    return host.removeprefix("[").removesuffix("]"), int(port)


def toward(host: str, port: int) -> tuple[str, str]:
    """(this machine's address on the way to a host, the host's own); nothing is sent.

    Raises:
        AddressError: its name is not known, or no network leads there.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            mine, theirs = str(probe.getsockname()[0]), str(probe.getpeername()[0])
    except OSError as error:
        raise AddressError(
            f"group address {host}:{port}: no way there from this machine ({error.strerror or error}); "
            "expected the address or name of rank 0's machine in a network that all ranks are in"
        ) from error
    return (theirs if can_bind(theirs) else mine), theirs


def can_bind(address: str) -> bool:
    """Whether an IP address is one of this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def choose(mine: str, seen: Iterable[str], is_ours: Callable[[str], bool] = can_bind) -> str:
    """The address to offer: `mine`, or for a rank on rank 0's machine the one that other machines see there.

    Args:
        mine: on the way to rank 0; a loopback address on its own machine (Debian names itself 127.0.1.1).
        seen: rank 0's address as each rank sees it.
    """
    if not is_loopback(mine):
        return mine
    return next((other for other in seen if not is_loopback(other) and is_ours(other)), mine)


def is_loopback(address: str) -> bool:
    """Whether only its own machine can reach an IP address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
