"""An island goes on with a compacted ledger, and hands the run over to who joins."""

from __future__ import annotations

import threading
from pathlib import Path

from lowcomm import OuterLoop
from lowcomm.exchanges.swarm.identity import MESSAGES, Identity
from lowcomm.ledger.audit import Audit, Auditor
from lowcomm.ledger.compaction import compact
from tests.outer.swarm import Swarm, in_parallel
from tests.outer.test_resume import train_part


def test_a_donor_with_a_compacted_ledger_serves_who_joins(tmp_path: Path) -> None:
    swarm = Swarm(islands=1)
    ledger, saved = tmp_path / "ledger.jsonl", {}
    train_part(swarm, 0, 16, saved, [], folder=tmp_path)
    key = Identity.generate()
    done = compact(
        ledger, Auditor(Audit(), ledger), {0: 2}, key.peer_id, lambda data: key.sign(MESSAGES, data)
    )
    assert (done.dropped, done.kept) == (2, 2)

    goes_on, joined = threading.Event(), threading.Event()

    def wait(outer: OuterLoop) -> None:
        goes_on.set()
        assert joined.wait(60.0)

    def join() -> None:
        assert goes_on.wait(60.0)
        swarm.train(1, 40, founder=False, each=lambda step, outer: joined.set())

    steps = sorted(step for _, step in saved)[:-2]
    in_parallel(
        [lambda: train_part(swarm, 0, 40, saved, steps, wait, folder=tmp_path), join], swarm.results, [0, 1]
    )
    assert [swarm.results[island].error for island in range(2)] == [None, None]
    assert swarm.results[1].how in ("snapshot", "replayed")
    assert swarm.results[0].head == swarm.results[1].head
    found = Auditor(Audit(), ledger).found
    assert (found.problem, found.compacted) == ("", 2)
    assert found.head == swarm.results[0].head
    assert found.credited == {f"island-{n}": swarm.results[n].tokens_credited for n in range(2)}
