"""Where compiled kernels can't be kept, codecs work all the same, and say so once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lowcomm

CODE = """
import torch
from lowcomm import codecs
values = torch.arange(-300.0, 300.0)
print(bytes(codecs.int4().encode(values)).hex())
"""


def encoded(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(lowcomm.__file__).parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )


@pytest.mark.processes
def test_without_a_cache_kernels_are_compiled_with_one_warning() -> None:
    nowhere = encoded({"NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"})  # fits no plain file
    kept = encoded({})
    assert nowhere.stdout == kept.stdout
    assert nowhere.stderr.count("compiled codecs can't be kept") == 1
    assert "compiled codecs" not in kept.stderr
