"""Tasks of `tests.islands.rank`: an island of several ranks, and a plain one, in one run.

The lead process holds the swarm, a loopback hub; plain islands train in threads of it beside the island
whose ranks these are.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lowcomm import OuterLoop, RoundPolicy, Schedule, codecs, exchanges, nesterov
from lowcomm.exchanges.loopback import LoopbackHub
from lowcomm.islands.base import Island
from lowcomm.types import PeerId
from tests.islands.ranks import everything, make_island, make_model, wrap

FRAGMENTS = 3
INNER_STEPS = 6
WAIT_S = 60.0
POOL = ThreadPoolExecutor(1)
"""Where a plain island trains."""
CODECS = {"fp32": codecs.fp32, "int8": lambda: codecs.int8(error_feedback=True)}


def inner_step(island: Island, step: int) -> None:
    """Draws the parameters to a point of the step's; the same numbers with any engine."""
    values = everything(island)
    if island.is_lead:
        target = torch.randn(values.numel(), generator=torch.Generator().manual_seed(step))
        values += 0.05 * (target - values)
    island.write(range(len(island.layout)), values if island.is_lead else None)


def loop(island: Island, hub: LoopbackHub | None, name: str, expected: int, codec: str) -> OuterLoop:
    exchange = None
    if hub is not None and island.is_lead:
        exchange = exchanges.loopback(hub, run_id="joined", peer_id=PeerId(name), founder=name == "founder")
    return OuterLoop(
        island,
        exchange,
        schedule=Schedule(inner_steps=INNER_STEPS, num_fragments=FRAGMENTS, delay=1, merge_alpha=0.25),
        codec=CODECS[codec](),
        outer_optimizer=nesterov(lr=0.7, momentum=0.6),
        round_policy=RoundPolicy(deadline_s=20.0),
        expected_peers=expected,
        heartbeat_s=0.5,
        lease_s=30.0,
        chunk_bytes=64,
    )


def go_on(island: Island, outer: OuterLoop, until: int) -> list[str]:
    """Train; the digests of what was committed."""
    digests = []
    while outer.inner_step < until:
        inner_step(island, outer.inner_step)
        reports = outer.step(tokens=8)
        assert all(report.committed for report in reports), [report.reason for report in reports]
        digests += [report.digest for report in reports]
    return digests


def finish(outer: OuterLoop) -> list[str]:
    """The last rounds; their digests."""
    reports = outer.finish()
    assert all(report.committed for report in reports), [report.reason for report in reports]
    return [report.digest for report in reports]


def begin_anew(island: Island) -> None:
    start = torch.linspace(-1, 1, sum(spec.elements for spec in island.layout))
    island.write(range(len(island.layout)), start if island.is_lead else None)


def partner(hub: LoopbackHub, codec: str) -> dict[str, Any]:
    """A plain island from its start to its end."""
    island = make_island(engine="plain")
    begin_anew(island)
    with loop(island, hub, "partner", 2, codec) as outer:
        digests = go_on(island, outer, 3 * INNER_STEPS) + finish(outer)
        return {"digests": digests, "digest": outer.digest, "local": everything(island)}


def together(island: Island, codec: str) -> dict[str, Any]:
    """`island` founds a run and trains it with a plain one."""
    hub = exchanges.hub() if island.is_lead else None
    begin_anew(island)
    outer = loop(island, hub, "founder", 2, codec)
    other = POOL.submit(partner, hub, codec) if hub else None
    try:
        outer.start()
        digests = go_on(island, outer, 3 * INNER_STEPS) + finish(outer)
        found = {"digests": digests, "local": everything(island)}
        if other is not None:
            found |= {
                "digest": outer.digest,
                "other": other.result(WAIT_S),
                "anchor": anchor_of(island, outer),
            }
    finally:
        outer.close()
    return found


def task_rounds(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    island = make_island(engine=engine)
    return {codec: together(island, codec) for codec in CODECS}


def task_resume(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """Saved with a round under way, and gone on with in a new life; and the same without a break."""
    island = make_island(engine=engine)
    saved = io.BytesIO()
    digests: dict[str, list[str]] = {}
    local, anchor = {}, {}
    for life in ("first", "again"):
        begin_anew(island)
        hub = exchanges.hub() if island.is_lead else None
        outer = loop(island, hub, "founder", 1, "int8")
        box = [saved.getvalue()]
        if life == "again":
            torch.distributed.broadcast_object_list(box)
            state = torch.load(io.BytesIO(box[0]), weights_only=True)
            outer.connect()
            island.write(range(len(island.layout)), state["local"] if island.is_lead else None)
            outer.load_state_dict(state["outer"])
            outer.join()
        else:
            outer.start()
            go_on(island, outer, 2 * INNER_STEPS)
            assert outer.state_dict()["flights"]
            state = {"outer": outer.state_dict(), "local": everything(island)}
            if island.is_lead:
                torch.save(state, saved)
        digests[life] = go_on(island, outer, 4 * INNER_STEPS) + finish(outer)
        with outer.anchor_weights():
            anchor[life] = everything(island)
        local[life] = everything(island)
        outer.close()
    return {"digests": digests, "local": local, "anchor": anchor}


def task_snapshot_given(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """A plain island joins one of several ranks, and takes the state from it."""
    island = make_island(engine=engine)
    hub = exchanges.hub() if island.is_lead else None
    outer = loop(island, hub, "founder", 1, "fp32")
    outer.start()
    go_on(island, outer, 4 * INNER_STEPS)
    found: dict[str, Any] = {}
    if hub is not None:
        model = make_model(seed=5)
        model.frozen.load_state_dict(
            make_model().frozen.state_dict()
        )  # what is not trained has to be the same
        joiner = wrap(model, "plain")
        other = loop(joiner, hub, "joiner", 1, "fp32")
        found["how"] = other.start().how
        found["equal"] = [
            outer.digest == other.digest,
            torch.equal(everything(joiner), anchor_of(island, outer)),
        ]
        other.close()
    island.any_rank(False)
    outer.close()
    return found


def task_snapshot_taken(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """An island of several ranks joins a plain one, and takes the state from it."""
    island = make_island(engine=engine)
    hub = exchanges.hub() if island.is_lead else None
    found: dict[str, Any] = {}
    founder = None
    if hub is not None:
        plain = make_island(engine="plain")
        founder = loop(plain, hub, "founder", 1, "fp32")
        founder.start()
        go_on(plain, founder, 4 * INNER_STEPS)
    outer = loop(island, hub, "joiner", 1, "fp32")
    found["how"] = outer.start().how
    local = everything(island)
    if founder is not None:
        found["equal"] = [outer.digest == founder.digest, torch.equal(local, anchor_of(plain, founder))]
    outer.close()
    if founder is not None:
        founder.close()
    return found


def anchor_of(island: Island, outer: OuterLoop) -> torch.Tensor:
    """Flat, as the local parameters are read."""
    named = outer.anchor()
    return torch.cat([named[spec.name].flatten() for spec in island.layout])


TASKS: dict[str, Callable[[int, Path, str], dict[str, Any]]] = {
    "rounds": task_rounds,
    "outer resume": task_resume,
    "snapshot given": task_snapshot_given,
    "snapshot taken": task_snapshot_taken,
}
