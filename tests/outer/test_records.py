"""A loop of one's own with a folder: it is reported, exported and goes on as a run of the trainer does."""

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lowcomm.errors import CheckpointError, StorageError
from lowcomm.outer.records import ANCHOR_FILE
from lowcomm.report import find_runs, run_figures, write_page
from lowcomm.training.export import export
from tests.outer.swarm import Swarm, make_model

STEPS = 40


def lines(folder: Path, kind: str) -> list[dict[str, object]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def train(swarm: Swarm, folder: Path, island: int, *, finish: bool = True, **changes) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(island)
    outer = swarm.loop(island, model, optimizer, folder=folder / f"island-{island}", **changes)
    with outer:
        swarm.founded.set()
        for _ in range(STEPS):
            inputs = torch.randn(8, next(model.parameters()).shape[-1], generator=generator)
            loss = model(inputs).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            outer.show_loss(loss.item())
            outer.step(tokens=8)
        if finish:
            outer.finish()


def train_both(folder: Path, **changes) -> None:
    swarm = Swarm(islands=2)
    threads = [
        threading.Thread(target=train, args=(swarm, folder, island), kwargs=changes) for island in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive()


def test_a_loop_with_a_folder_is_reported_and_exported(tmp_path: Path) -> None:
    train_both(tmp_path)
    for number in range(2):
        folder = tmp_path / f"island-{number}"
        (start,) = lines(folder, "start")
        assert start["config"]["shared"]["schedule"]["mode"] == "fixed"
        steps = [line["inner_step"] for line in lines(folder, "train")]
        assert {10, 20, 30, 40} <= set(steps)
        curve = [line["loss"] for line in lines(folder, "train") if line["loss"] is not None]
        assert curve[-1] < curve[0]
        assert all(line["committed"] for line in lines(folder, "round"))
        (end,) = lines(folder, "end")
        assert end["reason"] == "finished"
        assert end["summary"] == json.loads((folder / "summary.json").read_text())
    (run,) = find_runs([tmp_path])
    figures = run_figures(run)
    assert (figures.islands, figures.inner_steps, figures.digests_equal) == (2, STEPS, True)
    assert figures.tokens == 2 * STEPS * 8
    write_page([run], tmp_path / "report.html")
    assert export(tmp_path / "island-0", tmp_path / "out") == STEPS
    weights = load_file(tmp_path / "out" / "model.safetensors")
    make_model().load_state_dict(weights)
    assert weights.keys() == dict(make_model().named_parameters()).keys()


def test_without_metrics_nothing_of_it_is_written(tmp_path: Path) -> None:
    train(Swarm(islands=1), tmp_path, 0, metrics=False)
    written = {item.name for item in (tmp_path / "island-0").iterdir()}
    assert "ledger.jsonl" in written
    assert not written & {"metrics.jsonl", "summary.json", ANCHOR_FILE}


def test_a_loop_that_stops_or_fails_says_so(tmp_path: Path) -> None:
    train(Swarm(islands=1), tmp_path, 0, finish=False)
    (end,) = lines(tmp_path / "island-0", "end")
    assert (end["reason"], end["summary"]) == ("stopped", {})
    model = make_model()
    with (
        pytest.raises(ZeroDivisionError),
        Swarm(islands=1).loop(
            0, model, torch.optim.SGD(model.parameters(), lr=0.1), folder=tmp_path / "other"
        ),
    ):
        raise ZeroDivisionError("division by zero")
    (end,) = lines(tmp_path / "other", "end")
    assert (end["reason"], end["error"]) == ("failed", "ZeroDivisionError: division by zero")
    with pytest.raises(StorageError, match=r"found no config\.toml"):
        export(tmp_path / "other", tmp_path / "out")


def test_a_damaged_anchor_is_said(tmp_path: Path) -> None:
    (tmp_path / ANCHOR_FILE).write_bytes(b"none")
    with pytest.raises(CheckpointError, match="expected the anchor of a run"):
        export(tmp_path, tmp_path / "out")


def test_wandb_records_offline_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    train(Swarm(islands=1), tmp_path, 0, wandb="offline")
    assert list((tmp_path / "island-0" / "wandb").glob("offline-run-*"))
