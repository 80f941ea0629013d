"""`lowcomm recover`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lowcomm.cli.main import main
from lowcomm.config.load import load_config, to_toml
from lowcomm.exchanges.swarm.identity import MESSAGES, Identity, verify
from lowcomm.recovery.mandates import read_mandates
from lowcomm.types import PeerId

A, B, C = (Identity.generate().peer_id for _ in range(3))
HEAD = "ab" * 32


@pytest.fixture
def key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """An operator's key and its peer id."""
    path = tmp_path / "operator.key"
    assert main(["recover", "--make-key", str(path)]) == 0
    name, _, operator = capsys.readouterr().out.strip().partition("=")
    assert name == "shared.round.operator"
    return path, operator


def stuck(tmp_path: Path, *overrides: str, name: str = "run") -> Path:
    """A run folder as an island leaves it that stands still: A and B are here, C is away."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    config = load_config(None, ["shared.run_id=run", "shared.round.partition=majority", *overrides])
    (folder / "config.toml").write_text(to_toml(config))
    told = {
        "run_id": "run", "operator": config.shared.round.operator, "positions": [[0, 7, HEAD]],
        "here": sorted([A, B]), "away": [C], "names": {A: "north", B: "south", C: "east"},
    }  # fmt: skip
    (folder / "standstill.json").write_text(json.dumps(told))
    return folder


def refused(capsys: pytest.CaptureFixture[str], says: str, *arguments: object) -> int:
    code = main(["recover", *map(str, arguments)])
    error = capsys.readouterr().err
    assert error.startswith("lowcomm: error: ")
    assert error.count("\n") == 1
    assert re.search(says, error)
    return code


def test_the_operator_signs_who_decides(
    tmp_path: Path, key: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, operator = key
    folder = stuck(tmp_path, f"shared.round.operator={operator}")
    figures = tmp_path / "figures.json"
    command = ["recover", str(folder), "--members", f"north,{B}", "--key", str(path), "--json", str(figures)]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "outer step 8 of fragment 0: more than half of" in said
    assert "north" in said
    assert "without east" in said
    (given,) = read_mandates(folder)
    assert given.mandate.members == tuple(sorted([A, B]))
    assert dict(given.mandate.positions) == {0: (7, HEAD)}
    assert verify(PeerId(operator), MESSAGES, given.mandate.content, given.mandate.signature)
    assert json.loads(figures.read_text())["mandate"] == given.mandate.digest
    assert main(command) == 0  # the same decision again changes nothing
    capsys.readouterr()
    assert read_mandates(folder) == [given]

    said = "a second one could give the run two histories"
    assert refused(capsys, said, folder, "--members", "north", "--key", path) == 1
    assert main(["recover", str(folder), "--members", "north", "--key", str(path), "--replace"]) == 0
    assert sorted(given.mandate.number for given in read_mandates(folder)) == [1, 2]


def test_without_an_operator_all_decide_the_same_one(tmp_path: Path) -> None:
    folders = [stuck(tmp_path, name=name) for name in ("north", "south")]
    for folder in folders:
        assert main(["recover", str(folder)]) == 0
    (one,), (other,) = map(read_mandates, folders)
    assert one == other
    assert one.mandate.signature == b""


def test_what_is_refused(tmp_path: Path, key: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, operator = key
    folder = stuck(tmp_path, f"shared.round.operator={operator}", name="with")
    free = stuck(tmp_path, name="free")
    assert refused(capsys, "expected RUN, or --make-key FILE") == 2
    assert refused(capsys, f"--key: expected the key .* {operator}, got no --key", folder) == 2
    assert refused(capsys, "got no file .*nowhere", folder, "--key", tmp_path / "nowhere") == 2
    other = tmp_path / "other.key"
    assert main(["recover", "--make-key", str(other)]) == 0
    capsys.readouterr()
    assert refused(capsys, f"{operator}, got that of 12D3KooW", folder, "--key", other) == 2
    assert refused(capsys, "the run names no operator", free, "--key", path) == 2
    here = r"expected islands that are here \(.*\), got"
    assert refused(capsys, here + " east, which is away", free, "--members", "north,east") == 2
    assert refused(capsys, here + " west, which isn't known here", free, "--members", "west") == 2
    assert refused(capsys, "--members: expected names .* got nothing", free, "--members", " ,") == 2
    assert refused(capsys, "--replace: .*expected a mandate .* got none", free, "--replace") == 2
    assert refused(capsys, "expected the run folder of an island, got no config.toml", tmp_path) == 1
    goes_on = stuck(tmp_path, "shared.round.partition=continue", name="goes-on")
    assert refused(capsys, "partition = majority, got continue", goes_on) == 2
    (free / "standstill.json").write_text("{")
    assert refused(capsys, "standstill.json: expected what a running island writes", free) == 1
    (free / "standstill.json").unlink()
    assert refused(capsys, "got no standstill.json: nothing is to be recovered", free) == 1
    (folder / "mandates").mkdir()
    (folder / "mandates" / "0.json").write_text("[]")
    assert refused(capsys, "0.json: expected a mandate of `lowcomm recover`", folder, "--key", path) == 1


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["shared.round.operator=me"], "expected a peer id, as `lowcomm recover --make-key` prints it, got"),
        ([f"shared.round.operator={A}"], "expected nothing with shared.round.partition = continue"),
        (
            [f"shared.round.operator={A}", "shared.round.partition=majority", "exchange.kind=process_group"],
            "expected nothing with a process_group",
        ),
    ],
    ids=["no-peer-id", "continue", "process-group"],
)
def test_an_operator_that_makes_no_sense(overrides: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_config(None, overrides)
