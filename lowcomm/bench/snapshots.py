"""A snapshot that is cut in mid-transfer: how many bytes it takes in the end.

Real processes over the real swarm on this machine: donors that have committed more than a joiner could
replay, and an island that joins. Either the joiner is killed when part of the state has come, and started
again in its folder, or a donor is killed, and the others send what it owed. A byte counts when it has
gone through a socket, also if it was lost with the process that it was for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lowcomm import codecs
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.payload import Payload, bench_swarm
from lowcomm.bench.peer import PROGRAM, Peer
from lowcomm.bench.settings import SnapshotBench
from lowcomm.errors import ExchangeError
from lowcomm.launching.children import Children
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.types import Json

ROUNDS = 3
"""Of fp32 updates, each half a state: more than is kept, so that a joiner has to take a snapshot."""
LOOK_S = 0.002

Who = Literal["joiner", "donor"]
VICTIMS: tuple[Who, ...] = ("joiner", "donor")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One transfer that was cut.

    Attributes:
        killed: the process that was.
        size_bytes: of the state.
        before_bytes: what had come to, or been sent by, the killed process when it died.
        total_bytes: what had when the joiner had the whole state, in both attempts together.
        join_s: of the joiner that got there, its start left out.
        equal: whether its state has the donors' digest.
    """

    killed: Who
    size_bytes: int
    before_bytes: int
    total_bytes: int
    join_s: float
    equal: bool

    HEADINGS: ClassVar[tuple[str, ...]] = (
        "killed", "state", "moved before", "moved in all", "of the state", "joined in", "equal",
    )  # fmt: skip

    @property
    def ratio(self) -> float:
        """Bytes moved over those of the state."""
        return self.total_bytes / self.size_bytes

    def row(self) -> tuple[str, ...]:
        """Under `HEADINGS`."""
        return (
            self.killed,
            f"{self.size_bytes / 2**20:,.0f} MiB",
            f"{self.before_bytes / 2**20:,.1f} MiB",
            f"{self.total_bytes / 2**20:,.1f} MiB",
            f"{self.ratio:.3f}",
            f"{self.join_s:.1f} s",
            "yes" if self.equal else "NO",
        )

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {**asdict(self), "ratio": self.ratio}


def run(bench: SnapshotBench, tell: Tell) -> Outcome:
    """For `lowcomm bench snapshot`."""
    cuts: list[Cut] = []
    for killed in VICTIMS:
        cuts.append(measure_cut(bench, killed))
        tell(f"{killed} killed: {cuts[-1].ratio:.3f} of the state were moved")
    settings: dict[str, Json] = {"donors": bench.donors, "cut": bench.cut, "mbit_s": bench.mbit_s}
    wrong = ["expected the joiner to have the donors' state, got another digest"]
    return Outcome(
        log={"snapshot": {**settings, "cuts": [cut.to_dict() for cut in cuts]}},
        headings=Cut.HEADINGS,
        rows=[cut.row() for cut in cuts],
        errors=[] if all(cut.equal for cut in cuts) else wrong,
    )


def measure_cut(bench: SnapshotBench, killed: Who) -> Cut:
    """Cut one transfer and let it end.

    Raises:
        ExchangeError: a peer failed, stayed silent past the deadline, or was through before the cut.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lowcomm-bench-") as folder,
        Children(PROGRAM, "snapshots", deadline_s=2 * bench.deadline_s) as peers,
    ):
        return _Scene(bench, Path(folder), peers).cut(killed)


class _Scene:
    def __init__(self, bench: SnapshotBench, folder: Path, peers: Children) -> None:
        self._bench, self._folder, self._peers = bench, folder, peers
        self._addresses: list[Json] = []

    def cut(self, killed: Who) -> Cut:
        bench, peers = self._bench, self._peers
        cut_bytes = int(bench.cut * bench.size_bytes)
        donors = range(bench.donors)
        for number in donors:
            last = killed == "donor" and number == bench.donors - 1
            self._start(f"donor-{number}", rounds=ROUNDS, dies=cut_bytes // bench.donors if last else 0)
        for number in donors:
            peers.wait_for(number, "joined")
            for _ in range(ROUNDS):
                event = peers.wait_for(number, "round")
                if not event["committed"]:
                    raise ExchangeError(f"a round before the snapshot was not committed: {event['reason']}")
        sent, digest = self._sent(bench.donors)
        if killed == "donor":
            joiner = self._start("joiner")
            joined = peers.wait_for(joiner, "joined")
            before_bytes = int(peers.wait_for(bench.donors - 1, "dies")["moved_bytes"])
            total_bytes = int(joined["received_bytes"])
        else:
            first = self._start("joiner", dies=cut_bytes)
            before_bytes = int(peers.wait_for(first, "dies")["moved_bytes"])
            peers.wait_for_end(first)
            joiner = self._start("joiner")
            joined = peers.wait_for(joiner, "joined")
            total_bytes = self._sent(bench.donors)[0] - sent
        if joined["how"] != "snapshot":
            raise ExchangeError(f"expected the joiner to take a snapshot, it was {joined['how']}")
        return Cut(
            killed=killed,
            size_bytes=bench.size_bytes,
            before_bytes=before_bytes,
            total_bytes=total_bytes,
            join_s=float(joined["join_s"]),
            equal=joined["digest"] == digest,
        )

    def _start(self, name: str, *, rounds: int = 0, dies: int = 0) -> int:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        number = self._peers.start(
            {
                "elements": self._bench.elements,
                "donors": self._bench.donors,
                "rounds": rounds,
                "dies_after_bytes": dies,
                "initial_peers": self._addresses,
                "folder": str(folder),
                "mbit_s": self._bench.mbit_s,
                "deadline_s": self._bench.deadline_s,
            }
        )
        address = self._peers.wait_for(number, "address")["address"]
        self._addresses = self._addresses or [address]
        return number

    def _sent(self, donors: int) -> tuple[int, str]:
        """Bytes that all donors have sent since they started, and the digest of their state."""
        events = [self._peers.ask(number, "traffic") for number in range(donors)]
        digests = {str(event["digest"]) for event in events}
        if len(digests) != 1:
            raise ExchangeError(f"expected one state at all donors, got {sorted(digests)}")
        return sum(int(event["sent_bytes"]) for event in events), digests.pop()


def take_part(peer: Peer) -> None:
    """A donor that has committed rounds, or the island that joins; with `dies_after_bytes` it ends itself by
    SIGKILL in mid-transfer, as a machine that loses power would."""
    settings = peer.settings
    rounds, donors, dies_after = settings["rounds"], settings["donors"], settings["dies_after_bytes"]
    payload = Payload(settings["elements"], seed=peer.number)
    outer = OuterLoop(
        payload.island(),
        bench_swarm(settings),
        schedule=Schedule(inner_steps=1),
        codec=codecs.fp32(),
        outer_optimizer=nesterov(lr=1.0, momentum=0.5),
        round_policy=RoundPolicy(min_participants=donors, deadline_s=settings["deadline_s"]),
        expected_peers=donors if rounds else 1,
        gather_timeout_s=settings["deadline_s"],
        folder=Path(settings["folder"]),
        snapshot_mbit_s=settings["mbit_s"],
    )
    with contextlib.closing(outer):
        began_s = peer.clock.monotonic_s()
        outer.connect(on_address=lambda address: peer.tell("address", address=address))
        if dies_after and not rounds:
            _die_after(peer, dies_after, lambda: outer.traffic.received_bytes)
        report = outer.join()
        peer.tell(
            "joined",
            how=report.how,
            snapshot_bytes=report.snapshot_bytes,
            received_bytes=outer.traffic.received_bytes,
            join_s=peer.clock.monotonic_s() - began_s,
            digest=outer.digest,
        )
        for _ in range(rounds):
            payload.train()
            (done,) = outer.step(tokens=1)
            peer.tell("round", committed=done.committed, reason=done.reason)
        if dies_after and rounds:
            _die_after(peer, dies_after, lambda: outer.traffic.sent_bytes)
        while peer.hear():
            peer.tell("traffic", sent_bytes=outer.traffic.sent_bytes, digest=outer.digest)


def _die_after(peer: Peer, moved_bytes: int, count: Callable[[], int]) -> None:
    """End this process without a word once it has moved so many bytes more; p2pd ends with it."""
    start = count()

    def watch() -> None:
        while count() - start < moved_bytes:
            peer.wait(LOOK_S)
        peer.tell("dies", moved_bytes=count() - start)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
