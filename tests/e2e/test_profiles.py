"""Profiles on real processes: `cpu` as it is, and sharded engines of a single process."""

import json

import pytest

from lowcomm.config.load import load_config
from tests.e2e.runs import DEADLINE_S, ROOT, lines

RECIPE = ROOT / "recipes" / "quickstart.toml"


def finish(process) -> None:
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr


@pytest.mark.processes
def test_the_cpu_profile_trains_two_islands(tmp_path, start) -> None:
    out = tmp_path / "run"
    finish(
        start("launch", RECIPE, "--islands", 2, "--out", out, "--profile", "cpu", "--set", "train.steps=20")
    )
    folders = [out / f"island-{index}" for index in range(2)]
    for folder in folders:
        train = load_config(folder / "config.toml").train
        assert (train.device, train.precision, train.steps) == ("cpu", "fp32", 20)
    assert len({json.loads((folder / "summary.json").read_text())["digest"] for folder in folders}) == 1


@pytest.mark.processes
@pytest.mark.parametrize("engine", ["fsdp2", "deepspeed"])
def test_one_process_shards_over_itself_without_torchrun(tmp_path, start, engine) -> None:
    """As one consumer GPU does that leaves its optimizer on the host."""
    profile = tmp_path / "one.toml"
    offload = "none" if engine == "fsdp2" else "all"  # FSDP2 offloads from GPUs only
    profile.write_text(f'[train]\ndevice = "cpu"\n[island]\nengine = "{engine}"\noffload = "{offload}"\n')
    out = tmp_path / "run"
    finish(
        start(
            "train", RECIPE, "--out", out, "--profile", profile, "--set", "train.steps=20",
            "--set", "shared.inner.name=adamw",
        )
    )  # fmt: skip
    losses = [line["loss"] for line in lines(out / "metrics.jsonl") if line["kind"] == "train"]
    assert losses[-1] < losses[0]
