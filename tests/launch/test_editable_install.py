"""`pip install -e .`, used from the folder above a checkout that is named lowcomm."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys, setuptools.build_meta as build; print(build.build_editable(sys.argv[1]))"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with an editable install of a checkout, ABOVE/lowcomm; run it in ABOVE."""
    above = tmp_path_factory.mktemp("above")
    checkout = above / "lowcomm"
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lowcomm", checkout / "lowcomm", ignore=leave_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(above)], cwd=checkout, capture_output=True, text=True, check=True
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", above / "venv"], check=True)
    (packages,) = (above / "venv" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(above / built.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(packages)
    # what it depends on, without the install of this environment itself
    (packages / "zz_dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return above / "venv" / "bin" / "python"


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "lowcomm", "--version"],
        ["-c", "from lowcomm import __version__; print('lowcomm', __version__)"],
    ],
    ids=["as-a-command", "as-a-library"],
)
def test_the_folder_above_a_checkout_is_a_place_like_any_other(python: Path, words: list[str]) -> None:
    ran = subprocess.run([python, *words], cwd=python.parents[2], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("lowcomm ")
