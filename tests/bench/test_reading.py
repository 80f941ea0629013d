"""The bench of readers, in a small form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowcomm.cli.main import main


@pytest.mark.processes
def test_the_command_writes_figures_of_each_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "reading.json"
    sizes = ["--gb", "0.04,0.08", "--compared-gb", "0.012", "--mbit-s", "400", "--batches", "30"]
    sizes += ["--trained-tokens", "200000"]
    assert main(["bench", "reading", *sizes, "--json", str(log)]) == 0
    written = json.loads(log.read_text(encoding="utf-8"))["reading"]
    lines = {line["what"]: line for line in written["readers"]}
    trained = {"training", "training over HTTP"}
    names = {"lowcomm", "numpy", "HTTP", "0.04 GB", "0.08 GB", *trained}
    assert names <= lines.keys()
    assert lines.keys() - names == {"datasets", "mosaicml-streaming"} - set(written["missing"])
    assert all(line["tokens_per_s"] > 0 and line["first_batch_s"] > 0 for line in lines.values())
    assert 0 < lines["HTTP"]["link_share"] <= 1.001
    assert all(line["memory_mb"] < 300 for what, line in lines.items() if what not in trained)
    assert all(0 <= lines[what]["waited_share"] < 1 for what in trained)
    assert "share of link" in capsys.readouterr().out
