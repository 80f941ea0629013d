"""What people write in place of the right argument: taken where it is plain, else named in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lowcomm import (
    OuterLoop,
    RoundPolicy,
    Schedule,
    Trainer,
    codecs,
    exchanges,
    load_config,
    nesterov,
    wrap_island,
)
from lowcomm.algorithms.aggregation.median import CoordinateMedian
from lowcomm.errors import ArgumentError, ConfigError, LowcommError
from lowcomm.rounds.claims import Limits
from tests.outer.swarm import make_model

ROOT = Path(__file__).parents[2]


def alone(run_id="t"):
    return exchanges.loopback(exchanges.hub(), run_id=run_id, peer_id="a", founder=True)


def island():
    model = make_model()
    return wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.1))


class Linked:
    """A part of an exchange of a user's own."""

    async def start(self, receiver, met=()): ...

    async def send(self, peer, message): ...


def loop(**changes):
    given = {
        "island": island(),
        "exchange": alone(),
        "schedule": Schedule(inner_steps=2),
        "codec": codecs.fp32(),
        "outer_optimizer": nesterov(),
    }
    return OuterLoop(**{**given, **changes})


TAKEN = {
    "codec": ("codec", "int8"),
    "sparse codec": ("codec", "topk"),
    "outer optimizer": ("outer_optimizer", "nesterov"),
    "aggregation": ("aggregation", "median"),
    "numpy peers": ("expected_peers", np.int64(1)),
    "float peers": ("expected_peers", 1.0),
    "int seconds": ("gather_timeout_s", 5),
    "numpy seconds": ("lease_s", np.float32(9)),
    "list of the user's settings": ("shared", {"inner.lr": 1e-3, "inner.betas": [0.9, 0.95], "x": None}),
    "address": ("on_address", print),
}


@pytest.mark.parametrize(("name", "value"), TAKEN.values(), ids=TAKEN)
def test_what_is_plain_is_taken(name, value):
    with loop(**{name: value}) as outer:
        outer.step(tokens=1)
        [report] = outer.step(tokens=1)
        assert report.committed


def test_a_folder_may_be_a_string(tmp_path):
    with loop(folder=str(tmp_path)) as outer:
        [report] = [report for _ in range(2) for report in outer.step(tokens=1)]
    assert report.committed
    assert (tmp_path / "ledger.jsonl").read_text().count("\n") == 1


def test_numbers_of_numpy_are_those_of_python_on_the_wire():
    schedule = Schedule(inner_steps=np.int64(2), num_fragments=torch.tensor(1), merge_alpha=np.float32(0.5))
    assert schedule == Schedule(inner_steps=2, merge_alpha=0.5)
    assert [type(value) for value in (schedule.inner_steps, schedule.num_fragments)] == [int, int]
    assert type(RoundPolicy(min_participants=np.int32(2)).min_participants) is int
    with loop(
        schedule=schedule, outer_optimizer=nesterov(lr=np.float32(0.5), momentum=np.float64(0.5))
    ) as outer:
        assert [r.committed for _ in range(2) for r in outer.step(tokens=1)] == [True]


class Odd:
    """An outer optimizer whose step lacks an argument."""

    settings = {"name": "odd"}  # noqa: RUF012

    def step(self, anchor, momentum, mean):
        pass


REFUSED = {
    "model in place of the island": (
        "island",
        make_model(),
        r"expected what wrap_island\(model, optimizer\) gives",
    ),
    "no island": ("island", None, "got None"),
    "text as exchange": ("exchange", "swarm", r"expected what exchanges.swarm\(.*\) gives, got 'swarm'"),
    "no exchange": ("exchange", None, "on the island's lead rank, got None"),
    "half an exchange": (
        "exchange",
        Linked(),
        r"got .*\(Linked\), which has no `traffic`",
    ),
    "factory as exchange": ("exchange", exchanges.swarm, r"call it: swarm\(...\)"),
    "steps as schedule": ("schedule", 100, r"expected a Schedule, e.g. Schedule\(inner_steps=100\), got 100"),
    "text as schedule": ("schedule", "100", r"Schedule\(inner_steps=100\), got '100'"),
    "unknown codec": ("codec", "int9", "expected one of fp32, .*, got 'int9'"),
    "factory as codec": ("codec", codecs.int8, r"got <function int8 .*> \(function\); call it: int8\(...\)"),
    "number as codec": (
        "codec",
        8,
        r"expected one of fp32, .* as a string, or what codecs.int8\(\) .*, got 8",
    ),
    "torch's optimizer": (
        "outer_optimizer",
        torch.optim.SGD(make_model().parameters(), lr=0.7, momentum=0.9, nesterov=True),
        r"nesterov\(\), or .*step\(anchor, .*\), got SGD .*nesterov\(lr, momentum\) is SGD with",
    ),
    "torch's class": ("outer_optimizer", torch.optim.SGD, r"nesterov\(\), or an object"),
    "factory as optimizer": ("outer_optimizer", nesterov, r"call it: nesterov\(...\)"),
    "other name": ("outer_optimizer", "adamw", "expected one of nesterov, .* got 'adamw'"),
    "no optimizer": ("outer_optimizer", None, "got None"),
    "step of other arguments": ("outer_optimizer", Odd(), r"nesterov\(\), or an object"),
    "unknown rule": ("aggregation", "mode", "expected one of mean, .*, got 'mode'"),
    "rule's class": ("aggregation", CoordinateMedian, "expected one of mean"),
    "number as policy": (
        "round_policy",
        2,
        r"expected a RoundPolicy, e.g. RoundPolicy\(min_participants=2\)",
    ),
    "nobody": ("expected_peers", 0, "expected a whole number of at least 1, got 0; this island counts"),
    "less than nobody": ("expected_peers", -1, "got -1"),
    "text as number": ("expected_peers", "2", "got '2'"),
    "half an island": ("expected_peers", 1.5, "got 1.5"),
    "bool as number": ("expected_peers", True, "got True"),
    "word as flag": ("found", "yes", "expected True or False, got 'yes'"),
    "negative wait": ("gather_timeout_s", -1, "expected a number of at least 0, got -1"),
    "endless wait": ("gather_timeout_s", float("inf"), "got inf"),
    "no heartbeat": ("heartbeat_s", 0, "expected a number above 0, got 0"),
    "text as seconds": ("heartbeat_s", "1s", "got '1s'"),
    "lease below the heartbeat": ("lease_s", 0.5, "expected at least twice heartbeat_s = 1, got 0.5"),
    "no bytes": ("chunk_bytes", 0, "expected a whole number from 4 to 4,194,304, got 0"),
    "too many bytes": ("chunk_bytes", 1 << 30, "got 1073741824"),
    "negative shard": ("shard", -2, "expected a whole number of at least -1, got -2"),
    "negative shards": ("num_shards", -1, "got -1"),
    "shards that nobody could look at": ("num_shards", 10**15, "expected a whole number from 0 to 1,000,000"),
    "negative updates": ("keep_updates", -1, "got -1"),
    "negative rate": ("snapshot_mbit_s", -1, "got -1"),
    "number as folder": ("folder", 7, "expected a path, e.g. 'runs/x', or None, got 7"),
    "empty folder": ("folder", "", "expected a path"),
    "zero byte in the folder": ("folder", "a\0b", "expected a path"),
    "number as a switch of metrics": ("metrics", 1, "metrics: expected True or False, got 1"),
    "unknown mode of wandb": ("wandb", "on", "wandb: expected one of off, auto, online, offline, got "),
    "wandb without a folder": (
        "wandb",
        "offline",
        "expected off without a folder for its files, got offline",
    ),
    "list as settings": ("shared", [1], r"expected names and plain values, .*, got \[1\]"),
    "tensor as a setting": ("shared", {"lr": torch.tensor(0.1)}, r"got lr = tensor\(0.1000\) .*float\("),
    "number as a setting's name": ("shared", {1: 2}, "got the name 1"),
    "text as listener": ("on_address", "print", "expected a function of a string, e.g. print"),
    "number as clock": ("clock", 5, "expected a Clock, or None, got 5"),
}


@pytest.mark.parametrize(("name", "value", "said"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_named(name, value, said):
    exchange = alone()
    with pytest.raises(ConfigError, match=said) as caught:
        loop(**{"exchange": exchange, name: value})
    text = str(caught.value)
    assert isinstance(caught.value, LowcommError)
    assert "\n" not in text
    assert len(text) < 400
    assert name in text or name in (
        "codec",
        "aggregation",
        "outer_optimizer",
    )  # the names of those stand in recipes
    with loop(exchange=exchange) as outer:  # what was refused has taken nothing
        assert outer.inner_step == 0


def test_a_shard_lies_among_the_shards():
    with pytest.raises(ConfigError, match="shard: expected a whole number from -1 to 3, got 4"):
        loop(shard=4, num_shards=4)


def test_a_rank_that_does_not_lead_has_no_exchange():
    class Follower:
        is_lead, rank, layout = False, 1, ()

        def read(self, indices): ...
        def open_vectors(self): ...

    with pytest.raises(ConfigError, match=r"expected None on rank 1.*exchange if island.is_lead else None"):
        loop(island=Follower())


SCHEDULES = {
    "text": (
        {"inner_steps": "100"},
        ArgumentError,
        "schedule.inner_steps: expected a whole .* got '100'",
    ),
    "none": ({"inner_steps": None}, ArgumentError, "got None"),
    "zero": ({"inner_steps": 0}, ConfigError, "at least 1, got 0"),
    "half": ({"inner_steps": 2.5}, ConfigError, "got 2.5"),
    "fragments": ({"num_fragments": 0}, ConfigError, "schedule.num_fragments: .*got 0"),
    "delay": ({"delay": "never"}, ArgumentError, "schedule.delay: .*got 'never'; \"auto\" takes"),
    "alpha": ({"merge_alpha": 2}, ConfigError, "schedule.merge_alpha: expected a number from 0 to 1, got 2"),
    "eager": ({"eager": "yes"}, ArgumentError, "schedule.eager: expected True or False, got 'yes'"),
}


@pytest.mark.parametrize(("settings", "kind", "said"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_name_what_is_wrong(settings, kind, said):
    with pytest.raises(kind, match=said):
        Schedule(**{"inner_steps": 10, **settings})


POLICIES = {
    "nobody": ({"min_participants": 0}, "min_participants: expected a whole number of at least 1, got 0"),
    "text": ({"min_participants": "two"}, "got 'two'"),
    "deadline": ({"deadline_s": 0}, "deadline_s: expected a number above 0, got 0"),
    "minus": ({"deadline_s": -5}, "got -5"),
    "partition": ({"partition": "stop"}, "partition: expected 'continue' or 'majority', got 'stop'"),
    "limits": ({"limits": 3}, r"limits: expected Limits\(...\), got 3"),
}


@pytest.mark.parametrize(("settings", "said"), POLICIES.values(), ids=POLICIES)
def test_policies_name_what_is_wrong(settings, said):
    with pytest.raises(ConfigError, match=f"RoundPolicy: .*{said}|RoundPolicy: {said}"):
        RoundPolicy(**settings)


CODECS = {
    "feedback": (
        lambda: codecs.int8(error_feedback="on"),
        "error_feedback: expected True or False, got 'on'",
    ),
    "decay": (lambda: codecs.topk(decay=2), "decay: expected a number from 0 to 1, got 2"),
    "text": (lambda: codecs.two_bit(decay="0.9"), "got '0.9'"),
    "name": (lambda: codecs.by_name(8), "expected one of fp32, .*, got 8"),
    "named decay": (lambda: codecs.by_name("int8", decay="x"), "got 'x'"),
}


@pytest.mark.parametrize(("make", "said"), CODECS.values(), ids=CODECS)
def test_codecs_name_what_is_wrong(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


HOW = "exchanges.swarm"
EXCHANGES = {
    "spaces": (lambda: exchanges.swarm(run_id="my run"), f"{HOW}: run_id: expected 1 to 64 .* got 'my run'"),
    "long": (lambda: exchanges.swarm(run_id="r" * 65), "of 65 characters"),
    "empty": (lambda: exchanges.swarm(run_id=""), "got ''"),
    "no text": (lambda: exchanges.swarm(run_id=7), "got 7"),
    "peers": (
        lambda: exchanges.swarm(run_id="r", initial_peers=7),
        f"{HOW}: initial_peers: expected a list",
    ),
    "no peers": (lambda: exchanges.swarm(run_id="r", initial_peers=None), "got None"),
    "empty peer": (lambda: exchanges.swarm(run_id="r", initial_peers=[""]), "got one with ''; leave it out"),
    "peer of bytes": (
        lambda: exchanges.swarm(run_id="r", initial_peers=[b"x"]),
        r"got one with b'x' \(bytes\)",
    ),
    "listen": (lambda: exchanges.swarm(run_id="r", listen=31337), "listen: .*got 31337"),
    "identity": (lambda: exchanges.swarm(run_id="r", identity_path=3), "identity_path: expected a path"),
    "streams": (
        lambda: exchanges.swarm(run_id="r", streams=0),
        "streams: expected a whole number from 1 to 16",
    ),
    "timeout": (lambda: exchanges.swarm(run_id="r", connect_timeout_s=0), "connect_timeout_s: .*above 0"),
    "relay": (lambda: exchanges.swarm(run_id="r", relay="off"), "relay: expected True or False, got 'off'"),
    "hub": (
        lambda: exchanges.loopback(exchanges.hub, run_id="r", peer_id="a", founder=True),
        r"exchanges.loopback: expected what exchanges.hub\(\) gives",
    ),
    "founder": (
        lambda: exchanges.loopback(exchanges.hub(), run_id="r", peer_id="a", founder="a"),
        "founder: expected True or False",
    ),
    "rank": (
        lambda: exchanges.process_group(run_id="r", rank=2, world_size=2),
        "rank: .* from 0 to 1, got 2",
    ),
    "world": (lambda: exchanges.process_group(run_id="r", rank=0, world_size="2"), "world_size: .*got '2'"),
}


@pytest.mark.parametrize(("make", "said"), EXCHANGES.values(), ids=EXCHANGES)
def test_exchanges_name_what_is_wrong(make, said):
    with pytest.raises(ConfigError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_one_address_is_a_list_of_one():
    exchange = exchanges.swarm(
        run_id="r", initial_peers="r@/ip4/127.0.0.1/tcp/1/p2p/x", listen="/ip4/0.0.0.0/tcp/0"
    )
    assert not exchange.founder
    assert exchange._initial_peers == ("r@/ip4/127.0.0.1/tcp/1/p2p/x",)
    assert exchange._options.listen == ("/ip4/0.0.0.0/tcp/0",)


def test_the_address_is_told_before_the_wait():
    told = []

    class Addressed(type(alone())):
        join_string = "t@here"

    exchange = Addressed(exchanges.hub(), "t", "a", founder=True)

    def tell(address):
        told.append((address, exchange.connected()))

    with loop(exchange=exchange, on_address=tell, expected_peers=2, gather_timeout_s=0) as outer:
        assert told == [("t@here", frozenset())]
        assert outer.address == "t@here"


WAITS = """
import logging, sys
from tests.outer.test_arguments import loop

def wait():
    with loop(expected_peers=3, gather_timeout_s=0.2):
        pass
    print("--", file=sys.stderr, flush=True)

wait()
none = logging.NullHandler()
logging.getLogger("lowcomm").addHandler(none)
wait()
logging.getLogger("lowcomm").removeHandler(none)
logging.basicConfig(level=logging.INFO)
wait()
"""


def test_the_wait_says_what_it_waits_for():
    """Without logging, with logging that wants none of it, and with logging."""
    run = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, cwd=ROOT, check=True)
    text = "waiting for 2 more islands of run 't' (1 of 3 here)"
    assert [part.count(text) for part in run.stderr.split("--\n")] == [1, 0, 1, 0]
    assert run.stdout == ""


OTHERS = {
    "recipe as config": (lambda: Trainer("recipes/x.toml"), r"Trainer: config: expected what load_config\("),
    "no path": (lambda: load_config(7), "load_config: path: expected a path, .* got 7"),
    "overrides": (
        lambda: load_config(None, 7),
        "load_config: overrides: expected a list of .* got 7",
    ),
    "table of overrides": (
        lambda: load_config(None, {"train.steps": 5}),
        "overrides: expected a list",
    ),
    "link": (lambda: codecs.auto("fast", elements=1, round_s=1), "codecs.auto: link_mbit_s: .*got 'fast'"),
    "islands": (lambda: codecs.auto(1, elements=1, round_s=1, islands=1), "islands: .* at least 2, got 1"),
    "limit": (lambda: Limits(norm_limit="3"), "Limits: norm_limit: expected a number of at least 0, got '3'"),
    "rejections": (lambda: Limits(max_rejections=0), "max_rejections: .*at least 1, got 0"),
}


@pytest.mark.parametrize(("make", "said"), OTHERS.values(), ids=OTHERS)
def test_other_public_calls_name_what_is_wrong(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_one_override_and_a_path_as_text_are_taken():
    recipe = str(ROOT / "recipes" / "quickstart.toml")
    assert load_config(recipe, "train.steps=7").train.steps == 7
    assert load_config(recipe, "train.steps=7", profile="cpu").train.steps == 7
