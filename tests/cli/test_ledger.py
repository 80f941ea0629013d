"""`lowcomm ledger verify` on run folders of the real trainer: sound ones, and each way to tamper."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.cli.main import main
from lowcomm.membership.fields import Fields
from lowcomm.membership.ledger import parse_entry
from tests.train.islands import finished, make_config, train_islands


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An island's run folder with two fragments, updates and checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    config = make_config(folder, "train.keep_updates=100", "shared.schedule.num_fragments=2")
    summaries = finished(train_islands(config, folder))
    (folder / "island-0" / "expected_head").write_text(summaries[0].head)
    return folder / "island-0"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def verify(run: Path) -> tuple[int, dict[str, object]]:
    figures = run.parent / "figures.json"
    code = main(["ledger", "verify", str(run), "--json", str(figures)])
    return code, json.loads(figures.read_text())


def lines(run: Path) -> list[str]:
    return (run / "ledger.jsonl").read_text().splitlines()


def write_lines(run: Path, changed: list[str]) -> None:
    (run / "ledger.jsonl").write_text("".join(line + "\n" for line in changed))


def test_a_sound_ledger_is_recomputed_from_the_genesis(run: Path) -> None:
    code, found = verify(run)
    assert code == 0
    assert found["valid"] is True
    assert found["problem"] == ""
    assert found["entries"] == found["states_replayed"] == len(lines(run)) > 4
    assert found["head"] == (run / "expected_head").read_text()
    assert found["genesis"] == "recomputed"
    assert found["states_in_checkpoints"] > 0


def set_field(name: str, value: object) -> Callable[[list[str]], list[str]]:
    def change(found: list[str]) -> list[str]:
        return [*found[:2], json.dumps({**json.loads(found[2]), name: value}), *found[3:]]

    return change


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (set_field("participants", [["island-0", 1]]), "line 3: .*it was changed"),
        (set_field("state_digest", "0" * 64), "line 3: .*it was changed"),
        (set_field("hash", "0" * 64), "line 3: .*it was changed"),
        (set_field("outer_step", -1), "line 3: entry.outer_step"),
        (set_field("run_id", "other"), "line 3: "),
        (lambda found: [*found[:2], *found[3:]], "line 4: .*one is missing"),
        (lambda found: [*found[:2], "{nonsense", *found[3:]], "line 3: "),
        (lambda found: [*found[:2], "[]", *found[3:]], "line 3: "),
        (lambda found: [found[3], *found[:3], *found[4:]], "line 1: .*one is missing"),
    ],
    ids=["weights", "digest", "hash", "range", "run", "removed", "no-json", "no-object", "reordered"],
)
def test_the_first_bad_entry_is_named(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    tamper: Callable[[list[str]], list[str]],
    says: str,
) -> None:
    write_lines(run, tamper(lines(run)))
    code, found = verify(run)
    assert code == 1
    assert found["valid"] is False
    assert re.search(says, str(found["problem"]))
    assert str(found["problem"])[:40] in capsys.readouterr().err


def test_tokens_that_do_not_add_up_are_named(run: Path) -> None:
    *before, last = lines(run)
    entry = parse_entry(Fields("entry", json.loads(last)))
    more = replace(entry, total_tokens=entry.total_tokens + 1)
    write_lines(run, [*before, json.dumps({**more.to_json(), "hash": more.hash})])
    code, found = verify(run)
    assert code == 1
    assert f"names {more.total_tokens} tokens in all, expected {entry.total_tokens}" in str(found["problem"])


def test_a_changed_update_is_named(run: Path) -> None:
    file = run / "updates" / "0-000000002.update"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    code, found = verify(run)
    assert code == 1
    assert "0-000000002.update" in str(found["problem"])


def test_a_chain_that_ends_early_does_not_fit_its_checkpoints(run: Path) -> None:
    write_lines(run, lines(run)[:3])
    code, found = verify(run)
    assert code == 1
    assert "which the ledger does not have" in str(found["problem"])


def test_without_updates_and_checkpoints_the_chain_alone_is_verified(run: Path) -> None:
    shutil.rmtree(run / "updates")
    shutil.rmtree(run / "checkpoints")
    code, found = verify(run)
    assert (code, found["states_replayed"], found["states_in_checkpoints"]) == (0, 0, 0)
    (run / "config.toml").unlink()
    code, found = verify(run)
    assert (code, found["genesis"]) == (0, "unknown")
    assert found["head"] == (run / "expected_head").read_text()


def test_a_half_written_last_line_is_no_entry(run: Path) -> None:
    whole = len(lines(run))
    with (run / "ledger.jsonl").open("a") as file:
        file.write(lines(run)[-1][:50])
    code, found = verify(run)
    assert (code, found["entries"]) == (0, whole)


def test_replayed_entries_after_a_restart_are_counted(run: Path) -> None:
    write_lines(run, [*lines(run), lines(run)[-1]])
    code, found = verify(run)
    assert (code, found["rewound"]) == (0, 1)


def test_a_snapshot_is_named_and_bridges_a_gap(run: Path) -> None:
    found = lines(run)
    missing = json.loads(found[2])
    snapshot = {
        "snapshot": True, "fragment": missing["fragment"], "outer_step": missing["outer_step"],
        "head": missing["hash"], "state_digest": missing["state_digest"],
    }  # fmt: skip
    write_lines(run, [*found[:2], json.dumps(snapshot), *found[3:]])
    code, result = verify(run)
    assert (code, result["snapshots"]) == (0, 1)


def test_a_folder_without_a_ledger_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "verify", str(tmp_path)]) == 1
    assert "ledger" in capsys.readouterr().err
    assert main(["ledger", "verify", str(tmp_path / "none")]) == 1
    assert "found no folder" in capsys.readouterr().err
