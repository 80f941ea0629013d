"""What the end-to-end tests share: a little text, and processes that are ended whatever happens."""

import os
import subprocess

import pytest

from tests.e2e.runs import ROOT, lowcomm


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"document {number}: " + "some words that come again. " * 80)
    return folder


@pytest.fixture
def start(source):
    """Start the command on small settings; whatever still runs at the end of the test is ended."""
    running = []

    def start_one(*arguments, **options):
        running.append(lowcomm(*arguments, source=source, **options))
        return running[-1]

    yield start_one
    for process in running:
        if process.poll() is None:
            process.terminate()
            process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture
def logged(tmp_path):
    """Start a command with its output in NAME.log; ended, with its ranks, whatever happens."""
    running = []

    def start(name, command, **variables):
        log = (tmp_path / f"{name}.log").open("w")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        running.append((process, log))
        return process

    yield start
    for process, log in running:
        if process.poll() is None:
            process.terminate()  # torchrun passes it on to its ranks, and gives them 30 s
            process.wait(60)
        log.close()
