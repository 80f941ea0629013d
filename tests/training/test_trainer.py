"""The trainer: what a run learns, writes, survives and refuses."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import lowcomm.training.trainer
from lowcomm.errors import LossError, StorageError
from lowcomm.metrics.summary import Summary
from lowcomm.models.gpt import GPT
from lowcomm.training.build import build_model
from tests.training.islands import cut_back, finished, lines, losses, make_config, train_islands


def test_islands_learn_and_agree(tmp_path):
    config = make_config(tmp_path, "train.steps=60", "train.eval_every=4", "shared.inner.lr=0.01")
    summaries = finished(train_islands(config, tmp_path))

    assert len({summary.digest for summary in summaries}) == 1
    assert len({summary.head for summary in summaries}) == 1
    assert len({summary.eval_loss for summary in summaries}) == 1
    for number, summary in enumerate(summaries):
        curve = losses(tmp_path / f"island-{number}")
        assert list(curve) == list(range(5, 61, 5))
        assert curve[60] < curve[5] - 1.0
        assert (summary.islands, summary.inner_steps, summary.outer_steps) == (2, 60, 12)
        assert summary.tokens == summary.tokens_credited == 60 * 4 * 16
        assert (summary.rounds_committed, summary.rounds_failed, summary.tokens_dropped) == (12, 0, 0)
        assert summary.data_parallel_bytes == summary.parameters * 4 * 60
        assert 0 < summary.wan_bytes_sent < summary.data_parallel_bytes


def test_the_run_folder_tells_the_run(tmp_path):
    config = make_config(tmp_path, "train.eval_every=2")
    finished(train_islands(config, tmp_path))
    for number in range(2):
        folder = tmp_path / f"island-{number}"
        (start,) = lines(folder, "start")
        assert (start["run_id"], start["peer"], start["how"]) == ("small", f"island-{number}", start["how"])
        assert start["config"]["shared"]["schedule"]["inner_steps"] == 5
        rounds = lines(folder, "round")
        assert [line["outer_step"] for line in rounds] == [1, 2, 3, 4]
        assert all(line["participants"] == ["island-0", "island-1"] for line in rounds)
        assert [line["outer_step"] for line in lines(folder, "eval")] == [2, 4]
        (end,) = lines(folder, "end")
        assert end["reason"] == "finished"
        assert end["summary"] == json.loads((folder / "summary.json").read_text())
        assert set(end["summary"]) == {field.name for field in fields(Summary)}
        assert set(end["summary"]["eval_metrics"]) == {"bits_per_byte"}
        assert not (folder / "pid").exists()


@pytest.mark.parametrize(
    "setting",
    [
        (),
        ("shared.schedule.num_fragments=3",),
        ("shared.schedule.num_fragments=3", "shared.schedule.delay=4", "shared.schedule.eager=true"),
    ],
    ids=["one-fragment", "three-fragments", "eager"],
)
def test_a_restart_of_all_goes_on_bit_for_bit(tmp_path, setting):
    config = make_config(tmp_path, *setting)
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    expected = finished(train_islands(config, straight))
    cut_back(straight, cut)

    resumed = finished(train_islands(config, cut))

    assert [summary.digest for summary in resumed] == [summary.digest for summary in expected]
    assert [summary.head for summary in resumed] == [summary.head for summary in expected]
    assert [summary.eval_loss for summary in resumed] == [summary.eval_loss for summary in expected]
    assert [summary.tokens for summary in resumed] == [summary.tokens for summary in expected]
    for number in range(2):
        (start,) = lines(cut / f"island-{number}", "start")
        assert (start["inner_step"], start["resumed_from"]) == (10, 10)
        assert losses(cut / f"island-{number}") == losses(straight / f"island-{number}", after=10)


def test_a_restart_keeps_the_counts(tmp_path):
    config = make_config(tmp_path)
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    expected = finished(train_islands(config, straight))
    shutil.copytree(straight, cut)
    for number in range(2):
        shutil.rmtree(cut / f"island-{number}" / "checkpoints" / "step-000000020")
    resumed = finished(train_islands(config, cut))
    for before, after in zip(expected, resumed, strict=True):
        assert after.rounds_committed == before.rounds_committed
        assert after.tokens_credited == before.tokens_credited
        assert after.wan_bytes_sent > 0.9 * before.wan_bytes_sent


def test_a_finished_run_started_again_ends_at_once(tmp_path):
    config = make_config(tmp_path)
    first = finished(train_islands(config, tmp_path))
    again = finished(train_islands(config, tmp_path))
    assert [summary.digest for summary in again] == [summary.digest for summary in first]
    assert [summary.eval_loss for summary in again] == [summary.eval_loss for summary in first]


def test_accumulated_gradients_are_those_of_the_larger_batch(tmp_path):
    large = make_config(tmp_path)
    small = replace(large, train=replace(large.train, batch_size=2, grad_accumulation=2))
    finished(train_islands(large, tmp_path / "large", islands=1))
    finished(train_islands(small, tmp_path / "small", islands=1))
    expected = losses(tmp_path / "large" / "island-0")
    assert losses(tmp_path / "small" / "island-0") == pytest.approx(expected, rel=1e-3)


class Failing(GPT):
    """A GPT whose loss is NaN from its 15th batch on."""

    calls = 0

    def forward(self, ids, targets=None):
        self.calls += self.training
        out = super().forward(ids, targets)
        return out * float("nan") if self.calls >= 15 and self.training else out


def test_a_loss_that_is_not_finite_stops_and_harms_no_checkpoint(tmp_path, monkeypatch):
    config = make_config(tmp_path)

    def failing(config, task):
        model = build_model(config, task)
        model.__class__ = Failing
        return model

    monkeypatch.setattr(lowcomm.training.trainer, "build_model", failing)
    results = train_islands(config, tmp_path)
    for number, error in enumerate(results):
        assert isinstance(error, LossError)
        assert "not finite" in str(error)
        assert "learning rate" in str(error) or "shared.inner.lr" in str(error)
        folder = tmp_path / f"island-{number}"
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000010"]
        assert lines(folder, "end")[0]["reason"] == "failed"
        assert not (folder / "summary.json").exists()

    monkeypatch.undo()
    assert all(summary.inner_steps == 20 for summary in finished(train_islands(config, tmp_path)))


def test_another_runs_folder_is_left_as_it_is(tmp_path):
    config = make_config(tmp_path)
    finished(train_islands(config, tmp_path / "runs", islands=1))
    folder = tmp_path / "runs" / "island-0"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = make_config(tmp_path, 'shared.run_id="other"')
    (error,) = train_islands(other, tmp_path / "runs", islands=1)
    assert isinstance(error, StorageError)
    assert "belongs to run 'small', not to 'other'" in str(error)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_training_outlives_checkpoints_that_cannot_be_written(tmp_path, caplog):
    config = make_config(tmp_path)
    island = tmp_path / "island-0"
    finished(train_islands(config, tmp_path, islands=1))
    shutil.rmtree(island / "checkpoints")
    (island / "checkpoints").write_text("a file stands where the folder should be")
    (summary,) = finished(train_islands(config, tmp_path, islands=1))
    assert summary.inner_steps == 20
    failures = [record.message for record in caplog.records if "no checkpoint" in record.message]
    assert [int(message.split("/step-")[1].split(":")[0]) for message in failures] == [10, 20]


def test_the_callers_random_state_decides_nothing(tmp_path):
    config = make_config(tmp_path)
    first = finished(train_islands(config, tmp_path / "one", islands=1))
    torch.manual_seed(12345)
    second = finished(train_islands(config, tmp_path / "two", islands=1))
    assert first[0].digest == second[0].digest


def test_no_two_islands_draw_the_same_text(tmp_path):
    config = make_config(tmp_path)
    finished(train_islands(config, tmp_path))
    shards = [lines(tmp_path / f"island-{number}", "start")[0]["shard"] for number in range(2)]
    assert shards == [0, 1]
    assert losses(Path(tmp_path / "island-0")) != losses(Path(tmp_path / "island-1"))
