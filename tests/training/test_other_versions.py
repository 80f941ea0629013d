"""Checkpoints and run folders of other versions: read, or refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from lowcomm.cli.main import main
from lowcomm.errors import CheckpointError, StorageError
from lowcomm.storage.checkpoint import FORMAT
from tests.training.islands import finished, make_config, train_islands

STEP = "step-000000010"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run of one island, ten steps long."""
    folder = tmp_path_factory.mktemp("saved")
    finished(train_islands(make_config(folder, "train.steps=10"), folder, islands=1))
    return folder


@pytest.fixture
def run(saved, tmp_path):
    """A copy, to be changed and resumed."""
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def resume(run: Path):
    return train_islands(make_config(run, "train.steps=20"), run, islands=1)[0]


def rewrite(run: Path, part: str, change) -> None:
    """Change what a part of the checkpoint holds, as if a version had saved it so."""
    folder = run / "island-0" / "checkpoints" / STEP
    file = folder / f"{part}.pt"
    torch.save(change(torch.load(file)), file)
    facts = {"bytes": file.stat().st_size, "blake3": blake3(file.read_bytes()).hexdigest()}
    rewrite_manifest(run, lambda manifest: manifest["files"].update({file.name: facts}))


def rewrite_manifest(run: Path, change) -> None:
    file = run / "island-0" / "checkpoints" / STEP / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def without(name):
    return lambda part: {key: value for key, value in part.items() if key != name}


def test_more_counters_and_fewer_are_read(run, caplog):
    rewrite(run, "counts", lambda counts: without("wait_s")({**counts, "rounds_skipped": 7}))
    finished([resume(run)])
    assert "the checkpoint counts what this version does not: rounds_skipped" in caplog.text


def test_a_checkpoint_from_before_versions_were_noted_is_read(run):
    rewrite_manifest(run, lambda manifest: (manifest.pop("format"), manifest.pop("version")))
    finished([resume(run)])


def test_a_checkpoint_from_before_slots_had_names_is_read(run, capsys):
    def unnamed(saved):
        return {**without("slots")(saved), "momentum": saved["slots"]["momentum"]}

    rewrite(run, "fragment-0", unnamed)
    assert main(["ledger", "verify", str(run / "island-0")]) == 0, capsys.readouterr().err
    finished([resume(run)])


def drop_file(name):
    def change(run):
        rewrite_manifest(run, lambda manifest: manifest["files"].pop(name))
        (run / "island-0" / "checkpoints" / STEP / name).unlink()

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_file("fragment-0.pt"), r"it has no fragment-0\.pt, which this version needs"),
        (drop_file("ranks.pt"), r"it has no ranks\.pt, which this version needs"),
        (
            lambda run: rewrite_manifest(run, lambda m: m.update(format=FORMAT + 1, version="9.0", files=[])),
            rf"written by lowcomm 9\.0, .* its format is {FORMAT + 1}, and this version reads up to {FORMAT}",
        ),
        (lambda run: rewrite(run, "outer", without("pacing")), r"another content \(KeyError: 'pacing'\)"),
        (lambda run: rewrite(run, "fragment-0", without("chain")), r"another content \(KeyError: 'chain'\)"),
        (lambda run: rewrite(run, "island", without("model")), r"another content \(KeyError: 'model'\)"),
        (lambda run: rewrite(run, "ranks", lambda ranks: {"all": ranks}), r"another content \(KeyError: 0\)"),
        (lambda run: rewrite(run, "counts", lambda counts: 3), r"another content \(AttributeError"),
        (
            lambda run: rewrite(run, "counts", lambda counts: {"a": Path()}),
            "holds what this version can't read",
        ),
    ],
    ids=["no-fragment", "no-ranks", "format", "outer", "chain", "island", "ranks", "counts", "class"],
)
def test_what_another_version_has_saved_otherwise_is_refused_by_name(run, change, says):
    def listing():
        files = (run / "island-0" / "checkpoints").rglob("*")
        return {file: file.read_bytes() for file in files if file.is_file()}

    change(run)
    before = listing()
    error = resume(run)
    assert isinstance(error, CheckpointError)
    with pytest.raises(CheckpointError, match=says):
        raise error
    assert f"checkpoints/{STEP} was written by lowcomm " in str(error)
    assert "go on with the version that wrote it, or choose a new --out" in str(error)
    assert "remove" not in str(error)
    assert "\n" not in str(error)
    assert listing() == before


def test_settings_that_another_version_names_otherwise_are_said_to_be_so(run):
    mark = run / "island-0" / "run.json"
    facts = json.loads(mark.read_text())
    mark.write_text(json.dumps({**facts, "shared_digest": "0" * 64, "version": "0.0.9", "more": 1}))
    error = resume(run)
    assert isinstance(error, StorageError)
    assert "with other [shared] settings (digest 000000000000, now " in str(error)
    assert "; lowcomm 0.0.9 wrote it, this is " in str(error)


def test_export_and_audit_name_a_checkpoint_of_another_version(run, capsys):
    rewrite(run, "fragment-0", lambda saved: without("tensors")(without("slots")(saved)))
    island = run / "island-0"
    for command in (["ledger", "verify", str(island)], ["export", str(island), "--out", str(run / "out")]):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert "another content (KeyError: " in error
        assert f"checkpoints/{STEP} was written by lowcomm " in error
        assert "Traceback" not in error
