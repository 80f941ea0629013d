"""`pip install` of the wheel gives a package that works anywhere, without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.e2e.runs import SMALL, lines

CLONE = ("pyproject.toml", "README.md", "LICENSE", "lowcomm")
OFFLINE = ("--no-index", "--no-deps", "--quiet")
"""What it needs is here already, so that no network is needed."""
DATA = ("*.toml", "*.json", "*.html", "*.css", "*.typed", "*.c", "wan/wan")


def pip(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)


def installed(folder: Path) -> Path:
    """The `lowcomm` of an environment that has a wheel of this checkout, and else what the tests run with."""
    clone, environment = folder / "clone", folder / "environment"
    clone.mkdir()
    for name in CLONE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, clone)
    pip("wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, clone)
    shutil.rmtree(clone)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip("--python", environment / "bin" / "python", "install", *OFFLINE, *folder.glob("lowcomm-*.whl"))
    (packages,) = environment.glob("lib/python*/site-packages")
    assert all(
        (packages / path.relative_to(ROOT)).is_file()
        for kind in DATA
        for path in (ROOT / "lowcomm").rglob(kind)
    )
    assert os.access(packages / "lowcomm" / "chaos" / "wan" / "wan", os.X_OK)
    # a path in a .pth file is searched last, and the .pth files in it, as of a checkout, are not followed
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    return environment / "bin" / "lowcomm"


@pytest.mark.processes
@pytest.mark.timeout(600)
def test_the_wheel_works_without_a_checkout(tmp_path: Path) -> None:
    command, folder = installed(tmp_path), tmp_path / "elsewhere"
    (folder / "text").mkdir(parents=True)
    for number in range(12):
        (folder / "text" / f"{number}.txt").write_text(f"{number}: " + "words that come again. " * 70)

    def lowcomm(*words: str) -> str:
        ran = subprocess.run(
            [command, *words],
            cwd=folder,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"lowcomm {' '.join(words)}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    small = [word for setting in (*SMALL, "data.source=text") for word in ("--set", setting)]
    where = subprocess.run(
        [command.parent / "python", "-c", "import lowcomm; print(lowcomm.__file__)"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(command.parents[1]))
    assert lowcomm("--version").startswith("lowcomm ")
    lowcomm("quickstart", "--steps", "20", "--out", "quick", *small, "--json", "quick.json")
    assert json.loads((folder / "quick.json").read_text())["outer_steps"] == 2
    assert "data:image/" in (folder / "quick" / "report.html").read_text()
    (folder / "mine.toml").write_text('[shared]\nrun_id = "mine"\n')
    lowcomm("train", "mine.toml", "--profile", "cpu", "--out", "trained", *small, "--set", "train.steps=20")
    assert [line["reason"] for line in lines(folder / "trained" / "metrics.jsonl") if line["kind"] == "end"]
    sizes = ("--payload-mib", "0.1", "--inner-steps", "1", "--rounds", "1", "--repeats", "1")
    assert "hivemind's uniform 8-bit codec" in lowcomm("bench", "codecs", *sizes)
    faults = ("--islands", "3", "--faults", "1", "--minutes", "0.05", "--no-fault-free", "--no-wan")
    assert "digests_equal\tholds" in lowcomm("chaos", *faults)
