"""The islands of a chaos run as one swarm: started, watched from outside, and ended without a rest."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from lowcomm.chaos.island import Island
from lowcomm.chaos.network import Network
from lowcomm.chaos.records import Commit, Line, Story, load_island
from lowcomm.chaos.settings import NEWCOMERS, ChaosPlan
from lowcomm.clock import Clock
from lowcomm.errors import LowcommError
from lowcomm.launching.islands import ADDRESS_FILE, log_tail, start_process
from lowcomm.launching.process_table import ProcessKey, alive, describe, with_variable
from lowcomm.rounds.roster import leader_order
from lowcomm.types import PeerId

TICK_S = 0.02
PORTS = range(20_000, 30_000)
ORPHAN_S = 10.0
"""So long p2pd has to die after its island was killed."""
START_S = 180.0
LEAVE_S = 90.0
AGAIN_BY = 2
"""An island that came (back) counts as live after so many commits: a joiner takes part within two rounds."""
MARK = "LOWCOMM_CHAOS"


class ChaosError(LowcommError):
    """The run itself can't go on: the islands don't even start, or nothing is committed any more."""


class Swarm:
    """All islands of one run; use as a context manager, which leaves no process behind.

    Attributes:
        islands: every run folder so far, also those that nobody trains in any more.
        story: what was seen from outside; the islands' own files are added at the end.
        last_participants: of the newest commit.
        credited: tokens in all commits.
    """

    def __init__(self, plan: ChaosPlan, clock: Clock, network: Network | None = None) -> None:
        self.plan, self._clock, self._began_s = plan, clock, clock.monotonic_s()
        self._network = network
        self.islands: list[Island] = []
        self.story = Story(batch_tokens=plan.batch_tokens, partition=plan.partition)
        self.last_participants: frozenset[str] = frozenset()
        self.outer_step = self.credited = 0
        self._doomed: list[tuple[float, Island, list[ProcessKey]]] = []
        self._moving_s: float | None = None
        self._said: set[str] = set()
        self._heads: set[str] = set()
        self._stayed: set[str] = set()
        self._pause = threading.Event()
        self._mark = secrets.token_hex(8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for island in self.islands:
            if island.process is not None:
                island.process.kill()
        for left in with_variable(MARK, self._mark):
            os.kill(left.pid, signal.SIGKILL)

    @property
    def now_s(self) -> float:
        """Seconds since this object was made."""
        return self._clock.monotonic_s() - self._began_s

    @property
    def wall_s(self) -> float:
        """The time of day."""
        return self._clock.wall_s()

    # -- who is there ------------------------------------------------------------------------------

    @property
    def running(self) -> list[Island]:
        """Islands with a process."""
        return [island for island in self.islands if island.process is not None]

    @property
    def healthy(self) -> list[Island]:
        """Islands that are well and have taken part since they came."""
        return [island for island in self.islands if island.well and island.took_part > 0]

    @property
    def live(self) -> list[Island]:
        """Islands that must be in the next round."""
        return [island for island in self.islands if island.well and island.commits_since >= AGAIN_BY]

    def may_spare(self, victim: Island) -> bool:
        """Whether the lineage lives on without an island: enough of the last participants are well."""
        left = {island.peer for island in self.healthy if island is not victim}
        return len(left) >= 2 and self._enough(left)

    @property
    def able(self) -> bool:
        """Whether those who are well are enough to commit."""
        return self._enough({island.peer for island in self.healthy})

    def _enough(self, well: set[str]) -> bool:
        stayed = well & self.last_participants
        if self.plan.partition == "continue":
            return bool(stayed)
        return 2 * len(stayed) > len(self.last_participants)

    # -- starting ----------------------------------------------------------------------------------

    def start_all(self, tick: Callable[[], None]) -> None:
        """Start the first islands, and wait until all of them train.

        Raises:
            ChaosError: they don't.
        """
        for number in range(self.plan.islands):
            self.start(self.add(f"island-{number}", number), expected=self.plan.islands)
            if number == 0:
                first = self.islands[0].folder / ADDRESS_FILE
                self._wait(first.exists, START_S, "the first island has no address", tick)
        self._wait(lambda: all(i.trains for i in self.islands), START_S, "not all islands train", tick)

    def wait_for_commits(self, count: int, tick: Callable[[], None]) -> None:
        """Wait for the first commits.

        Raises:
            ChaosError: they don't come.
        """
        self._wait(lambda: len(self.story.commits) >= count, START_S, "no commits", tick)

    def add(self, name: str, shard: int) -> Island:
        """A new, empty run folder."""
        folder = self.plan.out / name
        folder.mkdir(parents=True)
        island = Island(name, folder, shard, _free_port())
        self.islands.append(island)
        return island

    def newcomer(self) -> Island:
        """The next island that joins while the run goes on."""
        number = sum(island.name.startswith("newcomer") for island in self.islands)
        return self.add(f"newcomer-{number}", self.plan.islands + number % NEWCOMERS)

    def start_again(self, island: Island) -> None:
        """Start an island with the very command that its first process was started with."""
        self._launch(island, island.first_command)

    def start(self, island: Island, expected: int = 1) -> None:
        """Start an island's process; it joins through all that train, or the first one founds the run."""
        joins = [address for other in self.islands if (address := other.address) is not None]
        if not joins and island is not self.islands[0]:
            joins = [(self.islands[0].folder / ADDRESS_FILE).read_text(encoding="utf-8").strip()]
        host = "127.0.0.1" if self._network is None else self._network.address(island.shard)
        settings = [
            f"data.shard={island.shard}",
            f"exchange.expected_peers={expected}",
            f"exchange.listen={json.dumps([f'/ip4/{host}/tcp/{island.port}'])}",
        ]
        prefix = [] if self._network is None else self._network.enter(island.shard)
        command = [*prefix, sys.executable, "-m", "lowcomm.chaos.machine", str(island.machine)]
        command += ["train", str(self.plan.recipe), "--out", str(island.folder)]
        for address in joins:
            command += ["--join", address]
        for setting in settings:
            command += ["--set", setting]
        island.first_command = island.first_command or command
        self._launch(island, command)

    def _launch(self, island: Island, command: list[str]) -> None:
        (island.folder / ADDRESS_FILE).unlink(missing_ok=True)
        process = start_process(
            self.islands.index(island), island.folder, command, threads=1, environment={MARK: self._mark}
        )
        island.began(process, self.now_s)

    # -- watching ----------------------------------------------------------------------------------

    def poll(self, pause_s: float = TICK_S) -> None:
        """Wait a moment and take in what has happened.

        Raises:
            ChaosError: nothing has been committed for three times as long as is allowed.
        """
        self._pause.wait(pause_s)
        for island in self.islands:
            for line in island.news(self.now_s):
                if line["kind"] == "round" and line["committed"]:
                    self._on_commit(line)
        for island in self.running:
            self._look_after(island)
        self._look_for_orphans()
        self._look_for_hangs()

    def _on_commit(self, line: Line) -> None:
        if line["fragment"] != 0 or line["head"] in self._heads:
            return
        self._heads.add(line["head"])
        self.outer_step = int(line["outer_step"])
        self.credited += int(line["round_tokens"])
        participants = frozenset(map(str, line["participants"]))
        live = tuple(island.peer for island in self.live)
        self.story.commits.append(
            Commit(
                at_s=self.now_s,
                fragment=0,
                outer_step=self.outer_step,
                participants=tuple(sorted(participants)),
                live=live,
            )
        )
        self.last_participants = participants
        self._moving_s = self.now_s
        well = {island.peer for island in self.running if island.well}
        for island in self.running:
            if island.well:
                returned = island.committed(self.now_s, participants, well)
                self.story.returns += [returned] if returned else []

    def _look_after(self, island: Island) -> None:
        assert island.process is not None
        code = island.process.code
        if code is None:
            return
        if not island.leaving:
            self.story.failures.append(
                f"{island.name} ended by itself with exit code {code}; the last lines of its log:\n"
                f"{log_tail(island.folder)}"
            )
            island.ended("failed")
        else:
            island.ended("left")

    def expect_end(self, island: Island, daemons: list[ProcessKey]) -> None:
        """An island was killed: its p2pd must follow."""
        self._doomed.append((self.now_s + ORPHAN_S, island, daemons))

    def _look_for_orphans(self) -> None:
        waiting = []
        for until_s, island, daemons in self._doomed:
            left = [daemon for daemon in daemons if alive(daemon)]
            if left and self.now_s > until_s:
                self.story.orphans.append(f"{describe(left[0])} has outlived {island.name} by {ORPHAN_S:g} s")
            elif left:
                waiting.append((until_s, island, left))
        self._doomed = waiting

    def _look_for_hangs(self) -> None:
        now_s, bound_s = self.now_s, self.plan.hang_s
        if not self.last_participants or not self.able:
            self._moving_s = now_s
        if self._moving_s is not None:
            still_s = now_s - self._moving_s
            self._hung(f"commit {self.outer_step}", still_s, "nothing was committed", "the swarm")
            if still_s > 3 * bound_s:
                raise ChaosError(
                    f"nothing was committed for {still_s:.0f} s after outer step {self.outer_step}"
                )
        for island in self.running:
            if island.well or not island.trains:
                spare_s = 0.0 if island.trains else START_S - bound_s
                still_s = now_s - island.heard_s - spare_s
                self._hung(f"{island.name} {island.inner_step}", still_s, "wrote no line", island.name)

    def _hung(self, key: str, still_s: float, what: str, who: str) -> None:
        if still_s > self.plan.hang_s and key not in self._said:
            self._said.add(key)
            self.story.hangs.append(
                f"{who}: {what} for more than {self.plan.hang_s:g} s, at outer step {self.outer_step}, "
                f"{self.now_s:.0f} s"
            )

    def _wait(
        self, reached: Callable[[], bool], timeout_s: float, failure: str, tick: Callable[[], None]
    ) -> None:
        give_up_s = self.now_s + timeout_s
        while not reached():
            self.poll()
            tick()
            if self.story.failures:
                raise ChaosError(f"an island failed at the start: {self.story.failures[0]}")
            if self.now_s > give_up_s:
                logs = "\n".join(f"{i.name}:\n{log_tail(i.folder)}" for i in self.islands)
                raise ChaosError(f"{failure} after {timeout_s:.0f} s\n{logs}")

    # -- ending ------------------------------------------------------------------------------------

    def leave_all(self, tick: Callable[[], None]) -> None:
        """Ctrl-C for all; who doesn't leave in time is killed, and named."""
        self._stayed = {island.name for island in self.running}
        for island in self.running:
            island.interrupt()
        give_up_s = self.now_s + LEAVE_S
        self._moving_s = None
        while self.running and self.now_s < give_up_s:
            self._pause.wait(TICK_S)
            tick()
            for island in self.running:
                island.news(self.now_s)
                self._look_after(island)
        for island in self.running:
            self.story.hangs.append(f"{island.name} did not leave within {LEAVE_S:g} s after Ctrl-C")
            island.kill()
        give_up_s = self.now_s + ORPHAN_S
        while (left := with_variable(MARK, self._mark)) and self.now_s < give_up_s:
            self._pause.wait(TICK_S)
        self.story.orphans += [f"{describe(process)} is left at the end" for process in left]

    def tell(self) -> Story:
        """The story with what the islands wrote."""
        self.story.islands = [load_island(island.folder, island.ends) for island in self.islands]
        for log in self.story.islands:
            log.stayed = log.name in self._stayed
        return self.story

    def leads_next(self) -> Island | None:
        """Who will lead the next outer step, if the last participants are those of the next."""
        peers = [PeerId(island.peer) for island in self.healthy]
        if not peers:
            return None
        first = leader_order(peers, self.plan.config.shared.run_id, 0, self.outer_step + 1)[0]
        return next(island for island in self.healthy if island.peer == first)


def _free_port() -> int:
    """A TCP port that nobody listens on now, and that no outgoing connection is given meanwhile."""
    while True:
        port = PORTS[secrets.randbelow(len(PORTS))]
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("", port))
            return port
