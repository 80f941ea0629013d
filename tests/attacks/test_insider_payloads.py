"""One of three islands sends payloads that no honest one sends: it is named, and the others go on."""

import logging
import struct
from collections.abc import Callable

import pytest
import torch

from lowcomm import RoundPolicy, codecs
from lowcomm.exchanges.base import MAX_PAYLOAD_BYTES, Message
from lowcomm.rounds.transfer import checksum
from tests.outer.swarm import Swarm, name
from tests.outer.test_faults import assert_one_history

LIAR = 2
CODEC = codecs.int8()
LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "version": (lambda payload: payload[:-1] + bytes([payload[-1] + 1]), "another codec or version"),
    "codec": (lambda payload: bytes(codecs.int4().encode(torch.ones(elements(payload)))), "int8: expected"),
    "too-short": (lambda payload: payload[:-1], "int8: expected"),
    "too-long": (lambda payload: payload + b"\0", "bytes for chunk"),
    "as-long-as-can-be": (lambda payload: bytes(MAX_PAYLOAD_BYTES), f"{MAX_PAYLOAD_BYTES} bytes for chunk"),
    "nan-scale": (lambda payload: struct.pack("<f", float("nan")) + payload[4:], "int8: expected"),
}


def elements(payload: bytes) -> int:
    """How many numbers a payload stands for."""
    return next(n for n in range(len(payload)) if CODEC.max_payload_bytes(n) == len(payload))


@pytest.mark.parametrize("kind", ["part", "mean"])
@pytest.mark.parametrize(("change", "says"), LIES.values(), ids=LIES.keys())
def test_who_sends_it_is_named_and_left_out(
    change: Callable[[bytes], bytes], says: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lowcomm")

    def lie(message: Message) -> Message:
        if message.kind != kind or message.body["outer_step"] != 2:
            return message
        payload = change(bytes(message.payload))
        return Message(kind, {**message.body, "sum": checksum(kind, message.body, payload)}, payload)

    policy = RoundPolicy(min_participants=2, deadline_s=20.0)
    swarm = Swarm(islands=3, codec=codecs.int8, policy=policy, lies={LIAR: lie})
    results = swarm.run(steps=12)
    honest = [results[0], results[1]]
    assert_one_history(honest)
    for result in honest:
        assert [report.outer_step for report in result.committed] == [1, 2, 3]
        assert set(result.committed[1].participants) == {name(0), name(1)}
    told = [record.getMessage() for record in caplog.records]
    assert any(name(LIAR) in line and says in line for line in told), told
