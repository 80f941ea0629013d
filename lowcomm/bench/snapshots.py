"""A snapshot that is cut in mid-transfer: how many bytes it takes in the end.

Real processes over the real swarm on this machine: donors that have committed more than a joiner could
replay, and an island that joins. Either the joiner is killed when part of the state has come, and started
again in its folder, or a donor is killed, and the others send what it owed. A byte counts when it has
gone through a socket, also if it was lost with the process that it was for.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lowcomm.bench.children import Children
from lowcomm.errors import ExchangeError
from lowcomm.types import Json

BYTES_PER_PARAMETER = 8
"""Of a state: anchor and momentum in fp32."""
ROUNDS = 3
"""Of fp32 updates, each half a state: more than is kept, so that a joiner has to take a snapshot."""

Who = Literal["joiner", "donor"]


@dataclass(frozen=True, kw_only=True)
class SnapshotBench:
    """What to measure.

    Attributes:
        payload_mib: MiB (2^20) of the state.
        donors: islands that have it, at least 2.
        cut: share of the state that has come when the joiner dies, or that the donors have sent.
        mbit_s: upload rate of each donor; 0 = unlimited.
        deadline_s: longest wait of and for a peer.
    """

    payload_mib: float = 400.0
    donors: int = 2
    cut: float = 0.5
    mbit_s: float = 0.0
    deadline_s: float = 120.0

    @property
    def elements(self) -> int:
        """Parameters."""
        return max(1, int(self.payload_mib * 2**20) // BYTES_PER_PARAMETER)

    @property
    def size_bytes(self) -> int:
        """Of the state."""
        return BYTES_PER_PARAMETER * self.elements


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


def measure_cut(bench: SnapshotBench, killed: Who) -> Cut:
    """Cut one transfer and let it end.

    Raises:
        ExchangeError: a peer failed, stayed silent past the deadline, or was through before the cut.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lowcomm-bench-") as folder,
        Children("lowcomm.bench.snapshot_peer", deadline_s=2 * bench.deadline_s) as children,
    ):
        return _Scene(bench, Path(folder), children).cut(killed)


class _Scene:
    def __init__(self, bench: SnapshotBench, folder: Path, children: Children) -> None:
        self._bench, self._folder, self._children = bench, folder, children
        self._addresses: list[Json] = []

    def cut(self, killed: Who) -> Cut:
        bench, children = self._bench, self._children
        cut_bytes = int(bench.cut * bench.size_bytes)
        donors = range(bench.donors)
        for number in donors:
            last = killed == "donor" and number == bench.donors - 1
            self._start(f"donor-{number}", rounds=ROUNDS, dies=cut_bytes // bench.donors if last else 0)
        for number in donors:
            children.wait_for(number, "joined")
            for _ in range(ROUNDS):
                event = children.wait_for(number, "round")
                if not event["committed"]:
                    raise ExchangeError(f"a round before the snapshot was not committed: {event['reason']}")
        sent, digest = self._sent(bench.donors)
        if killed == "donor":
            joiner = self._start("joiner")
            joined = children.wait_for(joiner, "joined")
            before_bytes = int(children.wait_for(bench.donors - 1, "dies")["moved_bytes"])
            total_bytes = int(joined["received_bytes"])
        else:
            first = self._start("joiner", dies=cut_bytes)
            before_bytes = int(children.wait_for(first, "dies")["moved_bytes"])
            children.wait_for_end(first)
            joiner = self._start("joiner")
            joined = children.wait_for(joiner, "joined")
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
        number = self._children.start(
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
        address = self._children.wait_for(number, "address")["address"]
        self._addresses = self._addresses or [address]
        return number

    def _sent(self, donors: int) -> tuple[int, str]:
        """Bytes that all donors have sent since they started, and the digest of their state."""
        events = [self._children.ask(number, "traffic") for number in range(donors)]
        digests = {str(event["digest"]) for event in events}
        if len(digests) != 1:
            raise ExchangeError(f"expected one state at all donors, got {sorted(digests)}")
        return sum(int(event["sent_bytes"]) for event in events), digests.pop()
