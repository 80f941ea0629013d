"""An FSDP2 island of two ranks beside a plain one: `python -m tests.golden.rank RANK WORLD FOLDER ENGINE`.

The lead process holds the swarm; the plain island trains in a thread of it.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lowcomm import OuterLoop, RoundPolicy, Schedule, codecs, exchanges, outer_optimizers
from lowcomm.exchanges.loopback import LoopbackHub
from lowcomm.islands.base import Island
from lowcomm.types import PeerId
from tests.golden.cases import WAIT_S, Found, digest_of, numbers, rounds_of
from tests.islands import rank as islands_rank
from tests.islands.ranks import everything, make_island

STEPS = 18
OPTIMIZERS = {"nesterov": {"lr": 0.7, "momentum": 0.6}, "adam": {}}


def task(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """With each outer optimizer both islands from start to end."""
    return {optimizer: _together(engine, optimizer) for optimizer in OPTIMIZERS}


def _together(engine: str, optimizer: str) -> Found:
    """What the two end with, which is the lead's to tell."""
    hub = exchanges.hub()
    with ThreadPoolExecutor(1) as pool:
        island = make_island(engine=engine)
        outer = _loop(island, hub if island.is_lead else None, "sharded", optimizer)
        partner = pool.submit(_partner, hub, optimizer) if island.is_lead else None
        found = _train(island, outer)
        if partner is None:
            return {}
        other = partner.result(WAIT_S)
    assert (other["rounds"], other["state"]) == (found["rounds"], found["state"])
    return {**found, "local": [found["local"], other["local"]]}


def _partner(hub: LoopbackHub, optimizer: str) -> Found:
    island = make_island(engine="plain")
    return _train(island, _loop(island, hub, "plain", optimizer))


def _loop(island: Island, hub: LoopbackHub | None, name: str, optimizer: str) -> OuterLoop:
    island.write(range(len(island.layout)), _numbers(island, 3) if island.is_lead else None)
    exchange = None
    if hub is not None:
        exchange = exchanges.loopback(hub, run_id="golden", peer_id=PeerId(name), founder=name == "sharded")
    return OuterLoop(
        island,
        exchange,
        schedule=Schedule(inner_steps=6, num_fragments=3, delay=1, merge_alpha=0.25),
        codec=codecs.int8(error_feedback=True),
        outer_optimizer=outer_optimizers.by_name(optimizer, **OPTIMIZERS[optimizer]),
        round_policy=RoundPolicy(min_participants=2, deadline_s=WAIT_S),
        expected_peers=2,
        gather_timeout_s=WAIT_S,
        lease_s=WAIT_S,
        chunk_bytes=64,
    )


def _train(island: Island, outer: OuterLoop) -> Found:
    reports = []
    with outer:
        while outer.inner_step < STEPS:
            values = everything(island)
            if island.is_lead:
                values.sub_((values - _numbers(island, outer.inner_step)).mul_(0.05))
            island.write(range(len(island.layout)), values if island.is_lead else None)
            reports += outer.step(tokens=8)
        reports += outer.finish()
        local = everything(island)
        state = outer.digest if island.is_lead else ""
    return {"rounds": rounds_of(reports), "state": state, "local": digest_of(local)}


def _numbers(island: Island, seed: int) -> torch.Tensor:
    return numbers((sum(spec.elements for spec in island.layout),), seed)


if __name__ == "__main__":
    islands_rank.main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], {"golden": task})
