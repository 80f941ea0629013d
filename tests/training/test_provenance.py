"""`lowcomm provenance`: what a model is made of, from the ledger and the manifest that a run folder keeps."""

import json
import re
import shutil
from pathlib import Path

import pytest

from lowcomm.cli.main import main
from lowcomm.config.load import load_config
from lowcomm.training.export import export
from lowcomm.training.provenance import provenance_of
from tests.data.reading.corpora import counting, make_corpus
from tests.training.islands import RECIPE, finished, make_config, train_islands


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two islands on a corpus of two sources, one of them drawn twice an epoch."""
    folder = tmp_path_factory.mktemp("provenance")
    (folder / "corpus").mkdir()
    texts = {"web": counting(8, 30), "books": counting(8, 15)}
    manifest = make_corpus(folder / "corpus", texts, weights={"books": 2.0})
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE)
    set_ = [f"shared.data.manifest={manifest.digest}", f"data.source={folder / 'corpus'}"]
    finished(train_islands(load_config(recipe, set_), folder))
    return folder


def test_it_says_what_the_ledger_credits(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "provenance.json"
    assert main(["provenance", str(run / "island-0"), "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    config = load_config(run / "island-0" / "config.toml")
    assert (found["valid"], found["problem"], found["run_id"]) == (True, "", "small")
    assert found["manifest"] == config.shared.data.manifest
    trained = 20 * 4 * 16
    assert [island["tokens"] for island in found["islands"]] == [trained, trained]
    assert [island["peer"] for island in found["islands"]] == ["island-0", "island-1"]
    assert found["tokens"] == sum(source["tokens"] for source in found["sources"]) == 2 * trained
    web, books = found["sources"]
    assert web["tokens"] / books["tokens"] == pytest.approx(8 * 31 / (2 * 8 * 16), rel=0.3)
    assert web["exact"]
    out = capsys.readouterr().out
    assert f"ledger head `{found['head']}`, {2 * trained:,} tokens" in out
    assert f"- source books, licence not said: {books['tokens']:,} tokens" in out


def test_each_unit_is_credited_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "account.json"
    assert main(["data", "account", str(run / "island-0"), "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert (found["credited_twice"], found["samples_twice"], found["missing"]) == (0, 0, 0)
    assert found["units"] == found["credited_once"] + found["begun"]
    assert found["samples"] == 2 * 20 * 4
    provenance = provenance_of(run / "island-0")
    assert found["tokens_by_source"] == {source.name: source.tokens for source in provenance.sources}
    assert found["manifest"] == provenance.manifest
    assert "0 twice, 0 missing of epochs that are done" in capsys.readouterr().out


def test_both_islands_say_the_same(run: Path) -> None:
    one, other = (provenance_of(run / f"island-{number}") for number in range(2))
    assert (one.head, one.tokens, one.sources) == (other.head, other.tokens, other.sources)


def test_an_export_carries_it(run: Path, tmp_path: Path) -> None:
    export(run / "island-0", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n".join(provenance_of(run / "island-0").lines()) in card.partition("## Where it comes from")[2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "expected a corpus with a manifest.json"),
        (
            lambda folder: make_corpus(folder, {"web": counting(8, 30)}),
            "expected the manifest .* of shared.data.manifest, got",
        ),
        (
            lambda folder: (folder / "ledger.jsonl").write_text(
                re.sub(r"320", "321", (folder / "ledger.jsonl").read_text(), count=1)
            ),
            r"ledger.jsonl:\d+",
        ),
    ],
    ids=["no manifest", "another manifest", "a ledger that was changed"],
)
def test_what_is_wrong_is_said(damage, message, run: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "island"
    shutil.copytree(run / "island-1", folder)
    damage(folder)
    file = tmp_path / "provenance.json"
    assert main(["provenance", str(folder), "--json", str(file)]) == 1
    found = json.loads(file.read_text())
    assert not found["valid"]
    assert re.search(message, found["problem"])
    assert found["problem"] in capsys.readouterr().err.replace("\n", " ")


def test_bytes_of_files_have_a_digest_of_their_own(tmp_path: Path) -> None:
    finished(train_islands(make_config(tmp_path, "train.steps=5"), tmp_path, islands=1))
    found = provenance_of(tmp_path / "island-0")
    assert found.valid
    assert (found.manifest, len(found.data)) == ("", 64)
    assert [source.tokens for source in found.sources] == [found.tokens]


def test_no_run_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provenance", str(tmp_path / "none")]) == 1
    assert "expected the run folder of an island, got nothing of that name" in capsys.readouterr().err
