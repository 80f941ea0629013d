"""`lowcomm ledger verify` on run folders of the real trainer: sound ones, and each way to tamper."""

import ctypes
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.cli.main import main
from lowcomm.exchanges.fields import Fields
from lowcomm.exchanges.swarm.identity import IdentityFile
from lowcomm.ledger.entry import parse_entry
from lowcomm.ledger.file import LedgerFile
from lowcomm.storage.run_folder import lock_folder
from lowcomm.types import Digest
from tests.training.islands import finished, make_config, train_islands


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


def of_another_run(found: list[str]) -> list[str]:
    entry = replace(parse_entry(Fields("entry", json.loads(found[2]))), run_id="other")
    return [*found[:2], json.dumps({**entry.to_json(), "hash": entry.hash}), *found[3:]]


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (set_field("participants", [["island-0", 1], ["island-1", 1]]), "ledger.jsonl:3: .*it was changed"),
        (set_field("state_digest", "0" * 64), "ledger.jsonl:3: .*it was changed"),
        (set_field("hash", "0" * 64), "ledger.jsonl:3: .*it was changed"),
        (set_field("outer_step", -1), "ledger.jsonl:3: entry.outer_step"),
        (set_field("run_id", "other"), "ledger.jsonl:3: .*it was changed"),
        (of_another_run, "ledger.jsonl:3: expected an entry of run 'small', got one of 'other'"),
        (lambda found: [*found[:2], *found[3:]], "ledger.jsonl:4: .*one is missing"),
        (lambda found: [*found[:2], "{nonsense", *found[3:]], "ledger.jsonl:3: "),
        (lambda found: [*found[:2], "[]", *found[3:]], "ledger.jsonl:3: "),
        (lambda found: [found[3], *found[:3], *found[4:]], "ledger.jsonl:1: .*one is missing"),
    ],
    ids=[
        "weights",
        "digest",
        "hash",
        "range",
        "run",
        "other-run",
        "removed",
        "no-json",
        "no-object",
        "reordered",
    ],
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
    assert "compare it with that of another island" in str(found["problem"])
    assert_one_error(capsys, str(found["problem"]))


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda run: write_ledger(run, change((run / "ledger.jsonl").read_bytes()))


def write_ledger(run: Path, data: bytes) -> None:
    (run / "ledger.jsonl").write_bytes(data)


def flip(data: bytes, line: int, column: int) -> bytes:
    at = data.index(b"\n", sum(len(x) + 1 for x in data.split(b"\n")[: line - 1])) - column
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def swap(run: Path) -> None:
    found = lines(run)
    write_lines(run, [*found[:2], found[4], found[3], found[2], *found[5:]])


def folder_for_file(run: Path) -> None:
    (run / "ledger.jsonl").unlink()
    (run / "ledger.jsonl").mkdir()


def move_down(run: Path) -> None:
    shutil.copytree(run.rename(run.parent / "moved"), run / "island-0")


@pytest.mark.parametrize(
    ("do", "says", "entries"),
    [
        (damage(lambda data: flip(data, 3, 5)), r"ledger\.jsonl:3: .*it was changed", 2),
        (damage(lambda data: flip(data, 3, 0)), r"ledger\.jsonl:3: expected an entry as one JSON object", 2),
        (damage(lambda data: data[:900] + data[901:]), r"ledger\.jsonl:\d: ", 1),
        (damage(lambda data: bytes(range(256)) * 20), r"ledger\.jsonl:1: .*got '\\x00\\x01", 0),
        (damage(lambda data: b"\xff\xfe" + data), r"ledger\.jsonl:1: .*it is damaged", 0),
        (damage(lambda data: b"[" * 100_000 + b"\n" + data), r"ledger\.jsonl:1: .*it is damaged", 0),
        (damage(lambda data: data.replace(b'"island-1"', b'"\\ud800"')), r"ledger\.jsonl:1: .*Unicode", 0),
        (damage(lambda data: b""), "got an empty file: there is nothing to verify", 0),
        (damage(lambda data: data[:100]), "got one half-written line: there is nothing to verify", 0),
        (swap, r"ledger\.jsonl:3: .*one is missing", 2),
        (folder_for_file, "expected the ledger of a run, got no regular file", 0),
        (lambda run: (run / "ledger.jsonl").unlink(), r"got one without a ledger\.jsonl", 0),
        (lambda run: shutil.rmtree(run), "expected the run folder of an island, got nothing", 0),
        (move_down, "expected the run folder of one island, got that of 1; name one, such as .*island-0", 0),
        (lambda run: (run / "config.toml").write_text("[shared\n"), r"config\.toml", 9),
    ],
    ids=["bit", "newline", "byte", "binary", "mark", "nested", "surrogate", "empty", "torn", "swapped",
         "folder", "none", "no-run", "parent", "config"],
)  # fmt: skip
def test_damage_is_one_clear_line(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    do: Callable[[Path], None],
    says: str,
    entries: int,
) -> None:
    do(run)
    code, found = verify(run)
    assert code == 1
    assert re.search(says, str(found["problem"]))
    assert (found["valid"], found["entries"]) == (False, entries)
    assert "head" in found
    assert_one_error(capsys, str(found["problem"]))


def assert_one_error(capsys: pytest.CaptureFixture[str], problem: str) -> None:
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"lowcomm: error: {' '.join(problem.split())}\n"


def test_what_may_not_be_read_is_named(run: Path, tmp_path: Path) -> None:
    """In one process, which has to be another one than this, for all four."""
    closed = ["ledger.jsonl", ".", "config.toml", "checkpoints"]
    runs = [tmp_path / f"run-{number}" for number in range(len(closed))]
    for copy, name in zip(runs, closed, strict=True):
        shutil.copytree(run, copy)
        (copy / name).chmod(0)
    verifies = (
        "import sys; from lowcomm.cli.main import main; runs = sys.argv[1:]; "
        "sys.exit([main(['ledger', 'verify', run, '--json', run + '.json']) for run in runs] != [1] * 4)"
    )
    command = [sys.executable, "-c", verifies, *map(str, runs)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=drop_powers, check=False)
    for copy, name in zip(runs, closed, strict=True):
        (copy / name).chmod(0o755)
    assert done.returncode == 0
    for copy, line in zip(runs, done.stderr.splitlines(), strict=True):
        assert re.fullmatch(rf"lowcomm: error: {re.escape(str(copy))}.*Permission denied.*", line)
        assert json.loads(Path(f"{copy}.json").read_text())["valid"] is False


def drop_powers() -> None:
    """Give up root's right to read everything, where the tests run as root; others have none."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP: gone with the exec


@pytest.mark.parametrize(
    ("target", "code", "says"),
    [
        ("none/figures.json", 2, "expected a file in a folder that exists"),
        (".", 2, "expected a file, got a folder"),
        ("/dev/full", 1, "/dev/full: can't be written: No space left on device"),
    ],
)
def test_figures_that_can_not_be_written_are_an_error(
    run: Path, capsys: pytest.CaptureFixture[str], target: str, code: int, says: str
) -> None:
    assert main(["ledger", "verify", str(run), "--json", str(run.parent / target)]) == code
    assert says in capsys.readouterr().err


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


def test_a_half_written_last_line_is_no_entry(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = len(lines(run))
    with (run / "ledger.jsonl").open("a") as file:
        file.write(lines(run)[-1][:50])
    code, found = verify(run)
    assert (code, found["entries"], found["torn_bytes"]) == (0, whole, 50)
    assert "The last line is half written (50 bytes) and was left out" in capsys.readouterr().err
    LedgerFile(run / "ledger.jsonl").note_snapshot(0, 99, Digest("0" * 64), Digest("0" * 64), None)
    assert len(lines(run)) == whole + 1  # the island that goes on has cut it off
    assert verify(run)[1]["torn_bytes"] == 0


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
    assert "got nothing of that name" in capsys.readouterr().err


def compact(run: Path, *arguments: str) -> int:
    return main(["ledger", "compact", str(run), *arguments])


def with_key(run: Path) -> Path:
    """Islands of a loopback exchange have none."""
    file = IdentityFile(run / "identity.key")
    file.close()
    return run


def test_a_compacted_ledger_is_verified_like_the_whole_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = verify(run)[1]
    with_key(run)
    shutil.rmtree(run / "updates")
    figures = run.parent / "compacted.json"
    capsys.readouterr()
    assert compact(run, "--keep", "1", "--json", str(figures)) == 0
    done = json.loads(figures.read_text())
    said = capsys.readouterr().err
    assert f"{done['dropped']} entries are one signed line now, {done['kept']} stay as they are" in said
    assert done["dropped"] > 0
    code, found = verify(run)
    assert code == 0
    same = ("head", "heads", "credited", "genesis", "states_in_checkpoints")
    assert [found[name] for name in same] == [whole[name] for name in same]
    assert (found["compacted"], found["entries"]) == (done["dropped"], done["kept"])
    assert f"{done['dropped']} before are compacted, signed by 12D3KooW" in capsys.readouterr().err
    assert compact(run, "--keep", "1") == 0
    assert "nothing to compact" in capsys.readouterr().err


def test_what_can_not_be_compacted_stays_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "ledger.jsonl").read_bytes()
    assert compact(run) == 1
    assert "identity.key: expected this island's key to sign with, got nothing" in capsys.readouterr().err
    with_key(run)
    lock = lock_folder(run)
    assert compact(run) == 1
    lock.close()
    said = capsys.readouterr().err
    assert f"{run}: another live process trains in this folder" in said
    assert said.endswith("its ledger is compacted while it doesn't run\n")
    write_lines(run, [*lines(run)[:2], *lines(run)[3:]])
    assert compact(run) == 1
    assert re.search(r"error: not compacted: .*ledger\.jsonl:4: .*one is missing", capsys.readouterr().err)
    (run / "ledger.jsonl").write_bytes(before)
    assert compact(run, "--keep", "1") == 0  # which updates of every step forbid
    assert (run / "ledger.jsonl").read_bytes() == before


def test_an_island_goes_on_and_hands_over_with_a_compacted_ledger(trained: Path, tmp_path: Path) -> None:
    """Both islands resume, one of them compacted, and a newcomer takes the run from them."""
    folder = Path(shutil.copytree(trained.parent, tmp_path / "run"))
    first = with_key(folder / "island-0")
    shutil.rmtree(first / "updates")
    assert compact(first, "--keep", "1") == 0
    config = make_config(
        folder, "train.keep_updates=100", "shared.schedule.num_fragments=2", "train.steps=60"
    )
    summaries = finished(train_islands(config, folder))
    assert summaries[0].head == summaries[1].head
    code, found = verify(first)
    assert (code, found["valid"], found["head"]) == (0, True, summaries[0].head)
    assert found["compacted"]
