"""Killing all islands and starting them again continues bit for bit."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lowcomm import OuterLoop, RoundPolicy, Schedule, codecs
from tests.outer.swarm import Result, Swarm, batch, in_parallel, make_model, name, train_step


def train_part(
    swarm: Swarm,
    island: int,
    until: int,
    saved: dict[tuple[int, int], bytes],
    checkpoints: list[int],
    before_saving: Callable[[OuterLoop], None] = lambda outer: None,
    **changes: Any,
) -> Result:
    """Train to `until`, from the checkpoint that the islands agree on; save one at every multiple of 4."""
    result = swarm.results[island] = Result()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=swarm.lr, momentum=0.9)
    outer = swarm.loop(island, model, optimizer, **changes)
    try:
        chosen = outer.connect(checkpoints)
        if chosen is not None:
            state = torch.load(io.BytesIO(saved[island, chosen]), weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            outer.load_state_dict(state["outer"])
        outer.join()
        while outer.inner_step < until:
            inputs = batch(island, outer.inner_step)
            result.losses.append(train_step(model, optimizer, inputs))
            result.reports += outer.step(tokens=len(inputs))
            if outer.inner_step % 4 == 0:
                before_saving(outer)
                file = io.BytesIO()
                parts: dict[str, Any] = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "outer": outer.state_dict(),
                }
                torch.save(parts, file)
                saved[island, outer.inner_step] = file.getvalue()
        outer.finish()
        result.digest, result.head = outer.digest, outer.head
        result.tokens_trained, result.tokens_credited = outer.tokens_trained, outer.tokens_credited
    finally:
        outer.close()
    return result


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(Schedule(inner_steps=4), id="plain"),
        pytest.param(Schedule(inner_steps=4, num_fragments=2, delay=1, merge_alpha=0.5), id="in-flight"),
        pytest.param(Schedule(inner_steps=4, num_fragments=2, delay=3, eager=True), id="eager"),
    ],
)
def test_resumed_equals_uninterrupted(schedule: Schedule) -> None:
    def run(until: int, saved: dict[tuple[int, int], bytes], lists: list[list[int]]) -> dict[int, Result]:
        swarm = Swarm(islands=2, schedule=schedule)
        calls = [lambda i=i: train_part(swarm, i, until, saved, lists[i]) for i in range(2)]
        in_parallel(calls, swarm.results, [0, 1])
        assert [result.error for result in swarm.results.values()] == [None, None]
        return swarm.results

    whole = run(25, {}, [[], []])
    saved: dict[tuple[int, int], bytes] = {}
    run(15, saved, [[], []])
    # island 1 was killed before it could write its last checkpoint: both go back to step 8
    again = run(25, saved, [[4, 8, 12], [4, 8]])
    for island in range(2):
        assert again[island].losses == whole[island].losses[8:]
        assert again[island].digest == whole[island].digest
        assert again[island].head == whole[island].head
        assert again[island].tokens_trained == whole[island].tokens_trained


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    "codec", [codecs.fp32, lambda: codecs.int8(error_feedback=True)], ids=["fp32", "int8"]
)
def test_a_round_that_ended_unseen_before_a_checkpoint_is_done_again(codec: Any, eager: bool) -> None:
    """All rounds under way have committed when the checkpoint is written, and none has landed."""
    schedule = Schedule(inner_steps=4, num_fragments=2, delay=3, eager=eager)
    together = threading.Barrier(2, timeout=30)

    def await_commits(outer: OuterLoop) -> None:
        begun = outer.inner_step // 4
        while any(min(peer.outer_steps) < begun for peer in outer.peers()):
            time_passes.wait(0.01)
        together.wait()  # each has seen that the other one has committed

    def run(until: int, saved: dict[tuple[int, int], bytes], lists: list[list[int]]) -> dict[int, Result]:
        swarm = Swarm(islands=2, schedule=schedule, codec=codec)
        calls = [lambda i=i: train_part(swarm, i, until, saved, lists[i], await_commits) for i in range(2)]
        in_parallel(calls, swarm.results, [0, 1])
        assert [result.error for result in swarm.results.values()] == [None, None]
        return swarm.results

    time_passes = threading.Event()
    saved: dict[tuple[int, int], bytes] = {}
    whole = run(15, saved, [[], []])
    again = run(15, saved, [[8], [8]])
    for island in range(2):
        assert again[island].losses == whole[island].losses[8:]
        assert again[island].digest == whole[island].digest
        assert again[island].head == whole[island].head
        assert again[island].tokens_credited == whole[island].tokens_credited


def lives(tmp_path: Path, policy: RoundPolicy) -> Callable[[int, list[list[int]]], dict[int, Result]]:
    """Trains two islands to an inner step, in run folders, and again from the inner steps that are given."""
    saved: dict[tuple[int, int], bytes] = {}
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()

    def run(until: int, lists: list[list[int]]) -> dict[int, Result]:
        swarm = Swarm(islands=2, schedule=Schedule(inner_steps=4), policy=policy)
        calls = [
            lambda i=i: train_part(swarm, i, until, saved, lists[i], folder=folders[i]) for i in range(2)
        ]
        in_parallel(calls, swarm.results, [0, 1])
        assert [result.error for result in swarm.results.values()] == [None, None]
        return swarm.results

    return run


def test_what_was_committed_stands_where_all_go_back_to_a_checkpoint(tmp_path: Path) -> None:
    """Each replays from its own disk what its checkpoint lacks; none of it is decided a second time."""
    run = lives(tmp_path, RoundPolicy(deadline_s=20.0, partition="majority"))
    first = run(17, [[], []])
    last = max(int(path.stem) for path in (tmp_path / "0" / "redo" / "0").glob("*.json"))
    again = run(25, [[8], [4, 8]])
    heads = [result.head for result in again.values()]
    assert heads[0] == heads[1] != first[0].head
    for island in range(2):
        assert next(report.outer_step for report in again[island].reports if report.committed) == last + 1
        assert again[island].tokens_trained == again[island].tokens_credited + again[island].tokens_left


def test_votes_bind_nobody_where_all_have_gone_back(tmp_path: Path) -> None:
    """A checkpoint, and no redo log: what was committed is on no disk any more."""
    run = lives(tmp_path, RoundPolicy(deadline_s=20.0, partition="majority"))
    first = run(17, [[], []])
    for island in range(2):
        shutil.rmtree(tmp_path / str(island) / "redo")
    again = run(17, [[8], [4, 8]])
    for island in range(2):
        assert again[island].losses == first[island].losses[8:]
        assert again[island].head == first[island].head


def test_an_update_that_died_with_all_who_had_it_binds_nobody(tmp_path: Path) -> None:
    """All go back by the outer step that they have accepted last; with continue its bytes are on no disk."""
    run = lives(tmp_path, RoundPolicy(deadline_s=1.0, partition="continue"))
    first = run(17, [[], []])
    again = run(44, [[16], [16]])
    committed = [report.outer_step for report in again[0].reports if report.committed]
    begun = first[0].reports[-1].outer_step + 1
    assert committed == list(range(begun, begun + len(committed)))
    assert committed  # rounds may end without a commit as long as the update is asked for
    assert again[0].head == again[1].head


def test_what_may_have_been_credited_is_not_sent_again() -> None:
    """Killed after a round that its checkpoint doesn't know of; back so late that it takes a snapshot."""
    swarm = Swarm(
        islands=2, schedule=Schedule(inner_steps=2), policy=RoundPolicy(deadline_s=5.0), lease_s=1.0
    )
    died, back = threading.Event(), threading.Event()
    saved = io.BytesIO()
    lives: list[dict[str, int]] = []

    def wait_for_the_other(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 7:
            assert died.wait(30)
        if inner_step == 20:
            assert back.wait(30)

    def train_twice() -> None:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=swarm.lr)
        outer = swarm.loop(1, model, optimizer)
        outer.start()
        for step in range(6):
            train_step(model, optimizer, batch(1, step))
            outer.step(tokens=8)
            if step == 4:  # one step after the second round, and before the third
                torch.save({"model": model.state_dict(), "outer": outer.state_dict()}, saved)
        lives.append({"trained": outer.tokens_trained})
        swarm.hub.kill(name(1))
        outer.close()
        died.set()
        state = torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
        model = make_model()
        model.load_state_dict(state["model"])
        optimizer = torch.optim.SGD(model.parameters(), lr=swarm.lr)
        outer = swarm.loop(1, model, optimizer, founder=False, expected_peers=1)
        while swarm.results[0].reports[-1].outer_step < 9:
            died.wait(0.01)
        outer.connect([5])
        outer.load_state_dict(state["outer"])
        before = outer.tokens_trained
        assert outer.join().how == "snapshot"
        back.set()
        while outer.inner_step < 24:
            train_step(model, optimizer, batch(1, outer.inner_step))
            outer.step(tokens=8)
        outer.finish()
        lives.append({"trained": outer.tokens_trained - before, "dropped": outer.tokens_dropped})
        assert outer.tokens_trained == outer.tokens_credited + outer.tokens_dropped + outer.tokens_uncommitted
        outer.close()

    trainers: list[Any] = [lambda: swarm.train(0, 24, each=wait_for_the_other), train_twice]
    in_parallel(trainers, swarm.results, [0, 1])
    assert [result.error for result in swarm.results.values()] == [None] * len(swarm.results)
    trained = swarm.results[0].tokens_trained + sum(life["trained"] for life in lives)
    assert lives[1]["dropped"] == 8
    assert sum(report.round_tokens for report in swarm.results[0].committed) == trained


def test_an_island_that_went_on_alone_comes_back_to_the_run() -> None:
    """Its checkpoint is of a history that nobody else has, and further ahead than theirs."""
    alone = Swarm(islands=1, schedule=Schedule(inner_steps=2))
    saved = io.BytesIO()

    def save(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 40:
            torch.save(outer.state_dict(), saved)

    assert alone.train(0, 42, each=save).error is None
    swarm = Swarm(islands=2, schedule=Schedule(inner_steps=2))
    here, back = threading.Event(), threading.Event()

    def wait_for_the_third(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 10:
            here.set()
            assert back.wait(30)

    def come_back() -> None:
        assert here.wait(30)
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=swarm.lr)
        outer = swarm.loop(2, model, optimizer, founder=False, expected_peers=1)
        outer.connect()
        outer.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
        assert outer.outer_step == 20
        try:
            assert outer.join().how == "snapshot"
            assert outer.outer_step == 5
            assert outer.tokens_uncommitted == 0
        finally:
            back.set()
            outer.close()

    trainers = [lambda i=i: swarm.train(i, 14, each=wait_for_the_third) for i in range(2)]
    in_parallel([*trainers, come_back], swarm.results, [0, 1, 2])
    assert [swarm.results[island].error for island in range(2)] == [None, None]
    assert 2 not in swarm.results, swarm.results[2].error
    assert swarm.results[0].head == swarm.results[1].head
    assert [report.outer_step for report in swarm.results[0].reports] == list(range(1, 8))


def test_what_an_earlier_vote_has_committed_is_counted(tmp_path: Path) -> None:
    """Killed after its vote, with a checkpoint from before it: it commits that entry as it comes back."""
    policy = RoundPolicy(deadline_s=20.0, partition="majority")
    swarm = Swarm(islands=2, schedule=Schedule(inner_steps=2), policy=policy)
    back = threading.Event()
    saved = io.BytesIO()

    def wait_for_the_other(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 7:
            assert back.wait(30)

    def train_twice() -> None:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=swarm.lr)
        outer = swarm.loop(1, model, optimizer, folder=tmp_path)
        outer.start()
        for step in range(6):
            train_step(model, optimizer, batch(1, step))
            outer.step(tokens=8)
            if step == 4:
                torch.save({"model": model.state_dict(), "outer": outer.state_dict()}, saved)
        anchor = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        swarm.hub.kill(name(1))
        outer.close()
        state = torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
        model = make_model()
        model.load_state_dict(state["model"])
        optimizer = torch.optim.SGD(model.parameters(), lr=swarm.lr)
        outer = swarm.loop(1, model, optimizer, founder=False, expected_peers=1, folder=tmp_path)
        outer.connect([5])
        outer.load_state_dict(state["outer"])
        report = outer.join()
        assert (report.how, report.entries, report.credits) == ("replayed", 1, (16,))
        assert outer.tokens_trained == outer.tokens_credited == 48
        local = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        torch.testing.assert_close(local, anchor, rtol=0, atol=1e-6)
        back.set()
        while outer.inner_step < 12:
            train_step(model, optimizer, batch(1, outer.inner_step))
            outer.step(tokens=8)
        outer.finish()
        assert outer.tokens_trained == outer.tokens_credited
        outer.close()

    trainers: list[Any] = [lambda: swarm.train(0, 12, each=wait_for_the_other), train_twice]
    in_parallel(trainers, swarm.results, [0, 1])
    assert [result.error for result in swarm.results.values()] == [None] * len(swarm.results)
