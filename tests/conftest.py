"""What all tests share: quiet tools, no network but this machine, one thread."""

import os

# before torch is imported by any test module
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest

PROCESSES = {"attacks", "bench", "docs", "e2e", "islands"}
"""Folders whose tests start islands as processes: one such test at a time is enough for two cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        if folder in PROCESSES:
            item.add_marker(pytest.mark.xdist_group("processes"))
        else:  # what a file sets up for all its tests is set up once
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
