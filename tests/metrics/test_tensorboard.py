"""What TensorBoard finds in a run folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lowcomm.errors import ConfigError
from lowcomm.metrics.tensorboard_sink import FOLDER, TensorBoardSink
from tests.metrics.test_sinks import ROUND, TRAIN


def session(folder: Path, start: int, steps: list[int], loss: float) -> None:
    sink = TensorBoardSink(folder, 'out = "run"')
    sink.log({"kind": "start", "inner_step": start})
    for step in steps:
        sink.log({**TRAIN, "inner_step": step, "loss": loss})
    sink.log({**ROUND, "inner_step": steps[-1]})
    sink.log({"kind": "eval", "inner_step": steps[-1], "eval_loss": 2.5, "tokens": 100})
    sink.log({"kind": "end", "reason": "finished"})
    sink.close()


def charts(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / FOLDER)).Reload()


def test_what_wandb_charts_by_inner_step(tmp_path: Path) -> None:
    session(tmp_path, 0, [5, 10], 3.25)
    found = charts(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("island/loss")] == [(5, 3.25), (10, 3.25)]
    assert [event.value for event in found.Scalars("swarm/participants")] == [2.0]
    assert [event.value for event in found.Scalars("swarm/committed")] == [1.0]
    assert [event.value for event in found.Scalars("swarm/eval_loss")] == [2.5]
    assert "swarm/digest" not in found.Tags()["scalars"]
    assert b'out = "run"' in found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]


def test_steps_that_are_trained_again_are_there_once(tmp_path: Path) -> None:
    session(tmp_path, 0, [5, 10, 15], 3.0)
    session(tmp_path, 10, [15, 20], 2.0)
    losses = [(event.step, event.value) for event in charts(tmp_path).Scalars("island/loss")]
    assert losses == [(5, 3.0), (10, 3.0), (15, 2.0), (20, 2.0)]


def test_an_installation_without_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"metrics\.tensorboard: .*pip install 'lowcomm\[tensorboard\]'"):
        TensorBoardSink(tmp_path, "")
    assert not list(tmp_path.iterdir())
