"""The addresses users type and read: multiaddrs, and the one string that is enough to join.

/ip4/203.0.113.5/tcp/31337/p2p/12D3KooW...            an address
my-run@/ip4/203.0.113.5/tcp/31337/p2p/12D3KooW...     a run and an address of one of its peers
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowcomm.errors import AddressError, JoinRefusedError, PortInUseError
from lowcomm.exchanges.swarm.identity import public_key
from lowcomm.types import PeerId

_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
_EXAMPLE = "/ip4/203.0.113.5/tcp/31337/p2p/12D3KooW... (copy it from the output of a running peer)"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a multiaddr starts: `protocol` is tcp or udp; `host` may be a DNS name."""

    host: str
    protocol: str
    port: int
    is_name: bool


def split_join_string(text: str, run_id: str) -> str:
    """The address in `[RUN_ID@]ADDRESS`.

    Raises:
        JoinRefusedError: it names another run than `run_id`.
    """
    run, separator, address = text.strip().rpartition("@")
    if separator and run != run_id:
        raise JoinRefusedError(
            f"{text!r:.200} leads to run {run!r:.80}, but this peer is set to run {run_id!r}; "
            f"set run_id = {run!r:.80}, or take the address of a peer of {run_id!r}"
        )
    return address


def peer_of(address: str) -> PeerId:
    """The peer that an address ends with.

    Raises:
        AddressError: it is not a multiaddr with a host, a port and an ed25519 peer id.
    """
    parts = address.split("/")
    if len(parts) < 7 or parts[-2] != "p2p":
        raise AddressError(f"address {address!r:.200}: expected {_EXAMPLE}")
    endpoint_of(address)
    peer = PeerId(parts[-1])
    try:
        public_key(peer)
    except AddressError as error:
        raise AddressError(f"address {address!r:.200}: {error}") from error
    return peer


def endpoint_of(address: str) -> Endpoint:
    """Where a multiaddr starts.

    Raises:
        AddressError: not /ip4|ip6|dns|dns4|dns6/HOST/tcp|udp/PORT...
    """
    parts = address.split("/")
    if len(parts) < 5 or parts[0] != "" or parts[1] not in _HOSTS or parts[3] not in ("tcp", "udp"):
        raise AddressError(
            f"address {address!r:.200}: expected one that starts like /ip4/HOST/tcp/PORT or "
            f"/ip4/HOST/udp/PORT/quic-v1"
        )
    kind, host, protocol, port = parts[1:5]
    try:
        if kind == "ip4":
            ipaddress.IPv4Address(host)
        elif kind == "ip6":
            ipaddress.IPv6Address(host)
    except ValueError as error:
        raise AddressError(f"address {address!r:.200}: {error}") from error
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise AddressError(f"address {address!r:.200}: expected a port of 0 to 65535, got {port!r:.20}")
    return Endpoint(host, protocol, int(port), kind.startswith("dns"))


def group_by_peer(texts: Iterable[str], run_id: str) -> dict[PeerId, list[str]]:
    """Initial peers as they were given -> the addresses of each."""
    peers: dict[PeerId, list[str]] = {}
    for text in texts:
        address = split_join_string(text, run_id)
        peers.setdefault(peer_of(address), []).append(address)
    return peers


def check_free(address: str) -> None:
    """See whether a listen address can be bound; p2pd would share a taken port without a word.

    Raises:
        AddressError: not an address of this host.
        PortInUseError: the port is taken.
    """
    endpoint = endpoint_of(address)
    if endpoint.is_name:
        raise AddressError(f"listen address {address!r}: expected an IP address of this host, not a name")
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    tcp = endpoint.protocol == "tcp"
    with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as probe:
        if tcp:  # so that old connections in TIME_WAIT do not count; a listener still does
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
            if tcp:
                probe.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(
                    f"listen address {address}: port {endpoint.port} is taken by another process; end it, "
                    f"or choose another port (0 takes any free one)"
                ) from error
            raise AddressError(
                f"listen address {address}: {error.strerror}; expected an address of this host, such as "
                f"/ip4/0.0.0.0/{endpoint.protocol}/{endpoint.port}"
            ) from error


def shared_string(run_id: str, told: Sequence[str]) -> str | None:
    """What others join another peer with, from the addresses it has told; None if none of them is one."""
    addresses = []
    for address in told:
        try:
            endpoint_of(address)
        except AddressError:
            continue
        if address.isprintable() and " " not in address:
            addresses.append(address)
    return f"{run_id}@{most_reachable(addresses)}" if addresses else None


def most_reachable(addresses: Sequence[str]) -> str:
    """The address that most others can use: public before private before this host's own."""

    def rank(address: str) -> int:
        endpoint = endpoint_of(address)
        if endpoint.is_name:
            return 0
        ip = ipaddress.ip_address(endpoint.host)
        if ip.is_loopback or ip.is_link_local or ip.is_unspecified:
            return 3
        return 2 if ip.is_private else 1

    return min(addresses, key=rank)
