"""One of five islands is a member and lies about its contribution."""

import threading
from collections.abc import Callable

import pytest
import torch

from lowcomm import RoundPolicy
from lowcomm.algorithms import aggregation
from lowcomm.exchanges.base import Message
from lowcomm.rounds.claims import Limits
from lowcomm.rounds.transfer import checksum
from tests.outer.swarm import Result, Swarm, in_parallel, name

LIAR = 4
HONEST = range(4)
STEPS = 24
LONG = 200


def on_parts(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Message], Message]:
    """A liar that changes the fp32 numbers of the chunks it sends."""

    def lie(message: Message) -> Message:
        if message.kind != "part":
            return message
        values = torch.frombuffer(bytearray(message.payload), dtype=torch.float32)
        payload = change(values).numpy().tobytes()
        body = {**message.body, "sum": checksum("part", message.body, payload)}  # damage it is not
        return Message(message.kind, body, payload)

    return lie


def run(
    islands: int, lie: Callable[[Message], Message] | None = None, tokens: int = 8, rejections: int = 1_000
) -> dict[int, Result]:
    swarm = Swarm(
        islands=islands,
        lease_s=10.0,
        lies={LIAR: lie} if lie else {},
        tokens={LIAR: tokens},
        policy=RoundPolicy(
            min_participants=3,
            deadline_s=20.0,
            limits=Limits(norm_limit=20.0, max_tokens=100, max_rejections=rejections),
        ),
    )
    honest = list(range(islands))[:LIAR]
    if islands > LIAR:
        patience = RoundPolicy(deadline_s=20.0)  # once the others have left it goes on alone
        liar = threading.Thread(
            target=in_parallel,
            args=([lambda: swarm.train(LIAR, STEPS, round_policy=patience)], swarm.results, [LIAR]),
        )
        liar.start()
    in_parallel([lambda i=i: swarm.train(i, STEPS) for i in honest], swarm.results, honest)
    swarm.hub.kill(name(LIAR))
    if islands > LIAR:
        liar.join(60.0)
        assert not liar.is_alive()
    return swarm.results


@pytest.fixture(scope="module")
def without_liar() -> dict[int, Result]:
    return run(4)


@pytest.fixture(scope="module")
def long_without_liar() -> dict[int, Result]:
    return Swarm(islands=4).run(LONG)


def mean_loss(results: dict[int, Result], island: int) -> float:
    """Over the last steps, whose batches are the same in all runs."""
    return sum(results[island].losses[-20:]) / 20


@pytest.mark.parametrize(
    ("lie", "tokens", "says"),
    [
        (on_parts(lambda values: values * float("nan")), 8, "can't be decoded"),
        (on_parts(lambda values: values * 1e6), 8, "announced norm"),
        (on_parts(lambda values: values[:-1]), 8, "can't be decoded"),
        (None, 10**9, "tokens in 1 rounds, at most 100 are possible"),
    ],
    ids=["nan", "huge-norm-hidden", "element-count", "huge-weight"],
)
def test_a_liar_that_is_caught_changes_nothing(
    lie: Callable[[Message], Message] | None, tokens: int, says: str, without_liar: dict[int, Result]
) -> None:
    results = run(5, lie, tokens=tokens)
    for island in HONEST:
        result = results[island]
        assert result.error is None, result.error
        assert all(report.committed for report in result.reports)
        assert all(set(report.participants) == {name(i) for i in HONEST} for report in result.reports)
        assert result.digest == without_liar[0].digest
        assert result.losses == without_liar[island].losses
    named = [line for island in HONEST for report in results[island].reports for line in report.rejected]
    assert any(line.startswith(f"{name(LIAR)}: ") and says in line for line in named), named


def test_a_liar_is_out_after_so_many_rejections(caplog: pytest.LogCaptureFixture) -> None:
    results = run(5, on_parts(lambda values: values * float("nan")), rejections=2)
    digests: dict[int, set[str]] = {}
    for island in HONEST:
        assert results[island].error is None
        for report in results[island].committed:
            assert name(LIAR) not in report.participants
            digests.setdefault(report.outer_step, set()).add(report.digest)
    assert all(len(found) == 1 for found in digests.values())
    assert "rejected too often" in caplog.text  # as the liar was told


def with_sign_flip(rule: str) -> dict[int, Result]:
    swarm = Swarm(
        islands=5,
        lies={LIAR: on_parts(lambda values: -values)},
        policy=RoundPolicy(min_participants=5, deadline_s=20.0),
    )
    results = swarm.run(LONG, aggregation=aggregation.by_name(rule))
    assert all(result.error is None for result in results.values())
    assert len({result.digest for result in results.values()}) == 1
    return results


@pytest.fixture(scope="module")
def harmed() -> dict[int, Result]:
    """The mean under a sign flip."""
    return with_sign_flip("mean")


def test_krum_learns_as_if_the_sign_flipper_were_not_there(
    long_without_liar: dict[int, Result], harmed: dict[int, Result]
) -> None:
    results = with_sign_flip("krum")
    for island in HONEST:
        assert mean_loss(results, island) < 1.05 * mean_loss(long_without_liar, island)
        assert mean_loss(harmed, island) > 1.05 * mean_loss(long_without_liar, island)


@pytest.mark.parametrize("rule", [pytest.param("trimmed_mean", marks=pytest.mark.slow), "median"])
def test_elementwise_rules_learn_better_than_the_mean_under_a_sign_flip(
    rule: str, harmed: dict[int, Result]
) -> None:
    results = with_sign_flip(rule)
    assert all(mean_loss(results, island) < mean_loss(harmed, island) for island in HONEST)
