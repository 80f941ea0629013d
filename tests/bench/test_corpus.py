"""A corpus that is built, and one whose build is killed, in a small form."""

import json
from pathlib import Path

import pytest

from lowcomm.cli.main import main


@pytest.mark.processes
def test_a_killed_build_ends_like_an_undisturbed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--text-mib", "10", "--vocabulary", "2000", "--repeats", "1", "--kills", "1", "--processes", "2"]
    assert main(["bench", "corpus", *words, "--json", str(tmp_path / "f.json")]) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert (found["kills"], found["same_manifest"]) == (1, True)
    (build,), (mapped,) = found["build"], found["map"]
    assert (
        build["documents"] + build["holdout_documents"] + sum(build["dropped"].values())
        == mapped["documents"]
    )
    assert 0 < found["map_s"] < found["load_and_map_s"]
    assert "killed 1 times: manifest equal" in capsys.readouterr().out
