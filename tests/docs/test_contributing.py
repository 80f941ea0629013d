"""What docs/contributing.md says of adding a method is done to a copy of the repository, and works there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "contributing.md"
CONTRACTS = {
    "fp16": "tests/codecs/test_contract.py",
    "heavy_ball": "tests/algorithms/test_outer_optimizers.py",
    "sign_election": "tests/algorithms/test_aggregation.py",
    "file_group": "tests/exchanges/test_contract.py",
    "bigram": "tests/tasks/test_contract.py",
    "csv_rows": "tests/data/test_formats.py",
}
"""The methods that the page adds, and the tests that have to take them."""
ALSO = ["tests/outer/test_outer_optimizers.py", "tests/test_layers.py"]


def steps() -> list[tuple[str, str, str]]:
    """(file, language, what stands below its name) of each block of the page that changes a file."""
    found = []
    for language, content in blocks(PAGE):
        first, _, rest = content.partition("\n")
        if language in ("python", "diff") and first.startswith("# "):
            found.append((first.removeprefix("# "), language, rest))
    return found


def change(text: str, diff: str) -> str:
    """A file with the hunks of a diff, each at the one place that it fits."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        assert all(line == "" or line[0] in " +" for line in lines), hunk
        before = "".join(f"{line[1:]}\n" for line in lines if line.startswith(" "))
        after = "".join(f"{line[1:]}\n" for line in lines)
        assert text.count(before) == 1, f"expected once: {before}"
        text = text.replace(before, after)
    return text


def do(folder: Path) -> None:
    """All that the page says, in a copy of the repository."""
    for name in ("lowcomm", "tests", "docs", "launch"):
        shutil.copytree(
            ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    for name, language, content in steps():
        file = folder / name
        assert file.exists() == (language == "diff"), name
        file.write_text(change(file.read_text(), content) if language == "diff" else content)


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    return done.stdout


def test_the_page_adds_one_of_each() -> None:
    added = [Path(name).stem for name, language, _ in steps() if language == "python"]
    assert added == list(CONTRACTS)


@pytest.mark.processes
def test_what_the_page_says_works(tmp_path: Path) -> None:
    do(tmp_path)
    reference = run(tmp_path, "lowcomm.config.reference")
    run(tmp_path, "ruff", "check", "lowcomm", "tests")
    run(tmp_path, "ruff", "format", "--check", "lowcomm", "tests")
    told = run(tmp_path, "pytest", "-v", *CONTRACTS.values(), *ALSO, "-k", " or ".join(CONTRACTS))
    for name, contract in CONTRACTS.items():
        passed = re.findall(rf"^{re.escape(contract)}::.*{name}.* PASSED", told, re.MULTILINE)
        assert len(passed) >= 2, (name, told)
        assert f"`{name}`" in reference
