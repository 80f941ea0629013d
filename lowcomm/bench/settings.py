"""The settings of all benches, a dataclass each; the options of `lowcomm bench NAME` are its fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from lowcomm import codecs
from lowcomm.bench.options import NEEDED, Settings, count, mib, option, seconds
from lowcomm.errors import ConfigError

FLOAT_BYTES = 4
STATE_BYTES = 8
"""Of a parameter's outer state: anchor and momentum in fp32."""
JOINING = "one island on each host"

Part = Literal["participant", "leader", "bootstrap"]
Stop = Literal["SIGKILL", "SIGSTOP"]
Partition = Literal["majority", "continue"]


@dataclass(frozen=True, kw_only=True)
class CodecBench(Settings):
    """Bits, error and speed of all codecs."""

    NAME, MODULE = "codecs", "lowcomm.bench.codecs"
    ABOUT = "bits, error and speed of all codecs on real pseudo-gradients"
    EXAMPLE = "lowcomm bench codecs --json codecs.json"

    payload_mib: float = mib(64.0, "fp32 numbers that are timed")
    inner_steps: int = count(30, "between two rounds")
    rounds: int = count(8, "pseudo-gradients, one after the other")
    repeats: int = count(7, "of each timing; the fastest counts")


@dataclass(frozen=True, kw_only=True)
class Site(Settings):
    """Where and with whom an island takes part that is started once on each host."""

    run_id: str | None = option(
        None, "be one island of this run; equal on all hosts", metavar="ID", group=JOINING
    )
    islands: int | None = option(
        None, "islands of the run, this one included", metavar="N", least=1, group=JOINING
    )
    initial_peers: tuple[str, ...] = option(
        (), "what the first island wrote to its address file; none on the first", metavar="ADDR",
        group=JOINING,
    )  # fmt: skip
    address_file: Path | None = option(None, "write this island's address to F", metavar="F", group=JOINING)
    payload_mib: float = option(25.0, "MiB of fp32 before encoding", metavar="MIB", above=0, group=JOINING)
    codec: str = option("fp32", "how they are encoded", choices=codecs.NAMES)
    deadline_s: float = seconds(120.0, "longest wait of and for a peer")

    def check_site(self) -> None:
        """Refuse what says no run.

        Raises:
            ConfigError: no run, or no number of islands.
        """
        if not self.run_id or self.islands is None or self.islands < 2:
            raise ConfigError("bench: expected --run-id ID and --islands N of at least 2, equal on all hosts")


@dataclass(frozen=True, kw_only=True)
class RoundBench(Site):
    """Rounds of a bare tensor."""

    NAME, MODULE = "round", "lowcomm.bench.rounds"
    ABOUT = "time rounds over the real swarm: processes of this machine, or one island of several hosts"
    EXAMPLE = "lowcomm bench round --peers 2,4,8 --payload-mb 0 --rounds 20 --stock --json rounds.json"

    peers: tuple[int, ...] = option((2,), "numbers of peers", metavar="N,N", least=2)
    payload_mb: tuple[float, ...] = option(
        (0.0,),
        "megabytes (1e6) of fp32 numbers before encoding; 0 = one number, which leaves the round's forming",
        metavar="MB,MB", least=0,
    )  # fmt: skip
    rounds: int = count(20, "rounds that count")
    warmup: int = count(2, "rounds before them")
    stock: bool = option(
        False, "measure stock hivemind beside it, uncompressed; if it fails, ours stay (exit code 1)"
    )
    listen: str | None = option(
        None, "multiaddr of a peer, {number} = which one", metavar="ADDR",
        shown="loopback; all interfaces with --run-id",
    )  # fmt: skip
    prefix: str = option(
        "", "put before the command of each peer, e.g. 'ip netns exec site{number}'", metavar="COMMAND"
    )

    def check(self) -> None:
        """See `Settings`."""
        super().check()
        if self.run_id is not None:
            if self.stock or self.prefix:
                raise ConfigError(
                    "--run-id is one island of several hosts; --stock and --prefix start processes here"
                )
            self.check_site()
        elif self.islands is not None or self.initial_peers or self.address_file:
            raise ConfigError("--islands, --initial-peers and --address-file: expected --run-id ID with them")


@dataclass(frozen=True, kw_only=True)
class UtilisationBench(Site):
    """Inner steps that are waited through, and rounds beside them."""

    NAME, MODULE = "utilisation", "lowcomm.bench.utilisation"
    ABOUT = "measure what part of the time an island trains, a timed wait in place of the compute"
    EXAMPLE = (
        "lowcomm bench utilisation --run-id b --islands 2 --address-file A --step-s 0.1 --steps 300 "
        "--inner-steps 50 --num-fragments 5 --delay 5 --codec int4 --mode streaming --json F"
    )

    step_s: float = seconds(0.1, "one inner step")
    steps: int = count(300, "inner steps")
    inner_steps: int = count(50, "between rounds", metavar="H")
    num_fragments: int = count(1, "fragments", metavar="P")
    delay: str = option("0", "steps of room for a round, or auto", metavar="D")
    mode: Literal["blocking", "streaming"] = option(
        "streaming", "blocking = one fragment, no delay, whatever is given"
    )
    listen: str | None = option(None, "multiaddr to listen on", metavar="ADDR", shown="all interfaces")

    def check(self) -> None:
        """See `Settings`."""
        super().check()
        if self.delay != "auto" and not self.delay.isdecimal():
            raise ConfigError(f"--delay: expected a number of inner steps or auto, got {self.delay}")
        self.check_site()


@dataclass(frozen=True, kw_only=True)
class OverheadBench(Settings):
    """What `OuterLoop` costs between rounds, on one thread."""

    NAME, MODULE = "overhead", "lowcomm.bench.overhead"
    ABOUT = "time what OuterLoop costs in the inner steps between rounds"
    EXAMPLE = (
        "lowcomm bench overhead --json overhead.json\n"
        "         torchrun --standalone --nproc-per-node 2 -m lowcomm bench overhead --engine fsdp2"
    )

    engine: Literal["plain", "ddp", "fsdp2", "deepspeed"] = option(
        "plain", "the island's engine; all but plain under torchrun"
    )
    exchange: Literal["loopback", "swarm"] = option("loopback", "the network, without another peer")
    blocks: int = count(30, "pairs of blocks")
    steps: int = count(10, "inner steps in each")
    pairs: int = count(300, "pairs of neighbouring steps")


@dataclass(frozen=True, kw_only=True)
class CheckpointBench(Settings):
    """For how long training stands still for a checkpoint."""

    NAME, MODULE = "checkpoint", "lowcomm.bench.checkpoint"
    ABOUT = "time for how long training stands still while a checkpoint is saved"
    EXAMPLE = "lowcomm bench checkpoint --mb 200 --json checkpoint.json"

    mb: float = option(200.0, "size of a checkpoint", metavar="MB", above=0)
    saves: int = count(5, "checkpoints, written beside training and with it waiting")
    steps: int = count(5, "inner steps between two")
    batch_size: int = count(8, "windows of an inner step")


@dataclass(frozen=True, kw_only=True)
class SpeedBench(Settings):
    """Islands of unlike speed.

    Attributes:
        steps_s: the wait makes up what computing doesn't take.
        slow_by: how many times slower it gets.
        deadline_s: longest wait of and for an island.
    """

    NAME, MODULE = "speeds", "lowcomm.bench.speeds"
    ABOUT = "three islands at 1x, 2x, 4x speed: idle share and loss with fixed and matched inner steps"
    EXAMPLE = "lowcomm bench speeds --json speeds.json"
    CONTEXT: ClassVar[int] = 64
    BATCH: ClassVar[int] = 4

    steps_s: tuple[float, ...] = seconds(
        (0.15, 0.3, 0.6), "seconds of an inner step of each island", metavar="S,S,S"
    )
    inner_steps: int = count(24, "of the fastest", metavar="H")
    rounds: int = count(64, "of the matched run; fixed trains equal tokens")
    slow_rounds: int = option(12, "of the run in which one slows", metavar="N", least=6)
    slow_island: int = option(0, "which island slows down 4 times", metavar="I", least=0)
    slow_by: float = 4.0
    seed: int = option(0, "of weights and data", metavar="N")
    deadline_s: float = 300.0

    def check(self) -> None:
        """See `Settings`."""
        super().check()
        islands = len(self.steps_s)
        if islands < 2:
            raise ConfigError(f"--steps-s: expected the seconds of at least 2 islands, got {islands}")
        if self.slow_island >= islands:
            raise ConfigError(
                f"--slow-island: expected an island from 0 to {islands - 1}, got {self.slow_island}"
            )

    def interval(self, island: int, steps_s: Sequence[float]) -> float:
        """Inner steps of an island in the time that the fastest takes for H."""
        return self.inner_steps * min(steps_s) / steps_s[island]

    @property
    def tokens(self) -> int:
        """Of a round in which all are due together."""
        steps = sum(int(self.interval(island, self.steps_s) + 0.25) for island in range(len(self.steps_s)))
        return steps * self.CONTEXT * self.BATCH

    @property
    def slowed_steps_s(self) -> tuple[float, ...]:
        """`steps_s` after one has slowed down."""
        factors = [self.slow_by if i == self.slow_island else 1.0 for i in range(len(self.steps_s))]
        return tuple(step_s * factor for step_s, factor in zip(self.steps_s, factors, strict=True))


@dataclass(frozen=True, kw_only=True)
class EngineBench(Settings):
    """Islands of unlike engines against plain ones."""

    NAME, MODULE = "engines", "lowcomm.bench.engines"
    ABOUT = "a plain, an FSDP2 and a ZeRO-3 island in one run, against three plain ones on the same data"
    EXAMPLE = "lowcomm bench engines --json engines.json"

    outer_steps: int = count(20, "of each run")
    inner_steps: int = count(10, "per outer step", metavar="H")
    seeds: int = count(3, "of the plain runs, for their spread; unlike islands have the first one")


@dataclass(frozen=True, kw_only=True)
class SnapshotBench(Settings):
    """A snapshot that is cut in mid-transfer."""

    NAME, MODULE = "snapshot", "lowcomm.bench.snapshots"
    ABOUT = "kill the joiner, then a donor, in the middle of a snapshot, and count the bytes"
    EXAMPLE = "lowcomm bench snapshot --payload-mib 400 --json snapshot.json"

    payload_mib: float = mib(400.0, "MiB of the state")
    donors: int = count(2, "islands that have it")
    cut: float = option(0.5, "share that has come by then", metavar="SHARE", above=0, below=1)
    mbit_s: float = option(0.0, "upload of each donor; 0 = unlimited", metavar="RATE", least=0)
    deadline_s: float = seconds(120.0, "longest wait of and for a peer")

    def check(self) -> None:
        """See `Settings`."""
        super().check()
        if self.donors < 2:
            raise ConfigError(f"--donors: expected at least 2, so that one may die, got {self.donors}")

    @property
    def elements(self) -> int:
        """Parameters."""
        return max(1, int(self.payload_mib * 2**20) // STATE_BYTES)

    @property
    def size_bytes(self) -> int:
        """Of the state."""
        return STATE_BYTES * self.elements


@dataclass(frozen=True, kw_only=True)
class DonorBench(Settings):
    """What a snapshot costs those who hand it over.

    Attributes:
        donors: islands that have the state.
        step_s: timed wait of an inner step.
        deadline_s: longest wait of and for a peer.
    """

    NAME, MODULE = "donors", "lowcomm.bench.donors"
    ABOUT = "time the inner steps of two islands that train, without and while a third takes a snapshot"
    EXAMPLE = "lowcomm bench donors --payload-mib 200 --json donors.json"

    payload_mib: float = mib(200.0, "MiB of the state")
    donors: int = 2
    mbit_s: float = option(100.0, "upload of each; 0 = unlimited", metavar="RATE", least=0)
    step_s: float = 0.1
    before_s: float = seconds(10.0, "timed before the third comes")
    deadline_s: float = 120.0

    @property
    def elements(self) -> int:
        """Parameters."""
        return max(1, int(self.payload_mib * 2**20) // STATE_BYTES)


@dataclass(frozen=True, kw_only=True)
class DeathBench(Settings):
    """An island that stops in the middle of a round.

    Attributes:
        inner_steps, step_s: between two rounds, and the timed wait of each.
        warm_rounds: until it has heard 10 s of heartbeats, a peer takes another one for silent after
            `lease_s` (5 s) only.
    """

    NAME, MODULE = "deaths", "lowcomm.bench.deaths"
    ABOUT = "kill or freeze one of three islands in the middle of a round, and time the others"
    EXAMPLE = "lowcomm bench deaths --json deaths.json"

    parts: tuple[Part, ...] = option(get_args(Part), "the victim in turn", shown="all")
    signals: tuple[Stop, ...] = option(get_args(Stop), "how it stops", shown="both")
    payload_mib: float = mib(32.0, "MiB of a pseudo-gradient")
    inner_steps: int = 50
    step_s: float = 0.02
    warm_rounds: int = count(12, "rounds before the fault")
    deadline_s: float = seconds(5.0, "deadline of a round")
    partition: Partition = option("majority", "who may commit")

    @property
    def elements(self) -> int:
        """Parameters."""
        return max(1, int(self.payload_mib * 2**20) // FLOAT_BYTES)


@dataclass(frozen=True, kw_only=True)
class ChurnBench(Settings):
    """Islands that come and go.

    Attributes:
        events: those of the first islands and of the end left out.
        kill_share: of the leaves that are a SIGKILL.
        elements, codec: of the model and of its pseudo-gradients.
        inner_steps, step_s: between two rounds, and the timed wait of each.
        deadline_s: of a round.
        unit_samples, step_samples: in a unit that islands lease, and in an inner step.
        settle_s: after the last event, so that what islands held that were killed is given back, and trained.
    """

    NAME, MODULE = "churn", "lowcomm.bench.churn"
    ABOUT = "let islands join and leave all the time, and see who takes part in each round"
    EXAMPLE = "lowcomm bench churn --events 200 --json churn.json"

    events: int = count(200, "joins and leaves together")
    islands: int = count(5, "at the start, and at most at a time")
    every_s: float = seconds(1.5, "between two of them, at least")
    kill_share: float = 0.5
    elements: int = 65_536
    codec: str = "fp32"
    inner_steps: int = 20
    step_s: float = 0.05
    deadline_s: float = 10.0
    unit_samples: int = 16
    step_samples: int = 8
    settle_s: float = seconds(75.0, "after the last event: what was killed gives its units back after 60")
    seed: int = option(0, "who leaves, and how", metavar="N")
    partition: Partition = option("majority", "who may commit")

    def check(self) -> None:
        """See `Settings`."""
        super().check()
        if self.islands < 5:
            raise ConfigError(
                f"--islands: expected at least 5, so that three stay when one leaves and one comes, "
                f"got {self.islands}"
            )


@dataclass(frozen=True, kw_only=True)
class SoakBench(Settings):
    """A run of many rounds."""

    NAME, MODULE = "soak", "lowcomm.bench.soak"
    ABOUT = "run many thousand rounds, and compare what they cost at the end with what they cost early"
    EXAMPLE = "lowcomm bench soak --rounds 20000 --json soak.json"

    rounds: int = option(20_000, "of all islands", metavar="N", least=100)
    islands: int = option(2, "at a time", metavar="N", least=2)
    virtual: bool = option(False, "on the simulator's clock, in one process, instead of real processes")


@dataclass(frozen=True, kw_only=True)
class ScaleBench(Settings):
    """Swarms of several sizes, on the virtual clock.

    Attributes:
        lease_s: of each island.
    """

    NAME, MODULE = "scale", "lowcomm.bench.scale"
    ABOUT = "messages, bytes and processor time of control per island and round, as the swarm grows"
    EXAMPLE = "lowcomm bench scale --islands 4,8,16,32,64 --fragments 1,24 --json scale.json"

    islands: tuple[int, ...] = option((4, 8, 16, 32, 64), "of each swarm", metavar="N,...", least=2)
    fragments: tuple[int, ...] = option((1,), "of the model", metavar="P,...", least=1)
    rounds: int = count(3, "that are measured")
    round_s: float = seconds(2.0, "virtual, between two rounds of a fragment")
    partition: Partition = option("continue", "who may commit")
    lease_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class LearningBench(Settings):
    """The runs of a study."""

    NAME, MODULE = "learning", "lowcomm.bench.learning"
    ABOUT = "train the runs of a study: islands, data-parallel, an island alone"
    EXAMPLE = "lowcomm bench learning recipes/studies/two_islands.toml --log learning.jsonl --jobs 2"

    study: Path = option(NEEDED, "the runs, their settings and seeds", metavar="STUDY.toml", positional=True)
    log: Path = option(NEEDED, "a line per run; runs that are in it are not repeated", metavar="F")
    jobs: int = count(1, "runs at a time, each a process")


@dataclass(frozen=True, kw_only=True)
class CorpusBench(Settings):
    """A corpus that is built, and one whose build is killed."""

    NAME, MODULE = "corpus", "lowcomm.bench.corpus"
    ABOUT = "build a corpus beside datasets.map, then kill a build again and again (needs lowcomm[data,hub])"
    EXAMPLE = "lowcomm bench corpus --text-mib 32 --json corpus.json"

    text_mib: float = mib(32.0, "of text")
    vocabulary: int = count(32_000, "tokens of the BPE", least=257)
    processes: int = option(0, "that work at a time", metavar="N", least=0, shown="one for each processor")
    repeats: int = count(3, "of each; the median counts")
    kills: int = option(5, "of a further build", metavar="N", least=0)


@dataclass(frozen=True, kw_only=True)
class ReadingBench(Settings):
    """Readers of tokens, and what they cost."""

    NAME, MODULE = "reading", "lowcomm.bench.reading"
    ABOUT = "tokens/s of a rank beside numpy, datasets and mosaicml-streaming; memory, first batch, HTTP"
    EXAMPLE = "lowcomm bench reading --gb 1,8 --json reading.json"

    gb: tuple[float, ...] = option(
        (1.0, 8.0), "of tokens, for memory and the first batch", metavar="GB,...", above=0
    )
    compared_gb: float = option(0.25, "of tokens, for speeds", metavar="GB", above=0)
    mbit_s: float = option(100.0, "of the HTTP server", metavar="MBIT", above=0)
    context: int = count(1024, "tokens in a window")
    batch_size: int = count(12, "windows")
    batches: int = count(2000, "that are timed")
    trained_tokens: int = option(
        1_500_000, "that an island trains on, its link twice as fast", metavar="N", least=200_000
    )


BENCHES: dict[str, type[Settings]] = {
    bench.NAME: bench
    for bench in (
        CodecBench, RoundBench, UtilisationBench, OverheadBench, CheckpointBench, SpeedBench, EngineBench,
        SnapshotBench, DonorBench, DeathBench, ChurnBench, SoakBench, ScaleBench, LearningBench,
        CorpusBench, ReadingBench,
    )
}  # fmt: skip
