"""Stock hivemind averaging, as the peer that `lowcomm bench round --stock` measures beside our own.

A script of its own, run as a subprocess: the thing compared with, not a part of lowcomm. It is the one
exception to "hivemind is imported in one module". The settings favour it: no compression, a target
group of exactly the peers that are there (so that a full group starts at once), and the shortest
matchmaking time with which all peers still find each other.
"""

from __future__ import annotations

import json
import sys
import time

import hivemind
import torch
from hivemind.averaging import DecentralizedAverager
from hivemind.compression import NoCompression

MATCHMAKING_S = 1.0
STEP_TIMEOUT_S = 60.0


def main() -> None:
    """Join, average, print what each round took."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    dht = hivemind.DHT(
        initial_peers=settings["initial_peers"], host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True
    )
    averager = None
    try:
        addresses = [str(address) for address in dht.get_visible_maddrs()]
        tell(event="address", address=addresses[0])
        generator = torch.Generator().manual_seed(settings["number"])
        values = torch.randn(settings["elements"], generator=generator)
        averager = DecentralizedAverager(
            [values],
            dht,
            prefix="bench",
            compression=NoCompression(),
            target_group_size=settings["peers"],
            min_group_size=settings["peers"],
            min_matchmaking_time=MATCHMAKING_S,
            request_timeout=MATCHMAKING_S,
            start=True,
        )
        for _ in range(settings["rounds"]):
            began_s = time.monotonic()
            try:
                gathered = averager.step(timeout=STEP_TIMEOUT_S)
                reason = ""
            except Exception as error:  # whatever the peer under test raises is a figure of the round
                gathered, reason = None, repr(error)
            wait_s = time.monotonic() - began_s
            with averager.get_tensors() as (mean,):
                digest = str(hash(mean.numpy().tobytes()))
            size = len(gathered) if gathered else 0
            committed = size == settings["peers"]
            tell(event="round", committed=committed, reason=reason, participants=size, wait_s=wait_s, digest=digest)
        tell(event="end")
    finally:
        if averager is not None:
            averager.shutdown()
        dht.shutdown()


def tell(**event: object) -> None:
    """One line for the bench."""
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main()
