"""The examples and the Python of the front page run as their text says: a second island comes later."""

from __future__ import annotations

import re
import subprocess
import time

import pytest

from tests.docs.pages import ROOT, blocks
from tests.docs.processes import first_line, output, python

PLAIN = ROOT / "docs" / "examples" / "plain_loop.py"
TRAINER = ROOT / "docs" / "examples" / "trainer.py"
HF = ROOT / "docs" / "examples" / "hf_model.py"
LATER_S = 10.0

WHAT_A_READER_HAS = """
import os
import torch
from torch import nn

class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))

    def forward(self, x):
        return (self.layers(x) - x).square().mean()

torch.set_num_threads(1)
model = Autoencoder()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
loader = torch.randn(200, 8, 6, generator=torch.Generator().manual_seed(os.getpid()))
"""
WHAT_THE_TEST_ASKS = """
print("anchor:", outer.digest)
"""


def pair(script, folder):
    """What two islands of a script print after the address, and the founder's errors."""
    logs = [folder / "first.txt", folder / "second.txt"]
    with python(script, log=logs[0]) as first:
        string = first_line(first, logs[0])
        with pytest.raises(subprocess.TimeoutExpired):  # it is still there for the second
            first.wait(LATER_S)
        with python(script, string, log=logs[1]) as second:
            first_line(second, logs[1])  # an address of its own
            outs = [output(first, logs[0]), output(second, logs[1])]
    run = string.partition("@")[0]
    waited = f"waiting for 1 more island of run {run!r} (1 of 2 here); others join with {string}"
    told = logs[0].read_text()
    assert waited in told
    assert re.search(rf"2 of 2 islands of run {run!r} are here, .*\.\.\.\w{{6}}\)? came\n", told)
    return outs


def anchors(outs):
    """The digests that the islands end with."""
    return {re.findall(r"^anchor: .*?(\w{64})$", out, re.MULTILINE)[0] for out in outs}


def test_the_plain_loop_has_fewer_than_ten_added_lines():
    marked = [line for line in PLAIN.read_text().splitlines() if line.endswith("# lowcomm")]
    assert 0 < len(marked) < 10


@pytest.mark.processes
def test_two_processes_train_one_model_with_the_plain_loop(tmp_path):
    outs = pair(PLAIN, tmp_path)
    losses = [[float(loss) for loss in re.findall(r"loss ([\d.]+)", out)] for out in outs]
    assert [len(seen) for seen in losses] == [20, 20]
    assert all(seen[-1] < 0.5 * seen[0] for seen in losses)
    assert len(anchors(outs)) == 1


@pytest.mark.processes
def test_two_processes_train_one_hugging_face_model(tmp_path):
    outs = pair(HF, tmp_path)
    losses = [[float(loss) for loss in re.findall(r"loss ([\d.]+)", out)] for out in outs]
    assert all(len(seen) >= 12 for seen in losses)  # six rounds of two fragments, and the anchor's
    assert all(seen[-1] < seen[0] - 0.5 for seen in losses)
    assert len(anchors(outs)) == 1


@pytest.mark.processes
def test_two_processes_train_one_model_with_the_trainer(tmp_path):
    folders, logs = [tmp_path / "a", tmp_path / "b"], [tmp_path / "a.txt", tmp_path / "b.txt"]
    with python(TRAINER, folders[0], log=logs[0]) as first:
        address = folders[0] / "address"
        while not address.exists():
            assert first.poll() is None, logs[0].read_text()
            time.sleep(0.1)
        with python(TRAINER, folders[1], address.read_text().strip(), log=logs[1]) as second:
            outs = [output(first, logs[0]), output(second, logs[1])]
    for out in outs:
        [(before, after)] = re.findall(r"^2 islands: loss ([\d.]+) -> ([\d.]+)$", out, re.M)
        assert float(after) < 0.5 * float(before)
    assert len(anchors(outs)) == 1


@pytest.mark.processes
def test_the_python_of_the_front_page_runs_as_it_stands(tmp_path):
    [snippet] = [content for language, content in blocks(ROOT / "README.md") if language == "python"]
    script = tmp_path / "front_page.py"
    script.write_text(WHAT_A_READER_HAS + snippet + WHAT_THE_TEST_ASKS)
    outs = pair(script, tmp_path)
    for out in outs:
        reports = re.findall(
            r"^RoundReport\(outer_step=(\d+), .*committed=True.*participants=\((.*?)\)", out, re.M
        )
        assert [step for step, _ in reports] == ["1", "2"]
        assert all(islands.count("12D3") == 2 for _, islands in reports)  # nobody trained alone
    assert len(anchors(outs)) == 1
