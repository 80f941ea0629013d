"""Checkpoints that are written beside training hold what there was when they were asked for."""

import threading
from pathlib import Path

import pytest
import torch

import lowcomm.storage.saving
from lowcomm.errors import StorageError
from lowcomm.storage.checkpoint import Checkpoints
from lowcomm.storage.saving import Saver


class Held(Checkpoints):
    """Writes when it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, keep=3)
        self.may, self.ended, self.by = threading.Event(), threading.Event(), list[threading.Thread]()

    def save(self, step, parts) -> None:
        self.by.append(threading.current_thread())
        assert self.may.wait(30.0)
        try:
            super().save(step, parts)
        finally:
            self.ended.set()


def parts() -> dict[str, object]:
    whole = torch.arange(1_000, dtype=torch.float32)
    return {
        "island": {"model": {"weight": torch.ones(3, 4)}, "optimizers": [{"betas": (0.9, 0.95), "step": 3}]},
        "fragment-0": lambda: {"anchor": whole, "tensors": {"a": whole[:400].view(20, 20), "b": whole[400:]}},
    }


def test_what_changes_meanwhile_is_not_in_it(tmp_path: Path) -> None:
    checkpoints, given = Held(tmp_path), parts()
    saver = Saver(checkpoints)
    saver.save(5, given)
    given["island"]["model"]["weight"].zero_()
    given["island"]["optimizers"].clear()
    assert checkpoints.steps() == []
    checkpoints.may.set()
    saver.wait()
    found = checkpoints.load(5)
    assert torch.equal(found["island"]["model"]["weight"], torch.ones(3, 4))
    assert found["island"]["optimizers"] == [{"betas": (0.9, 0.95), "step": 3}]
    assert checkpoints.by != [threading.current_thread()]
    saver.close()


def test_tensors_that_share_memory_are_copied_and_written_once(tmp_path: Path) -> None:
    for folder in ("beside", "plain"):
        checkpoints = Checkpoints(tmp_path / folder, keep=2)
        saver = Saver(checkpoints)
        (saver if folder == "beside" else checkpoints).save(5, parts())
        saver.close()
    sizes = [(tmp_path / f / "step-000000005" / "fragment-0.pt").stat().st_size for f in ("beside", "plain")]
    assert sizes[0] == sizes[1] < 4_000 + 2_500
    found = Checkpoints(tmp_path / "beside", keep=2).load(5)["fragment-0"]
    assert torch.equal(found["tensors"]["b"], found["anchor"][400:])


def test_the_next_one_waits_for_the_last(tmp_path: Path) -> None:
    checkpoints = Held(tmp_path)
    saver = Saver(checkpoints)
    saver.save(5, parts())
    threading.Timer(0.2, checkpoints.may.set).start()
    saver.save(10, parts())
    assert checkpoints.steps()[0] == 5
    saver.wait()
    assert checkpoints.steps() == [5, 10]
    saver.close()


def test_what_could_not_be_written_is_said_and_the_next_one_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checkpoints = Held(tmp_path / "file")
    checkpoints.may.set()
    saver = Saver(checkpoints)
    saver.save(5, parts())
    with pytest.raises(StorageError, match="the checkpoint could not be written"):
        saver.wait()
    checkpoints.ended.clear()
    saver.save(6, parts())
    assert checkpoints.ended.wait(30.0)
    (tmp_path / "file").unlink()
    with pytest.raises(StorageError, match="step-000000006"):
        saver.save(7, parts())
    saver.wait()
    assert checkpoints.steps() == [7]
    saver.close()


def test_without_room_for_a_copy_training_waits_and_it_is_said_once(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(lowcomm.storage.saving, "available_bytes", lambda: 100)
    checkpoints = Held(tmp_path)
    checkpoints.may.set()
    saver = Saver(checkpoints)
    saver.save(5, parts())
    saver.save(10, parts())
    assert checkpoints.steps() == [5, 10]
    assert checkpoints.by == [threading.current_thread()] * 2
    [record] = [r for r in caplog.records if "training waits while checkpoints are written" in r.message]
    assert record.message.startswith("a copy of part fragment-0 of a checkpoint takes")
    saver.close()
