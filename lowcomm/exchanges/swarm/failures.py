"""Why a peer can't be reached: what p2pd says of a dial that failed, in words for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lowcomm.types import PeerId, short

PORT = "check that it runs, and that its port is open to this host"
CLOCKS = (
    "QUIC refuses clocks that are more than an hour apart (TCP does not): set both machines' clocks, e.g. by "
    "NTP, or join over TCP"
)
_BACKOFF = "dial backoff"
_PEER_ID = re.compile(r"\b(12D3Koo\w+|Qm\w{44})(: )?")


def places(addresses: Sequence[str]) -> str:
    """Addresses without the peer at their end."""
    return ", ".join(dict.fromkeys(re.sub(r"/p2p/\w+$", "", address) for address in addresses))


def reason(text: str, addresses: Sequence[str]) -> str:
    """What one dial's failure says; nothing where p2pd only holds the next dial back for a while."""
    if "not yet valid" in text:
        times = re.search(r"current time (\S+) is (?:before|after) ([\w:-]+)", text)
        seen = f" (now it is {times[1]} here; its certificate is valid from {times[2]})" if times else ""
        return f"the clocks of the two machines differ{seen}; {CLOCKS}"
    if "peer id mismatch" in text:
        other = re.search(r"remote key matches (\w+)", text)
        who = f", {short(PeerId(other[1]))}," if other else ""
        return f"another peer{who} listens there; copy the address of the one that runs now"
    if "connection failed" in text and any("/quic" in address for address in addresses):
        return f"it ended the connection at once, as where the clocks of the two machines differ; {CLOCKS}"
    if "nobody listens" in text or "connection refused" in text:
        return f"nobody listens there; {PORT}"
    if "deadline exceeded" in text or "timeout" in text:
        return f"no answer; {PORT}"
    dials = [line.strip(" *") for line in text.splitlines() if line.lstrip().startswith("*")]
    if dials:
        dials = [line for line in dials if _BACKOFF not in line]
        return f"{'; '.join(dials)}; {PORT}" if dials else ""
    words = " ".join(_PEER_ID.sub("", text).split())
    return "" if _BACKOFF in words else f"{words}; {PORT}"
