"""An honest peer in a process of its own, so that its memory can be read from outside."""

import asyncio
import sys

from lowcomm import exchanges
from lowcomm.peers.observer import run_seed


def main() -> None:
    """Be a bootstrap peer of run `sys.argv[1]`; prints the join string, ends when the input does."""

    async def scenario() -> None:
        exchange = exchanges.swarm(run_id=sys.argv[1])
        seed = asyncio.ensure_future(run_seed(exchange, lambda address: print(address, flush=True)))
        await asyncio.to_thread(sys.stdin.read)
        seed.cancel()
        await asyncio.gather(seed, return_exceptions=True)

    asyncio.run(scenario())


if __name__ == "__main__":
    main()
