"""Islands as processes of this machine: what is started for each, and how one is watched and ended."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowcomm.clock import Clock
from lowcomm.config.schema import Config
from lowcomm.errors import ConfigError, LowcommError, StorageError
from lowcomm.interrupts import leaving_signals
from lowcomm.launching.child import end_session, start_child
from lowcomm.names import LONGEST_NAME
from lowcomm.training.phases import JOINING, PHASE_FILE, VARIABLE, read_phase

LOG_FILE = "log.txt"
ADDRESS_FILE = "address"
LOG_LINES_SHOWN = 12
SAVE_S = 50
"""How long torchrun waits for ranks that save, where its version can be told so; its own default is 30 s."""
FINISHED, STOPPED = 0, 130
"""Exit codes of an island that trained to its end, and of one that was asked to leave."""


class IslandStartError(LowcommError):
    """The first island ended, or got stuck, before others could join it."""


@dataclass(kw_only=True)
class IslandProcess:
    """One running island: `python -m lowcomm train ...`, or torchrun with several ranks of it."""

    index: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def code(self) -> int | None:
        """The exit code; negative = ended by that signal; None = running."""
        if self.process.returncode is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self.kill()  # of what it left behind; until it is reaped its session's number is not given away
        return self.process.returncode

    def interrupt(self) -> None:
        """Ask for a clean end: torchrun hands the signal on to its ranks by itself.

        Not with SIGINT: an island that was sent SIGTERM as well would take it for a person's.
        """
        if self.code is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and whatever it started, at once."""
        if self.process.returncode is None:
            end_session(self.process.pid)
            self.process.wait()

    def explain(self) -> str:
        """How it ended, with the last lines of its log."""
        code = self.code
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        return f"{self.name} {how}; the last lines of {self.folder / LOG_FILE}:\n{log_tail(self.folder)}"


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """What to start.

    Attributes:
        recipe: handed to `lowcomm train`.
        config: the recipe with the profile and the overrides, already checked.
        overrides: as given to `--set`.
        profile: as given to `--profile`; all islands have it.
        out: island i runs in `out/island-i`.
        islands, ranks: how many islands, and ranks in each.
    """

    recipe: Path
    config: Config
    overrides: Sequence[str]
    out: Path
    islands: int
    ranks: int = 1
    profile: str | None = None

    @property
    def _leases(self) -> bool:
        """Whether islands lease what they train on instead of having a shard each."""
        return bool(self.config.shared.data.manifest) and self.config.data.shard < 0

    def check(self) -> None:
        """Refuse what can't work before anything is started.

        Raises:
            ConfigError: more islands than shards.
        """
        shards = self.config.shared.data.shards
        if self.islands > shards and not self._leases:
            raise ConfigError(
                f"--islands {self.islands}: expected at most shared.data.shards = {shards};"
                f" add --set shared.data.shards={self.islands}"
            )

    def folder(self, index: int) -> Path:
        """The run folder of one island."""
        return self.out / f"island-{index}"

    def island_name(self, index: int) -> str:
        """What one island is called: `island-0`, or by the name that the recipe has for all."""
        return f"{(self.config.island.name or 'island')[: LONGEST_NAME - 8]}-{index}"

    def command(self, index: int, initial_peers: Sequence[str], group_address: str) -> list[str]:
        """The command line of one island."""
        settings = [
            *(() if self._leases else (f"data.shard={index}",)),
            f"island.name={json.dumps(self.island_name(index))}",
            f"exchange.expected_peers={max(self.islands, self.config.exchange.expected_peers)}",
            f"exchange.initial_peers={json.dumps(list(initial_peers))}",
            f"exchange.listen={json.dumps(['/ip4/127.0.0.1/tcp/0'])}",
            "metrics.console=plain",
        ]
        if group_address:
            settings += [
                f"exchange.group_address={group_address}",
                f"exchange.group_rank={index}",
                f"exchange.group_size={self.islands}",
            ]
        python = [sys.executable, "-m"]
        if self.ranks > 1:
            # all is on this machine, whose own name need not resolve
            python += ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
            python += [f"--nproc-per-node={self.ranks}", "-m"]
        command = [*python, "lowcomm", "train", str(self.recipe), "--out", str(self.folder(index))]
        if self.profile is not None:
            command += ["--profile", self.profile]
        for override in (*self.overrides, *settings):
            command += ["--set", override]
        return command


def start_islands(
    plan: LaunchPlan, clock: Clock, started: Callable[[IslandProcess], None], tick: Callable[[], bool]
) -> None:
    """Start all islands: the first one, and as soon as it can be reached, the others.

    Args:
        plan: what to start.
        clock: measures how long the first island may take.
        started: called with each island, at once after its start.
        tick: waits a moment; False where no further island shall be started.

    Raises:
        IslandStartError: the first island ended or got stuck before it was reachable.
        StorageError: a run folder can't be made.
    """
    for index in range(plan.islands):
        _prepare(plan.folder(index))
    known = list(plan.config.exchange.initial_peers)
    group_address = _free_address() if plan.config.exchange.kind == "process_group" else ""
    for index in range(plan.islands):
        island = _start(plan, index, known, group_address)
        started(island)
        if index == 0 and plan.islands > 1 and not group_address:
            address = _wait_for_address(island, clock, plan.config.exchange.gather_timeout_s, tick)
            if address is None:
                return
            known.insert(0, address)


def log_tail(folder: Path, lines: int = LOG_LINES_SHOWN) -> str:
    """The last lines of an island's log, indented."""
    try:
        text = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "  (no log)"
    return "\n".join("  " + line for line in text.splitlines()[-lines:]) or "  (empty)"


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # one from an earlier session names a port that is closed now
        (folder / ADDRESS_FILE).unlink(missing_ok=True)
        (folder / PHASE_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: can't be used as a run folder: {error.strerror or error}") from error


def _start(plan: LaunchPlan, index: int, initial_peers: Sequence[str], group_address: str) -> IslandProcess:
    threads = max(1, len(os.sched_getaffinity(0)) // (plan.islands * plan.ranks))
    command = plan.command(index, initial_peers, group_address)
    return start_process(index, plan.folder(index), command, threads=threads)


def start_process(
    index: int,
    folder: Path,
    command: Sequence[str],
    *,
    threads: int,
    environment: Mapping[str, str] | None = None,
) -> IslandProcess:
    """Start one island in a session of its own; its output is added to `folder/log.txt`.

    It gets SIGTERM (save and leave) when this process dies.

    Args:
        folder: must exist.
        threads: OMP_NUM_THREADS, where the environment doesn't name any.
        environment: variables for it beside those of this process.
    """
    variables = {**os.environ, **(environment or {})}
    variables.setdefault("OMP_NUM_THREADS", str(threads))
    variables[VARIABLE] = str((folder / PHASE_FILE).absolute())
    # torchrun's options, as it reads them from its environment: it would take what nohup ignores, too
    variables.setdefault("PET_SIGNALS_TO_HANDLE", ",".join(number.name for number in leaving_signals()))
    variables.setdefault("PET_SHUTDOWN_TIMEOUT", str(SAVE_S))
    package_root = str(Path(__file__).parents[2])
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, variables.get("PYTHONPATH"))))
    with (folder / LOG_FILE).open("ab") as log:
        process = start_child(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            environment=variables,
            dies=signal.SIGTERM,  # it saves and leaves
        )
    return IslandProcess(index=index, folder=folder, process=process)


def _wait_for_address(
    island: IslandProcess, clock: Clock, timeout_s: float, tick: Callable[[], bool]
) -> str | None:
    """The shared string of the first island; None if `tick` said to stop.

    Args:
        timeout_s: from when it joins on; what comes before, such as reading the text, takes its time.
    """
    path = island.folder / ADDRESS_FILE
    deadline_s = math.inf
    while tick():
        if path.exists() and (text := path.read_text(encoding="utf-8").strip()):
            return text.splitlines()[0]
        if island.code is not None:
            raise IslandStartError(island.explain())
        if deadline_s == math.inf and read_phase(island.folder).startswith(JOINING):
            deadline_s = clock.monotonic_s() + timeout_s
        if clock.monotonic_s() > deadline_s:
            raise IslandStartError(
                f"{island.name} joins, and was not reachable after {timeout_s:g} s"
                f" (exchange.gather_timeout_s);"
                f" the last lines of {island.folder / LOG_FILE}:\n{log_tail(island.folder)}"
            )
    return None


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
