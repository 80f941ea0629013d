"""What the peers of a bench train: fp32 parameters of the asked size, moved a little by each inner step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowcomm import exchanges
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.islands import wrap_island
from lowcomm.islands.base import Island

RUN_ID = "bench"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
NOISE_SCALE = 1e-3
"""Of one inner step; the pseudo-gradient is not zero, so that codecs have real work."""


class Payload:
    """Parameters in as many tensors as there are fragments, so that these are equal to a few bytes.

    Args:
        elements: how many numbers.
        seed: of the direction in which this peer moves, which has to differ from the others'; None = any.
    """

    def __init__(self, elements: int, *, seed: int | None, fragments: int = 1) -> None:
        torch.set_num_threads(1)
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        whole = torch.zeros(max(fragments, elements), dtype=torch.float32, device="cpu")
        self._parameters = nn.ParameterList(part.clone() for part in whole.tensor_split(fragments))
        self._noise: list[Tensor] = [
            torch.randn(len(part), generator=generator, dtype=torch.float32, device="cpu")
            for part in self._parameters
        ]

    def island(self) -> Island:
        """Of one rank."""
        optimizer = torch.optim.SGD(self._parameters.parameters(), lr=0.0)
        return wrap_island(self._parameters, optimizer)

    def train(self) -> None:
        """One inner step."""
        with torch.no_grad():
            for parameter, noise in zip(self._parameters, self._noise, strict=True):
                parameter.add_(noise, alpha=NOISE_SCALE)


def bench_swarm(settings: Mapping[str, Any]) -> SwarmExchange:
    """The exchange of a peer, from `initial_peers` and `listen` (by default on this machine only)."""
    return exchanges.swarm(
        run_id=RUN_ID,
        initial_peers=settings["initial_peers"],
        listen=[settings.get("listen", LOOPBACK)],
        relay=False,
    )
