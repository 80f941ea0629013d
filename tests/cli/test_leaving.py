"""How a process ends in which native threads may still want the interpreter."""

from __future__ import annotations

import subprocess
import sys

from tests.e2e.runs import ROOT

BUSY = """
import atexit, threading, torch
from lowcomm.cli.main import leave

def work():
    while True:
        torch.ones(100) + 1  # in C++, which wants the GIL back

atexit.register(print, "said at the end")
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
leave(3)
"""


def test_threads_that_want_the_interpreter_do_not_abort_a_process_that_is_done() -> None:
    # with sys.exit instead it ends with SIGABRT nearly every time
    ran = subprocess.run([sys.executable, "-c", BUSY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "said at the end\n", "")
