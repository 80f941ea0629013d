"""The examples run as they stand in the documentation."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT
from tests.docs.processes import first_line, output, python

PLAIN = ROOT / "docs" / "examples" / "plain_loop.py"
HF = ROOT / "docs" / "examples" / "hf_model.py"


def test_the_plain_loop_has_fewer_than_ten_added_lines():
    marked = [line for line in PLAIN.read_text().splitlines() if line.endswith("# lowcomm")]
    assert 0 < len(marked) < 10


@pytest.mark.processes
def test_two_processes_train_one_model_with_the_plain_loop(tmp_path):
    logs = [tmp_path / "first.txt", tmp_path / "second.txt"]
    with python(PLAIN, log=logs[0]) as first:
        string = first_line(first, logs[0]).removeprefix("join with: ")
        with python(PLAIN, string, log=logs[1]) as second:
            outs = [output(first, logs[0]), output(second, logs[1])]
    losses = [[float(loss) for loss in re.findall(r"loss ([\d.]+)", out)] for out in outs]
    assert all(len(seen) >= 15 for seen in losses)
    assert all(seen[-1] < 0.5 * seen[0] for seen in losses)
    assert len({re.findall(r"^anchor: (\w{64})$", out, re.MULTILINE)[0] for out in outs}) == 1


@pytest.mark.processes
def test_a_hugging_face_model_learns(tmp_path):
    log = tmp_path / "log.txt"
    with python(HF, log=log) as island:
        losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output(island, log))]
    assert losses[-1] < losses[0] - 0.5
