"""How the ranks of a process group meet: at the address that was asked for, or with a reason."""

import asyncio
import socket
from pathlib import Path

import pytest

from lowcomm import exchanges
from lowcomm.errors import AddressError, LowcommError, PeerUnreachableError
from lowcomm.exchanges.own_address import choose, split_address, toward
from tests.exchanges.networks import RUN, Recorder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank(number: int, master: str, **settings: object) -> exchanges.Exchange:
    return exchanges.process_group(run_id=RUN, rank=number, world_size=2, master=master, **settings)  # type: ignore[arg-type]


def listening() -> set[str]:
    """The IPv4 addresses that anybody on this machine listens at, with their ports."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        host, port = line.split()[1].split(":")
        if line.split()[3] == "0A":
            found.add(f"{socket.inet_ntoa(bytes.fromhex(host)[::-1])}:{int(port, 16)}")
    return found


@pytest.mark.parametrize("host", ["127.0.0.2", ""], ids=["as-set", "as-the-store"])
def test_ranks_listen_at_the_address_that_was_asked_for(host: str) -> None:
    async def scenario() -> set[str]:
        master = f"127.0.0.{'1' if host else '2'}:{free_port()}"
        both = [rank(number, master, host=host) for number in range(2)]
        before = listening()
        await asyncio.gather(*(one.start(Recorder()) for one in both))
        found = {at for at in listening() - before if at.startswith("127.0.0.2:")}
        await asyncio.gather(*(one.close() for one in both))
        return found

    assert len(asyncio.run(scenario())) >= 2


@pytest.mark.parametrize(
    ("number", "settings", "error", "says"),
    [
        (0, {}, PeerUnreachableError, "rank 0: not all 2 ranks met within 0.5 s; missing: rank 1"),
        (
            1,
            {},
            PeerUnreachableError,
            "rank 0 did not open its store there within 0.5 s; start it",
        ),
    ],
    ids=["alone", "no-store"],
)
def test_who_is_missing_is_named(
    number: int, settings: dict[str, str], error: type[LowcommError], says: str
) -> None:
    exchange = rank(number, f"127.0.0.1:{free_port()}", join_timeout_s=0.5, **settings)
    with pytest.raises(error, match=says):
        asyncio.run(exchange.start(Recorder()))


def test_an_address_of_another_machine_is_refused() -> None:
    async def scenario() -> None:
        master = f"127.0.0.1:{free_port()}"
        right = rank(0, master, join_timeout_s=1.0)
        wrong = rank(1, master, host="192.0.2.77", join_timeout_s=1.0)
        done = await asyncio.gather(right.start(Recorder()), wrong.start(Recorder()), return_exceptions=True)
        assert isinstance(done[1], AddressError)
        assert "exchange.group_listen '192.0.2.77': expected an address of this machine" in str(done[1])

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [0, 1])
def test_who_waits_for_others_can_be_stopped(number: int) -> None:
    """As a signal does: the wait in gloo has no end of its own for ten minutes."""

    async def scenario() -> None:
        exchange = rank(number, f"127.0.0.1:{free_port()}", join_timeout_s=600.0)
        start = asyncio.ensure_future(exchange.start(Recorder()))
        await asyncio.wait([start], timeout=0.2)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        await exchange.close()

    asyncio.run(scenario())


def test_the_address_on_the_way_to_the_store_is_offered() -> None:
    assert toward("127.0.0.1", 9) == ("127.0.0.1", "127.0.0.1")
    with pytest.raises(AddressError, match="no way there from this machine"):
        toward("no-such-host.invalid", 9)
    assert split_address("[::1]:29400") == ("::1", 29400)


@pytest.mark.parametrize(
    ("mine", "seen", "chosen"),
    [
        ("10.0.0.2", ["10.0.0.1", "10.0.0.1"], "10.0.0.2"),
        ("127.0.0.1", ["127.0.0.1", "127.0.0.1"], "127.0.0.1"),
        ("127.0.0.1", ["127.0.1.1", "192.0.2.77"], "127.0.0.1"),
    ],
    ids=["on-another-machine", "all-on-one", "not-ours"],
)
def test_what_a_rank_offers(mine: str, seen: list[str], chosen: str) -> None:
    assert choose(mine, seen) == chosen


def test_rank_0_whose_name_means_the_loopback_offers_what_others_see() -> None:
    assert choose("127.0.1.1", ["127.0.1.1", "192.0.2.1"], is_ours={"192.0.2.1"}.__contains__) == "192.0.2.1"
