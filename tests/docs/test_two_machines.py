"""docs/two-machines.md in small: a seed, two islands that meet there, a look, a stop, an export."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import socket
import subprocess

import pytest

from lowcomm.cli.main import main
from lowcomm.names import host_name
from tests.docs.pages import ROOT, bash_lines
from tests.docs.processes import DEADLINE_S, first_line, output, python, started

SMALL = (
    "shared.run_id=sites", "shared.model.dim=32", "shared.model.layers=1", "shared.model.heads=2",
    "shared.model.kv_heads=2", "shared.model.ffn_dim=64", "shared.model.context=32",
    "shared.schedule.inner_steps=5", "shared.round.deadline_s=10", "train.steps=1000000", "train.log_every=5",
    "train.eval_windows=8", "exchange.expected_peers=2", "metrics.wandb=off", "metrics.console=off",
)  # fmt: skip
LOOKS = 20


@pytest.fixture(autouse=True)
def _own_logging():
    """The commands called in this process set up logging; other tests must not see it."""
    logger = logging.getLogger("lowcomm")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def free_port():
    """One that nobody listens on now, TCP and UDP."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("", 0))
        udp.bind(("", tcp.getsockname()[1]))
        return tcp.getsockname()[1]


def all_training(string, capsys, *islands):
    """What `lowcomm status` says once as many islands have an outer step behind them, and tell a loss."""
    peers = []
    for _ in range(LOOKS):
        code = main(["status", string, "--json"])
        shown = capsys.readouterr().out
        peers = json.loads(shown)["peers"] if code == 0 else []
        training = [peer for peer in peers if peer["outer_steps"][:1] > [0] and peer["loss"] is not None]
        if len(training) == len(islands) or any(island.poll() is not None for island in islands):
            break
    return peers


@pytest.mark.processes
def test_islands_meet_at_a_seed_are_seen_stopped_and_exported(tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(12):
        (text / f"{number}.txt").write_text(f"document {number}: " + "some words that come again. " * 80)
    settings = [part for item in (*SMALL, f"data.source={text}") for part in ("--set", item)]
    recipe = ROOT / "recipes" / "quickstart.toml"
    folders = [tmp_path / "a", tmp_path / "b"]
    logs = [tmp_path / f"{name}.txt" for name in ("seed", "a", "b")]

    seed_script = ["bash", "launch/seed.sh"]
    where = {"RUN_ID": "sites", "PORT": str(free_port()), "IDENTITY": str(tmp_path / "seed.key")}
    with started(seed_script, log=logs[0], **where) as seed:
        string = first_line(seed, logs[0])
        train = ("-m", "lowcomm", "train", recipe, "--join", string, *settings, "--out")
        south = (folders[1], "--set", "island.name=south")
        with python(*train, folders[0], log=logs[1]) as a, python(*train, *south, log=logs[2]) as b:
            peers = all_training(string, capsys, a, b)
            training = [peer for peer in peers if peer["role"] == "island"]
            assert len(training) == 2, [log.read_text() for log in logs]
            assert {peer["role"] for peer in peers} == {"seed", "island"}
            assert len({peer["shard"] for peer in training}) == 2
            assert sorted(peer["name"] for peer in training) == sorted([host_name(), "south"])
            assert all(0.0 < peer["loss"] < 10.0 for peer in training)
            for peer, other in (training, training[::-1]):
                assert other["peer"] in [link["peer"] for link in peer["links"]]
            assert_watch_shows_what_goes_on(string, tmp_path / "watch.txt")
            for island in (a, b):
                island.send_signal(signal.SIGINT)
            output(a, logs[1], code=130)
            output(b, logs[2], code=130)
        seed.send_signal(signal.SIGINT)
        output(seed, logs[0])

    assert main(["export", str(folders[0]), "--out", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "model.safetensors").stat().st_size > 0
    assert main(["report", str(folders[0]), str(folders[1]), "--json", str(tmp_path / "figures.json")]) == 0
    runs = json.loads((tmp_path / "figures.json").read_text())["runs"]
    assert [(run["islands"], run["names"], run["outer_steps"] > 0) for run in runs] == [
        (2, sorted([host_name(), "south"], key=lambda name: (len(name), name)), True)
    ]


def assert_watch_shows_what_goes_on(string, log):
    """Look after look, each a line of JSON, until Ctrl-C ends it well."""
    with python("-m", "lowcomm", "status", string, "--watch", "0.2", "--json", "-", log=log) as watching:
        steps = [0]
        while len(set(steps)) < 3:
            line = watching.stdout.readline()
            assert line, log.read_text()
            steps.append(max(peer["inner_step"] for peer in json.loads(line)["peers"]))
        assert steps == sorted(steps)
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=DEADLINE_S)
        assert watching.returncode == 0, log.read_text()


def wait_for(there, process, log):
    """Until something is there, or the process has ended."""
    while not there():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
            raise AssertionError(log.read_text())


def machine(folder):
    """A folder that stands for a machine with the clone in it: run folders are its own."""
    folder.mkdir()
    for name in ("launch", "recipes", "lowcomm", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.processes
@pytest.mark.timeout(600)
def test_the_commands_of_the_front_page_join_two_machines(tmp_path, capsys):
    found, show, join = bash_lines(ROOT / "README.md", "## Two machines")
    port = str(free_port())
    assert found.startswith("PORT=31337 ")
    small = "".join(f" --set '{one}'" for one in SMALL if not one.startswith(("shared.run_id", "exchange.")))
    first, second = machine(tmp_path / "first"), machine(tmp_path / "second")
    logs = [tmp_path / "first.txt", tmp_path / "second.txt"]

    with started(["bash", "-c", found.replace("31337", port) + small], log=logs[0], folder=first) as founder:
        address = first / "runs" / "quickstart" / "address"
        wait_for(address.exists, founder, logs[0])
        with started(["bash", "-c", show], log=tmp_path / "show.txt", folder=first) as shown:
            string = first_line(shown, tmp_path / "show.txt")
        assert re.fullmatch(rf"quickstart@/ip4/[\d.]+/tcp/{port}/p2p/12D3\w+", string)
        command, places = re.subn(r"JOIN='[^']+'", f"JOIN='{string}'", join)
        assert places == 1
        with started(["bash", "-c", command + small], log=logs[1], folder=second) as joiner:
            peers = all_training(string, capsys, founder, joiner)
            assert len(peers) == 2, [log.read_text() for log in logs]
            assert len({peer["shard"] for peer in peers}) == 2
            founder.send_signal(signal.SIGINT)
            output(founder, logs[0], code=130)

            # the second machine trains on meanwhile, and the same command leads back to it
            command = ["bash", "-c", found.replace("31337", port) + small]
            with started(command, log=logs[0], folder=first) as founder:
                peers = all_training(string, capsys, founder, joiner)
                assert len(peers) == 2, [log.read_text() for log in logs]
                for island, log in ((joiner, logs[1]), (founder, logs[0])):
                    island.send_signal(signal.SIGINT)
                    output(island, log, code=130)
                assert "starts alone" not in logs[0].read_text()
    starts = [
        json.loads(line)["how"]
        for line in (first / "runs" / "quickstart" / "metrics.jsonl").read_text().splitlines()
        if json.loads(line)["kind"] == "start"
    ]
    assert starts[0] == "founded"
    assert starts[-1] in ("replayed", "snapshot")
