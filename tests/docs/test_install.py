"""`pip install .` from a clone gives a package that works anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT

CLONE = ("pyproject.toml", "README.md", "LICENSE", "lowcomm")


@pytest.mark.processes
def test_the_package_works_outside_its_checkout(tmp_path):
    clone, target, elsewhere = (tmp_path / name for name in ("clone", "target", "elsewhere"))
    clone.mkdir()
    elsewhere.mkdir()
    for name in CLONE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, clone)
    # what it needs is here already, so that no network is needed
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--target", target)
    pip = [sys.executable, "-m", "pip", "install", ".", *map(str, offline)]
    subprocess.run(pip, cwd=clone, check=True)
    shutil.rmtree(clone)

    def lowcomm(*words, folder=elsewhere):
        return subprocess.run(
            [sys.executable, "-c", "import sys; from lowcomm.cli.main import main; sys.exit(main())", *words],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    data = [path.relative_to(ROOT) for kind in ("toml", "html", "css", "json", "typed")
            for path in (ROOT / "lowcomm").rglob(f"*.{kind}")]  # fmt: skip
    assert data
    assert all((target / path).is_file() for path in data)
    asked = lowcomm("train", str(ROOT / "recipes" / "quickstart.toml"), "--dry-run")
    assert (asked.returncode, asked.stderr) == (0, "")
    version = lowcomm("--version")
    assert version.stdout.startswith("lowcomm ")
    missing = lowcomm("quickstart")
    assert missing.returncode == 2
    assert "recipes/quickstart.toml: expected the quickstart's recipe" in missing.stderr
    found = lowcomm("quickstart", "--set", "nonsense", folder=ROOT)
    assert "nonsense: expected KEY=VALUE" in found.stderr
