"""Islands of one and of two ranks in one run: `python -m tests.islands.joined RANK WORLD FOLDER ENGINE`.

The lead process holds the swarm, a loopback hub; plain islands train in threads of it beside the island
whose ranks these are. What a rank saw goes to FOLDER/rank-N.pt, as in `tests.islands.ranks`.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lowcomm import OuterLoop, RoundPolicy, Schedule, codecs, exchanges, nesterov
from lowcomm.exchanges.loopback import LoopbackHub
from lowcomm.islands.base import Island
from lowcomm.types import PeerId
from tests.islands.ranks import make_island

FRAGMENTS = 3
INNER_STEPS = 6
CODECS = {"fp32": codecs.fp32, "int8": lambda: codecs.int8(error_feedback=True)}


def inner_step(island: Island, step: int) -> None:
    """Draws the parameters to a point of the step's; the same numbers with any engine."""
    everything = range(len(island.layout))
    values = island.read(everything)
    if island.is_lead:
        target = torch.randn(values.numel(), generator=torch.Generator().manual_seed(step))
        values += 0.05 * (target - values)
    island.write(everything, values if island.is_lead else None)


def loop(
    island: Island, hub: LoopbackHub | None, name: str, expected: int, codec: str, **changes: Any
) -> OuterLoop:
    exchange = None
    if hub is not None and island.is_lead:
        exchange = exchanges.loopback(hub, run_id="joined", peer_id=PeerId(name), founder=name == "founder")
    settings: dict[str, Any] = {
        "schedule": Schedule(inner_steps=INNER_STEPS, num_fragments=FRAGMENTS, delay=1, merge_alpha=0.25),
        "codec": CODECS[codec](),
        "outer_optimizer": nesterov(lr=0.7, momentum=0.6),
        "round_policy": RoundPolicy(deadline_s=20.0),
        "expected_peers": expected,
        "heartbeat_s": 0.1,
        "lease_s": 30.0,
        "chunk_bytes": 64,
    }
    return OuterLoop(island, exchange, **{**settings, **changes})


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


def everything(island: Island) -> torch.Tensor:
    return island.read(range(len(island.layout)))


def begin_anew(island: Island) -> None:
    start = torch.linspace(-1, 1, sum(spec.elements for spec in island.layout))
    island.write(range(len(island.layout)), start if island.is_lead else None)


class InThread:
    """A call in a thread of the lead; other ranks have none."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._result = call()
        except BaseException as error:  # raised by `result`
            self._error = error

    def result(self) -> Any:
        self._thread.join(60.0)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._result


def partner(hub: LoopbackHub, name: str, codec: str, until: int) -> dict[str, Any]:
    """A plain island from its start to its end."""
    island = make_island(engine="plain")
    begin_anew(island)
    with loop(island, hub, name, 2, codec) as outer:
        digests = go_on(island, outer, until) + finish(outer)
        return {"digests": digests, "digest": outer.digest, "local": everything(island)}


def together(island: Island, codec: str, until: int) -> dict[str, Any]:
    """`island` founds a run and trains it with a plain one."""
    hub = exchanges.hub() if island.is_lead else None
    begin_anew(island)
    outer = loop(island, hub, "founder", 2, codec)
    other = InThread(lambda: partner(hub, "partner", codec, until)) if hub else None
    try:
        outer.start()
        digests = go_on(island, outer, until) + finish(outer)
        found = {"digests": digests, "local": everything(island)}
        if other is not None:
            found |= {"digest": outer.digest, "other": other.result()}
            found["anchor"] = torch.cat([part.flatten() for part in outer.anchor().values()])
    finally:
        outer.close()
    return found


def task_rounds(island: Island) -> dict[str, Any]:
    return {codec: together(island, codec, 3 * INNER_STEPS) for codec in CODECS}


def task_resume(island: Island) -> dict[str, Any]:
    """Saved with a round under way, and gone on with in a new life; and the same without a break."""
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


def task_snapshot_given(island: Island) -> dict[str, Any]:
    """A plain island joins one of several ranks, and takes the state from it."""
    hub = exchanges.hub() if island.is_lead else None
    outer = loop(island, hub, "founder", 1, "fp32")
    outer.start()
    go_on(island, outer, 4 * INNER_STEPS)
    found: dict[str, Any] = {}
    joiner = make_island(seed=5, engine="plain")
    other = None
    if hub is not None:
        other = loop(joiner, hub, "joiner", 1, "fp32")
        found["how"] = InThread(other.start).result().how
        found["equal"] = [outer.digest == other.digest, torch.equal(everything(joiner), anchor_of(outer))]
        other.close()
    island.any_rank(False)
    outer.close()
    return found


def task_snapshot_taken(island: Island) -> dict[str, Any]:
    """An island of several ranks joins a plain one, and takes the state from it."""
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
        found["equal"] = [outer.digest == founder.digest, torch.equal(local, anchor_of(founder))]
    outer.close()
    if founder is not None:
        founder.close()
    return found


def anchor_of(outer: OuterLoop) -> torch.Tensor:
    """In the order of the layout."""
    named = outer.anchor()
    return torch.cat([named[spec.name].flatten() for spec in outer._layout])


TASKS: dict[str, Callable[[Island], dict[str, Any]]] = {
    "rounds": task_rounds,
    "resume": task_resume,
    "snapshot given": task_snapshot_given,
    "snapshot taken": task_snapshot_taken,
}


def main(rank: int, world_size: int, folder: Path, engine: str) -> None:
    """One rank."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    found = {name: task(make_island(engine=engine)) for name, task in TASKS.items()}
    torch.save(found, folder / f"rank-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
