"""launch/setup.sh: what it says while pip works, and what is left when pip fails."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP_SAYS = """\
Obtaining file:///clone
Collecting torch<2.14,>=2.9 (from lowcomm==0.1.0)
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (31 kB)
Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (906.2 MB)
Downloading baseconv-1.2.2.tar.gz (4.9 kB)
Installing collected packages: mpmath, typing-extensions, torch
"""


def run(script: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A piece of bash after `source setup.sh`."""
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source '{ROOT}/launch/setup.sh'; {script}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip


def test_what_pip_is_at_is_said_and_all_of_it_kept(tmp_path):
    (tmp_path / "says").write_text(PIP_SAYS)
    ran = run("_lowcomm_pip . cat says", tmp_path)
    assert ran.returncode == 0
    said = [line.split(" s  ")[-1] for line in ran.stderr.splitlines()]
    assert said[:-1] == [
        "downloading torch 2.13.0 (906.2 MB)",
        "downloading baseconv 1.2.2 (4.9 kB)",
        "installing 3 packages",
    ]
    assert said[-1].startswith("lowcomm: installed in ")
    assert (tmp_path / "lowcomm-pip.txt").read_text() == PIP_SAYS


def test_what_pip_fails_with_is_shown(tmp_path):
    (tmp_path / "says").write_text("Collecting torch\nERROR: No matching distribution found for torch\n")
    ran = run("_lowcomm_pip . bash -c 'cat says; exit 3'", tmp_path)
    assert ran.returncode == 3
    assert ran.stderr.endswith("ERROR: No matching distribution found for torch\n")
    assert "installed" not in ran.stderr


def test_nothing_is_made_where_the_python_has_everything(tmp_path):
    ran = run('lowcomm_setup dev && echo "$LOWCOMM_ROOT"', tmp_path, SETUP="off", PYTHON="/no/python")
    assert (ran.returncode, ran.stdout.strip()) == (0, str(ROOT))
