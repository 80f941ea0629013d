"""Runs of each outer optimizer: its slots are hashed, saved, sent, replayed and counted like the anchor."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowcomm import OuterLoop, Schedule, codecs, outer_optimizers
from lowcomm.algorithms.outer_optimizers import OuterOptimizer, slot_names
from lowcomm.cli.main import main
from lowcomm.config.load import load_config
from lowcomm.errors import ArgumentError, CheckpointError, ConfigError, JoinRefusedError, OutOfMemoryError
from lowcomm.training.build import build_task
from lowcomm.training.fitting import check_host_memory
from tests.outer.swarm import Result, Swarm, batch, in_parallel, make_model, train_step
from tests.outer.test_resume import train_part
from tests.training.islands import finished, make_config, train_islands

METHODS = {name: outer_optimizers.by_name(name) for name in outer_optimizers.METHODS.names}
each = pytest.mark.parametrize("optimizer", METHODS.values(), ids=METHODS)


def naive_anchor(swarm: Swarm, steps: int) -> Tensor:
    """One fragment without delay, written down naively around `step` on whole vectors."""
    models = [make_model() for _ in range(swarm.islands)]
    inner = [torch.optim.SGD(model.parameters(), lr=swarm.lr) for model in models]
    anchor = nn.utils.parameters_to_vector(models[0].parameters()).detach()
    slots = swarm.optimizer.init(anchor)
    for step in range(steps):
        for island, (model, optimizer) in enumerate(zip(models, inner, strict=True)):
            train_step(model, optimizer, batch(island, step))
        if (step + 1) % swarm.schedule.inner_steps == 0:
            local = [nn.utils.parameters_to_vector(model.parameters()).detach() for model in models]
            mean = sum((anchor - values) / swarm.islands for values in local)
            after = torch.empty_like(anchor), {name: torch.empty_like(anchor) for name in slots}
            outer_step = (step + 1) // swarm.schedule.inner_steps
            swarm.optimizer.step(anchor, slots, mean, *after, outer_step)  # type: ignore[arg-type]
            anchor, slots = after
            for model in models:
                nn.utils.vector_to_parameters(anchor.clone(), model.parameters())
    return anchor


@each
def test_a_run_is_what_is_written_down_naively(optimizer: OuterOptimizer) -> None:
    swarm = Swarm(islands=2, optimizer=optimizer)
    results = swarm.run(steps=16)
    assert [result.error for result in results.values()] == [None, None]
    assert results[0].digest == results[1].digest
    expected = naive_anchor(swarm, 16)
    for result in results.values():
        torch.testing.assert_close(result.local, expected, rtol=0, atol=1e-6)


@each
def test_resumed_equals_uninterrupted(optimizer: OuterOptimizer) -> None:
    """With rounds and previews under way, and with error feedback."""
    schedule = Schedule(inner_steps=4, num_fragments=2, delay=3, eager=True)

    def run(until: int, saved: dict[tuple[int, int], bytes], lists: list[list[int]]) -> dict[int, Result]:
        swarm = Swarm(schedule=schedule, optimizer=optimizer, codec=lambda: codecs.int8(error_feedback=True))
        calls = [lambda i=i: train_part(swarm, i, until, saved, lists[i]) for i in range(2)]
        in_parallel(calls, swarm.results, [0, 1])
        assert [result.error for result in swarm.results.values()] == [None, None]
        return swarm.results

    whole = run(25, {}, [[], []])
    saved: dict[tuple[int, int], bytes] = {}
    run(15, saved, [[], []])
    again = run(25, saved, [[4, 8, 12], [4, 8, 12]])
    for island in range(2):
        assert again[island].losses == whole[island].losses[12:]
        assert (again[island].digest, again[island].head) == (whole[island].digest, whole[island].head)


@each
def test_a_joiner_takes_anchor_and_slots(optimizer: OuterOptimizer) -> None:
    swarm = Swarm(islands=1, schedule=Schedule(inner_steps=2), optimizer=optimizer)
    here, late_one = threading.Event(), swarm.results.setdefault(1, Result())

    def each(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 10:
            here.set()
            assert late_one.started.wait(30)

    def late() -> None:
        assert here.wait(30)
        swarm.train(1, 16, seed=5, founder=False, expected_peers=1)

    in_parallel([lambda: swarm.train(0, 16, each=each), late], swarm.results, [0, 1])
    assert [result.error for result in swarm.results.values()] == [None, None]
    joiner = swarm.results[1]
    assert joiner.how == "snapshot"
    assert all(report.committed and len(report.participants) == 2 for report in joiner.reports)
    assert swarm.results[0].digest == joiner.digest


@pytest.mark.parametrize("name", METHODS)
def test_what_a_recipe_chooses_is_trained_audited_and_resumed(name: str, tmp_path: Path) -> None:
    settings = (f"shared.outer.name={name}", "train.keep_updates=100", "shared.schedule.num_fragments=2")
    finished(train_islands(make_config(tmp_path, *settings, "train.steps=10"), tmp_path))
    finished(train_islands(make_config(tmp_path, *settings), tmp_path))
    figures = tmp_path / "figures.json"
    assert main(["ledger", "verify", str(tmp_path / "island-0"), "--json", str(figures)]) == 0
    audit = json.loads(figures.read_text())
    assert audit["genesis"] == "recomputed"
    assert audit["states_replayed"] == audit["entries"] > 4
    assert audit["states_in_checkpoints"] > 0


def test_another_outer_optimizers_checkpoint_is_refused() -> None:
    saved: dict[tuple[int, int], bytes] = {}
    swarm = Swarm(islands=1, optimizer=METHODS["adam"])
    train_part(swarm, 0, 5, saved, [])
    for name, has in (("nesterov", "the slots momentum"), ("sgd", "no slots")):
        swarm = Swarm(islands=1, optimizer=METHODS[name])
        with pytest.raises(CheckpointError) as caught:
            train_part(swarm, 0, 8, saved, [4])
        assert str(caught.value) == (
            f"fragment 0: expected {has} of the outer optimizer, the checkpoint has the slots first, second; "
            "go on with the outer optimizer that wrote it"
        )


def test_islands_with_another_outer_optimizer_are_refused() -> None:
    swarm = Swarm(islands=2, expected=1)
    model = make_model()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        swarm.loop(0, model, inner, outer_optimizer=METHODS["adam"]),
        pytest.raises(JoinRefusedError, match=r"shared\.outer\.name: here 'sgd', there 'adam'"),
    ):
        swarm.train(1, 8, outer_optimizer=METHODS["sgd"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["shared.outer.name=adam", "shared.outer.momentum=0.9"],
            "shared.outer.momentum: expected nothing with name = adam, whose parameters are lr, beta1, "
            "beta2, eps, got 0.9; leave it out",
        ),
        (
            ["shared.outer.beta1=0.9"],
            "shared.outer.beta1: expected nothing with name = nesterov, whose parameters are lr, momentum, "
            "got 0.9; leave it out",
        ),
        (
            ["shared.outer.name=sgd", "shared.outer.eps=0.1"],
            "shared.outer.eps: expected nothing with name = sgd, whose parameters are lr, got 0.1; leave it "
            "out",
        ),
        (
            ["shared.outer.name=adm"],
            'shared.outer.name: expected one of "nesterov", "adam", "schedule_free", "sgd", got "adm"; did '
            'you mean "adam"?',
        ),
    ],
    ids=["foreign to adam", "foreign to nesterov", "foreign to sgd", "unknown"],
)
def test_what_does_not_belong_to_the_chosen_method_is_named(
    settings: list[str], says: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("")
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, settings)
    assert str(caught.value).endswith(says)


@pytest.mark.parametrize(("name", "bytes_of"), [("sgd", 4), ("nesterov", 8), ("adam", 12)])
def test_memory_is_counted_by_slots(name: str, bytes_of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = METHODS[name]
    assert 4 * (1 + len(slot_names(optimizer))) == bytes_of
    config = load_config(None, [f"shared.outer.name={name}"])
    facts = build_task(config).facts
    monkeypatch.setattr("lowcomm.training.fitting.total_bytes", lambda: 0)
    with pytest.raises(OutOfMemoryError, match="needs at least") as caught:
        check_host_memory(config, facts, torch.device("cuda"))
    parameters = int(str(caught.value).split()[3].replace(",", ""))
    monkeypatch.setattr("lowcomm.training.fitting.total_bytes", lambda: parameters * bytes_of)
    check_host_memory(config, facts, torch.device("cuda"))
    monkeypatch.setattr("lowcomm.training.fitting.total_bytes", lambda: parameters * bytes_of - 1)
    with pytest.raises(OutOfMemoryError):
        check_host_memory(config, facts, torch.device("cuda"))


class Custom:
    """A user's own, with whatever `init` gives."""

    def __init__(self, init: Any) -> None:
        self.init = init

    settings = {"name": "custom"}  # noqa: RUF012

    def step(
        self, anchor: Any, slots: Any, mean: Any, new_anchor: Any, new_slots: Any, outer_step: int
    ) -> None:
        new_anchor.copy_(anchor - 0.5 * mean)
        for name, slot in new_slots.items():
            slot.copy_(slots[name] + mean)


def test_a_users_own_has_any_slots() -> None:
    own = Custom(lambda anchor: {name: torch.zeros_like(anchor) for name in ("a", "b", "c")})
    swarm = Swarm(islands=2, optimizer=own)  # type: ignore[arg-type]
    results = swarm.run(steps=8)
    assert [result.error for result in results.values()] == [None, None]
    assert results[0].digest == results[1].digest


@pytest.mark.parametrize(
    ("init", "says"),
    [
        (lambda anchor: [torch.zeros_like(anchor)], "got .*list"),
        (lambda anchor: {"m": 0.0}, "got 'm': 0.0"),
        (lambda anchor: {1: torch.zeros_like(anchor)}, "got 1: tensor"),
        (lambda anchor: {"m": anchor.double()}, r"got 'm' of torch.float64, shape \(3,\), on cpu"),
        (lambda anchor: {"m": torch.zeros(1)}, r"got 'm' of torch.float32, shape \(1,\), on cpu"),
        (lambda anchor: {"m": anchor}, r"got 'm' that is the anchor itself; return anchor.clone\(\)"),
    ],
    ids=["list", "number", "name", "dtype", "shape", "alias"],
)
def test_slots_that_are_none_are_refused(init: Any, says: str) -> None:
    with pytest.raises((ArgumentError, ConfigError), match=f"^OuterLoop: outer_optimizer: .*{says}") as error:
        Swarm(islands=1, optimizer=Custom(init)).train(0, 1)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
