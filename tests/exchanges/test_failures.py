"""What p2pd said of dials that failed (recorded from 1.1.12's), in one line for people."""

import pytest

from lowcomm.exchanges.swarm.failures import places, reason

ID = "12D3KooWEKo3zysvWaVHoUdcBYijJHeTG4QAD6Ku67i8Yg9qmQZv"
OTHER = "12D3KooWJYsDGHXshP84m4pwfwoHEedEVitJPFcmaxetXRvbj9JS"
QUIC, TCP = f"/ip4/203.0.113.5/udp/31337/quic-v1/p2p/{ID}", f"/ip4/203.0.113.5/tcp/31337/p2p/{ID}"
DIAL = f"{ID}: failed to dial: failed to dial {ID}: all dials failed\n  * [{QUIC.split('/p2p')[0]}] "
EXPIRED = (
    "CRYPTO_ERROR 0x12a (local): certificate verification failed: x509: certificate has expired or is not "
)
MISMATCH = f"CRYPTO_ERROR 0x12a (local): peer id mismatch: expected {ID}, but remote key matches {OTHER}"


@pytest.mark.parametrize(
    ("text", "addresses", "says"),
    [
        (
            f"{DIAL}{EXPIRED}yet valid: current time 2026-11-30T13:39:50Z is before 2026-11-30T13:41:32Z",
            [QUIC],
            "the clocks of the two machines differ (now it is 2026-11-30T13:39:50Z here; its certificate is "
            "valid from 2026-11-30T13:41:32Z); QUIC refuses",
        ),
        (
            f"{ID}: {ID}: connection failed",
            [QUIC],
            "as where the clocks of the two machines differ",
        ),
        (f"{ID}: {ID}: connection failed", [TCP], "connection failed; check that it runs"),
        (
            f"{DIAL}{MISMATCH}",
            [QUIC],
            "another peer, …XRvbj9JS, listens there; copy the address",
        ),
        (f"{DIAL}context deadline exceeded", [QUIC], "no answer; check that it runs"),
        (
            f"{DIAL}dial tcp4: connect: connection refused",
            [TCP],
            "nobody listens there; check",
        ),
        (f"{DIAL}no route to host", [QUIC], "[/ip4/203.0.113.5/udp/31337/quic-v1] no route to host; check"),
    ],
    ids=["clock-behind", "clock-ahead", "no-clock-over-tcp", "another-peer", "silent", "closed-port", "else"],
)
def test_the_reason_is_one_short_line(text: str, addresses: list[str], says: str) -> None:
    found = reason(text, addresses)
    assert says in found
    assert ID not in found
    assert "\n" not in found


def test_what_only_holds_the_next_dial_back_is_no_reason() -> None:
    assert reason(f"{DIAL}dial backoff", [QUIC]) == ""


def test_places_leave_the_peer_out() -> None:
    assert places([QUIC, TCP, TCP]) == "/ip4/203.0.113.5/udp/31337/quic-v1, /ip4/203.0.113.5/tcp/31337"
