"""Standard streams that are closed or full: commands work, and say where figures are lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.e2e.runs import ROOT

DRY_RUN = "train recipes/quickstart.toml --dry-run"
UNREACHABLE = "status no-address"


def shell(words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'exec "$0" -m lowcomm {words}', sys.executable],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (f"{DRY_RUN} >&-", 0),
        (f"{DRY_RUN} <&- >&- 2>&-", 0),
        (f"{DRY_RUN} 2>&- | cat", 0),
        (f"{UNREACHABLE} 2>&-", 2),
        (f"{UNREACHABLE} 2>/dev/full", 2),
    ],
    ids=["no-output", "nothing-at-all", "no-errors", "no-place-for-an-error", "full-place-for-an-error"],
)
def test_exit_codes_without_a_reader(words: str, code: int) -> None:
    ran = shell(words)
    assert (ran.returncode, ran.stderr) == (code, "")


def test_figures_that_a_full_disk_did_not_take_are_named() -> None:
    ran = shell(f"{DRY_RUN} >/dev/full")
    assert ran.returncode == 1
    assert ran.stderr == (
        "lowcomm: error: the standard output could not be written: No space left on device; "
        "expected a terminal, pipe or file that takes the figures\n"
    )


def test_no_file_of_ours_gets_the_number_of_a_closed_stream() -> None:
    program = (
        "import os\nfrom lowcomm.cli.streams import open_standard_streams\nopen_standard_streams()\n"
        "assert os.open(os.devnull, os.O_RDONLY) > 2\nprint('lost')"
    )
    ran = subprocess.run(
        ["bash", "-c", f'exec {sys.executable} -c "$0" <&- >&- 2>&-', program], cwd=ROOT, check=False
    )
    assert ran.returncode == 0
