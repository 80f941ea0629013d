"""What the end-to-end tests share: a little text, and processes that are ended whatever happens."""

import pytest

from tests.e2e.runs import lowcomm


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

    def start_one(*arguments):
        running.append(lowcomm(*arguments, source=source))
        return running[-1]

    yield start_one
    for process in running:
        if process.poll() is None:
            process.terminate()
            process.terminate()  # twice = at once
            process.wait()
        process.stdout.close()
        process.stderr.close()
