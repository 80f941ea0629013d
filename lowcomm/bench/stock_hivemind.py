"""Stock hivemind averaging: the peer that `lowcomm bench round --stock` measures beside our own.

It is the thing compared with, not a part of lowcomm, and so the one exception to the rule that hivemind is
imported in one module only: the layer test may exempt this file.

The settings favour it: no compression, as many streams and parts as it likes by default, a target
group of exactly the peers that are there (a full group starts at once), no smaller group allowed, and
the matchmaking time with which, by the bench's trials, all peers find each other soonest.
"""

from __future__ import annotations

from typing import Any

import hivemind
import numpy as np
import torch
from blake3 import blake3
from hivemind.averaging import DecentralizedAverager
from hivemind.compression import CompressionInfo, NoCompression, Uniform8BitQuantization
from torch import Tensor

from lowcomm.bench.peer import Peer

REQUEST_PART = 0.6
"""request_timeout as a part of min_matchmaking_time; hivemind wants it to be smaller."""


def take_part(peer: Peer) -> None:
    """Join, average for each line, say what each round took."""
    settings = peer.settings
    matchmaking_s = settings["matchmaking_s"]
    torch.set_num_threads(1)
    dht = hivemind.DHT(initial_peers=settings["initial_peers"], host_maddrs=[settings["listen"]], start=True)
    averager = None
    try:
        addresses = [str(address) for address in dht.get_visible_maddrs()]
        outside = [address for address in addresses if "/ip4/127." not in address]
        peer.tell("address", address=(outside or addresses)[0])
        generator = torch.Generator().manual_seed(peer.number)
        noise = torch.randn(settings["elements"], generator=generator)
        averager = DecentralizedAverager(
            [noise.clone()],
            dht,
            prefix="bench",
            compression=NoCompression(),
            target_group_size=settings["peers"],
            min_group_size=settings["peers"],
            min_matchmaking_time=matchmaking_s,
            request_timeout=REQUEST_PART * matchmaking_s,
            start=True,
        )
        while peer.hear():
            with averager.get_tensors() as (values,):
                values.copy_(noise)
            began_s = peer.clock.monotonic_s()
            reason = ""
            try:
                gathered = averager.step(timeout=settings["deadline_s"])
            except Exception as error:  # whatever the peer under test raises belongs to its result
                gathered, reason = None, repr(error)
            wait_s = peer.clock.monotonic_s() - began_s
            with averager.get_tensors() as (values,):
                digest = blake3(values.view(torch.uint8).numpy()).hexdigest()
            peer.tell(
                "round",
                wait_s=wait_s,
                participants=len(gathered or ()),
                reason=reason,
                digest=digest,
            )
    finally:
        if averager is not None:
            averager.shutdown()
        dht.shutdown()


class Uniform8:
    """hivemind's uniform 8-bit codec, which `lowcomm bench codecs` times beside ours.

    `extract` has hivemind's own lines but for reading the codebook's length: its int(array of one
    number) is refused by numpy 2.4, so that its codec fails on every tensor there.
    """

    def __init__(self) -> None:
        self._codec = Uniform8BitQuantization()

    def compress(self, values: Tensor) -> Any:
        """hivemind's message."""
        return self._codec.compress(values, CompressionInfo.from_tensor(values))

    def extract(self, message: Any) -> Tensor:
        """The numbers in it."""
        length = int.from_bytes(message.buffer[:8], "little")
        codebook = np.frombuffer(message.buffer, offset=8, count=length, dtype=np.float32)
        quantised = np.frombuffer(message.buffer, offset=8 + codebook.nbytes, dtype=np.uint8)
        indices = torch.as_tensor(quantised, dtype=torch.int64).reshape(tuple(message.size))
        return torch.as_tensor(codebook)[indices]
