"""`lowcomm data`: what scripts read, exit codes, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.cli.main import main
from lowcomm.data.corpus.manifest import MANIFEST, Manifest
from lowcomm.data.corpus.tokenizer import CONFIG, TOKENIZER
from lowcomm.data.making.build import STAGES
from lowcomm.data.making.spec import read_spec
from lowcomm.data.making.steps import MINHASH, STEPS
from tests.data.making.making import documents, texts, write_lines

SPEC = """
chunk_tokens = 2000
holdout_fraction = 0.05
{tokenizer}
[[source]]
url = "{url}"
name = "numbers"
licence = "CC0-1.0"
[[step]]
name = "length"
at_least = 17
"""


def write_spec(folder: Path, url: Path | str, tokenizer: str = "") -> Path:
    path = folder / "corpus.toml"
    path.write_text(SPEC.format(url=url, tokenizer=tokenizer))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    source = write_lines(tmp_path / "a.jsonl", [*texts(300), *texts(10)])
    out = tmp_path / "corpus"
    assert (
        main(["data", "build", str(write_spec(tmp_path, source)), "--out", str(out), "--processes", "1"]) == 0
    )
    return out


def test_build_writes_what_scripts_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "a.jsonl", [*texts(300), *texts(10)])
    bpe, figures = tmp_path / "bpe", tmp_path / "f.json"
    assert main(["data", "tokenizer", str(source), "--size", "300", "--out", str(bpe), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 300
    spec = str(write_spec(tmp_path, source, f'[tokenizer]\npath = "{bpe}"'))
    assert main(["data", "build", spec, "--out", str(tmp_path / "out"), "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    manifest = Manifest.read(tmp_path / "out")
    assert found["manifest"] == manifest.digest
    assert found["documents"] + found["holdout_documents"] == 298
    assert found["tokens"] == manifest.tokens
    assert found["chunks"] == len(list(manifest.chunks))
    assert found["dropped"] == {"length: too short": 4, "duplicates: exact": 8}
    assert found["seconds"] > 0
    assert found["peak_mb"] > 10  # that of this process, too, in which other tests have run
    assert "lowcomm: read and clean: 1" in capsys.readouterr().err

    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = documents(tmp_path / "out")[0]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.eos_token_id == manifest.vocabulary.separator


def test_a_terminal_gets_a_bar_for_each_stage(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "a.jsonl", texts(30))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    command = ["data", "build", str(write_spec(tmp_path, source)), "--out", str(tmp_path / "out")]
    assert main([*command, "--processes", "1"]) == 0
    shown = capsys.readouterr().err
    for stage in STAGES[:3]:
        assert re.search(rf"{stage} +.*1/1", shown)
    assert "lowcomm: read and clean" not in shown


def test_the_specifications_of_the_page_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "corpus.md").read_text(encoding="utf-8")
    names = []
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    for block in [block for block in blocks if "[[source]]" in block]:  # the others are of recipes
        (tmp_path / "corpus.toml").write_text(block)
        spec = read_spec(tmp_path / "corpus.toml")
        assert {step.name for step in spec.steps} <= {*STEPS, MINHASH}
        names += [source.name for source in spec.sources]
    assert names == ["web", "fineweb-edu"]


@pytest.mark.processes
def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    peaks_mb = []
    for files in (2, 14):
        folder = tmp_path / str(files)
        for number in range(files):
            write_lines(
                folder / f"{number}.jsonl", (f"{number} {line} " + "words " * 200 for line in range(6_000))
            )
        command = ["data", "build", str(write_spec(tmp_path, folder)), "--out", str(tmp_path / f"out{files}")]
        (tmp_path / "corpus.toml").write_text(
            (tmp_path / "corpus.toml").read_text().replace("2000", "4_000_000")
        )
        done = subprocess.run(
            [sys.executable, "-m", "lowcomm", *command, "--processes", "1", "--json", "-"],
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
        assert found["documents"] + found["holdout_documents"] == 6_000 * files
        peaks_mb.append(found["peak_mb"])
    assert peaks_mb[1] < peaks_mb[0] + 16  # with 87 MB of text more


def test_inspect_shows_sources_steps_and_documents(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(corpus), "--documents", "2"]) == 0
    shown = capsys.readouterr().out
    assert "numbers\t1\t" in shown
    assert "CC0-1.0" in shown
    assert "too short" in shown
    assert shown.endswith("--- numbers\nDocument 1: word end.\n--- numbers\nDocument 2: word word end.\n")
    assert main(["data", "inspect", str(corpus), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sources"][0]["licence"], found["documents"]) == (
        "CC0-1.0",
        {"numbers": ["Document 1: word end."]},
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "expected bytes with blake3 "),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, got "),
        (lambda path: path.unlink(), "can't be read: No such file"),
    ],
    ids=["other bytes", "cut", "missing"],
)
@pytest.mark.parametrize("suffix", ["bin", "ends"])
def test_verify_names_the_chunk_that_differs(
    corpus: Path, tmp_path: Path, capsys, suffix, damage, message
) -> None:
    figures = tmp_path / "f.json"
    assert main(["data", "verify", str(corpus), "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["valid"]
    capsys.readouterr()
    damage(corpus / "chunks" / f"000001.{suffix}")
    assert main(["data", "verify", str(corpus), "--json", str(figures)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"lowcomm: error: {corpus}: chunk 000001: 000001.{suffix}: ")
    assert message in error
    assert error.count("\n") == 1
    assert json.loads(figures.read_text())["wrong"] == ["chunk 000001"]


def test_verify_names_a_tokenizer_of_other_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "a.jsonl", texts(300))
    main(["data", "tokenizer", str(source), "--size", "280", "--out", str(tmp_path / "bpe")])
    spec = write_spec(tmp_path, source, f'[tokenizer]\npath = "{tmp_path / "bpe" / TOKENIZER}"')
    main(["data", "build", str(spec), "--out", str(tmp_path / "out"), "--processes", "1"])
    (tmp_path / "out" / TOKENIZER).write_text("{}")
    capsys.readouterr()
    assert main(["data", "verify", str(tmp_path / "out")]) == 1
    assert "tokenizer.json: tokenizer.json: expected bytes with blake3" in capsys.readouterr().err
    assert main(["data", "inspect", str(tmp_path / "out")]) == 1
    assert "expected the corpus's tokenizer, blake3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("chunk_token = 3", "chunk_token: unknown key; did you mean chunk_tokens?"),
        ("x = [", "expected TOML"),
        ("", 'source: expected at least one, e.g. [[source]] with url = "texts/*.jsonl"'),
        ('[source]\nurl = "x"', "source: expected [[source]] with two brackets"),
        ('[[source]]\nname = "x"', "source 1: url: expected it to be set, got nothing"),
        ('[[source]]\nurl = 3', "source 1: url: expected text in quotes, got 3"),
        ('[[source]]\nurl = "x"\nweight = "y"', "source 1: weight: expected a number, got"),
        ('[[source]]\nurl = "x"\n[[source]]\nurl = "y/x"', "got 'x' twice; set name"),
        ('holdout_fraction = 1\n[[source]]\nurl = "x"', "holdout_fraction: expected a number of at least 0"),
        ('chunk_tokens = 3\n[[source]]\nurl = "x"', "chunk_tokens: expected a whole number from 16"),
        ('[[source]]\nurl = "x"\n[[step]]\nform = 3', "step 1: expected a table with a name"),
        ('[tokenizer]\nkind = "bpe"\n[[source]]\nurl = "x"', 'tokenizer.kind: expected "bytes", or'),
        ('[tokenizer]\nseparator = "x"\n[[source]]\nurl = "x"', "expected tokenizer.path with it"),
        ('[tokenizer]\npath = "no"\n[[source]]\nurl = "x"', "no: expected a tokenizer.json, or a folder"),
        ('[tokenizer]\npath = "a.json"\n[[source]]\nurl = "x"', "a.json: expected a tokenizer"),
        ('[tokenizer]\npath = "bpe"\nseparator = "<no>"\n[[source]]\nurl = "x"', "got '<no>', which"),
    ],
)  # fmt: skip
def test_a_specification_that_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str], spec: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text("{}")
    if '"bpe"\nsep' in spec:
        write_lines(Path("t.jsonl"), texts(300))
        assert main(["data", "tokenizer", "t.jsonl", "--size", "270", "--out", "bpe"]) == 0
        assert {path.name for path in Path("bpe").iterdir()} == {TOKENIZER, CONFIG}
    capsys.readouterr()
    Path("spec.toml").write_text(spec)
    assert main(["data", "build", "spec.toml", "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lowcomm: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["build", "no.toml", "--out", "out"], 2, "no.toml: expected the specification of a corpus"),
        (["inspect", "no"], 1, "no: expected a corpus with a manifest.json, as"),
        (["verify", "no"], 1, "no: expected a corpus with a manifest.json, as"),
        (["tokenizer", "no", "--size", "300", "--out", "t"], 1, 'expected "stdlib", a folder'),
        (["tokenizer", "a", "--size", "99", "--out", "t"], 2, "--size: expected at least 257"),
        (["tokenizer", "a", "--size", "9999", "--out", "t"], 1, "expected text for 9,999 tokens"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch, capsys, words, code, message
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_text("a text")
    assert main(["data", *words]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


STOPPED = """
import os, signal, sys
from lowcomm.data.making import {module} as module
whole = module.{name}
count = 0
def stop(job):
    global count
    count += 1
    if count > {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(job)
if __name__ == "__main__":
    from lowcomm.data.making import build
    build.{name} = stop
    from lowcomm.cli.main import run
    sys.argv[0] = "lowcomm"
    run()
"""


@pytest.mark.processes
def test_a_build_that_is_killed_five_times_ends_with_the_same_manifest(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(24):
        text = "".join(f"{number} {line} some text that is long enough\n" for line in range(60_000))
        (tmp_path / "in" / f"{number:02d}.txt").write_text(text)
    spec = write_spec(tmp_path, tmp_path / "in").read_text().replace("= 2000", "= 4_000_000")
    (tmp_path / "corpus.toml").write_text(spec)
    command = [str(tmp_path / "corpus.toml"), "--out"]
    assert main(["data", "build", *command, str(tmp_path / "whole"), "--processes", "1"]) == 0
    kills = [
        ("cleaning", "clean_item", 2),
        ("duplicates", "find_later", 0),
        ("tokens", "make_tokens", 2),
        ("chunks", "make_chunk", 0),
        ("chunks", "make_chunk", 5),
    ]
    for module, name, after in kills:
        script = tmp_path / f"{name}.py"
        script.write_text(STOPPED.format(module=module, name=name, after=after))
        killed = subprocess.run(
            [sys.executable, script, "data", "build", *command, str(tmp_path / "out"), "--processes", "1"],
            cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."}, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert main(["data", "build", *command, str(tmp_path / "out"), "--processes", "2"]) == 0
    assert (tmp_path / "out" / MANIFEST).read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()
    assert main(["data", "verify", str(tmp_path / "out")]) == 0
