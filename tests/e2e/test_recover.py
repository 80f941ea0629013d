"""Two of three islands are lost for good with their folders; `lowcomm recover` lets the third go on."""

import json
import os
import shutil
import signal

import pytest

from lowcomm.cli.main import main
from lowcomm.launching.process_table import alive, key_of
from tests.e2e.runs import DEADLINE_S
from tests.e2e.test_deaths import LONG, RECIPE, one_history, rounds, wait_for

SETTINGS = (
    "shared.round.partition=majority", "shared.round.deadline_s=5", "exchange.lease_s=2",
    "exchange.heartbeat_s=0.5",
)  # fmt: skip
SAME = ("problem", "head", "genesis", "credited")


@pytest.mark.processes
def test_one_of_three_goes_on_with_a_newcomer(tmp_path, start, capsys) -> None:
    key, out, newcomer = tmp_path / "operator.key", tmp_path / "run", tmp_path / "newcomer"
    assert main(["recover", "--make-key", str(key)]) == 0
    operator = capsys.readouterr().out.strip()
    settings = [part for text in (*SETTINGS, operator) for part in ("--set", text)]
    process = start("launch", RECIPE, "--islands", 3, "--out", out, *LONG, *settings)
    first, *lost = (out / f"island-{index}" for index in range(3))
    wait_for(lambda: all(len(rounds(f)) >= 2 for f in (first, *lost)), "two rounds of three islands")
    killed = [key_of(int((folder / "pid").read_text())) for folder in lost]
    for island in killed:
        os.kill(island.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, killed)), "they are gone")
    for folder in lost:
        shutil.rmtree(folder)
    address = (first / "address").read_text().strip()
    joined = start("train", RECIPE, "--join", address, "--out", newcomer, *LONG, *settings)
    wait_for(lambda: len(standing(first).get("here", [])) == 2, "an island that stands, with a newcomer")
    before = rounds(first)[-1]["outer_step"]
    assert len(standing(first)["away"]) == 2
    assert main(["recover", str(first), "--key", str(key)]) == 0
    assert "tells the others" in capsys.readouterr().err

    for folder in (first, newcomer):
        wait_for(
            lambda folder=folder: [
                r for r in rounds(folder) if r["outer_step"] > before + 1 and len(r["participants"]) == 2
            ],
            "two rounds of both",
        )
    one_history(first, newcomer)
    for running in (joined, process):
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=DEADLINE_S)
    for folder in (first, newcomer):
        found = verified(folder)
        assert (found["problem"], found["unsigned"], found["unproven"]) == ("", 0, 0)
        assert found["proven"] == found["entries"]
        assert found["mandates"] == 1
    whole = verified(first)
    assert main(["ledger", "compact", str(first), "--keep", "1"]) == 0
    compacted = verified(first)
    assert compacted["compacted"] > 0
    assert [compacted[name] for name in SAME] == [whole[name] for name in SAME]


def verified(folder) -> dict:
    figures = folder / "figures.json"
    main(["ledger", "verify", str(folder), "--json", str(figures)])
    return json.loads(figures.read_text())


def standing(folder) -> dict:
    try:
        return json.loads((folder / "standstill.json").read_text())
    except FileNotFoundError:
        return {}
