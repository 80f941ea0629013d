"""A peer in a process of its own, to be killed: `child.py swarm JOIN_STRING` or `child.py gloo PORT`."""

import asyncio
import sys

import torch.distributed as dist

from lowcomm import exchanges
from lowcomm.errors import ExchangeError
from lowcomm.exchanges import Message
from lowcomm.exchanges.process_group import ProcessGroupExchange
from lowcomm.types import PeerId


class Idle:
    def on_message(self, peer: PeerId, message: Message) -> None: ...

    async def on_bulk(self, peer: PeerId, message: Message) -> None: ...

    def on_peer_up(self, peer: PeerId) -> None: ...

    def on_peer_down(self, peer: PeerId, reason: str) -> None: ...

    def on_fatal(self, error: ExchangeError) -> None: ...


async def main(kind: str, where: str) -> None:
    if kind == "swarm":
        swarm = exchanges.swarm(run_id="contract", initial_peers=[where])
        await swarm.start(Idle())
        print(swarm.daemon_pid, flush=True)
    else:
        store = dist.TCPStore("127.0.0.1", int(where), wait_for_workers=False)
        group = ProcessGroupExchange("contract", store=store, rank=1, world_size=2)
        await group.start(Idle())
        print(0, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
