"""The frame codec and the stream decoder: whatever the bytes, only named errors, nothing large allocated."""

import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.base import MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, Message
from lowcomm.exchanges.frames import HEADER_BYTES, MAX_DEPTH, decode_body, decode_header, encode_frame
from lowcomm.exchanges.swarm.streams import OPENING_BODY_BYTES, FrameDecoder

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
messages = st.builds(
    Message, st.text(max_size=20), st.dictionaries(st.text(), plain, max_size=4), st.binary(max_size=200_000)
)


def frame(message: Message) -> bytes:
    head, payload = encode_frame(message)
    return head + bytes(payload)


def opened() -> FrameDecoder:
    decoder = FrameDecoder()
    decoder.opened = True
    return decoder


def feed(decoder: FrameDecoder, data: bytes, step: int) -> list[Message]:
    """Decode `data` as it would come from a socket in reads of at most `step` bytes."""
    out = []
    while data:
        buffer = decoder.get_buffer()
        count = min(len(buffer), step, len(data))
        assert count > 0
        buffer[:count] = data[:count]
        data = data[count:]
        decoder.advance(count)
        while (message := decoder.next()) is not None:
            out.append(message)
    return out


@settings(max_examples=40)
@given(sent=st.lists(messages, min_size=1, max_size=4), step=st.sampled_from([1_000, 37_777, 65_536, 10**9]))
def test_messages_survive_any_cutting_of_the_stream(sent: list[Message], step: int) -> None:
    got = feed(opened(), b"".join(map(frame, sent)), step)
    assert [(m.kind, m.body, bytes(m.payload)) for m in got] == [(m.kind, m.body, m.payload) for m in sent]


def test_messages_survive_byte_by_byte() -> None:
    sent = [Message("a", {"x": 1}, b"payload"), Message("b", {}), Message("c", {"y": [None]}, b"z")]
    got = feed(opened(), b"".join(map(frame, sent)), 1)
    assert [(m.kind, m.body, bytes(m.payload)) for m in got] == [(m.kind, m.body, m.payload) for m in sent]


@given(data=st.binary(max_size=2_000), step=st.integers(1, 500), is_opened=st.booleans())
def test_random_bytes_raise_only_protocol_errors(data: bytes, step: int, is_opened: bool) -> None:
    decoder = FrameDecoder()
    decoder.opened = is_opened
    try:
        feed(decoder, data, step)
    except ProtocolError:
        pass


@given(body=st.binary(max_size=300), payload=st.binary(max_size=50), flip=st.integers(0, 10_000))
def test_random_bodies_under_a_valid_header_raise_only_protocol_errors(
    body: bytes, payload: bytes, flip: int
) -> None:
    data = bytearray(struct.pack("!2sBBII", b"LC", 1, 0, len(body), len(payload)) + body + payload)
    data[flip % len(data)] ^= 1 + flip % 255
    try:
        feed(opened(), bytes(data), 10**9)
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    ("body_bytes", "payload_bytes", "is_opened"),
    [
        (MAX_BODY_BYTES + 1, 0, True),
        (0, MAX_PAYLOAD_BYTES + 1, True),
        (2**32 - 1, 2**32 - 1, True),
        (OPENING_BODY_BYTES + 1, 0, False),
        (10, 1, False),
    ],
    ids=["body", "payload", "both", "opening-body", "opening-payload"],
)
def test_an_oversize_header_allocates_nothing(body_bytes: int, payload_bytes: int, is_opened: bool) -> None:
    decoder = FrameDecoder()
    decoder.opened = is_opened
    header = struct.pack("!2sBBII", b"LC", 1, 0, body_bytes, payload_bytes)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="at most"):
            feed(decoder, header, HEADER_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb(["kind"]),
        msgpack.packb({"kind": 1}),
        msgpack.packb([1, {}]),
        msgpack.packb(["kind", []]),
        msgpack.packb(["kind", {1: 2}]),
        msgpack.packb(["kind", {"x": b"bytes"}]),
        msgpack.packb(["kind", {"x": msgpack.ExtType(5, b"")}]),
        msgpack.packb(["kind", {"x": msgpack.Timestamp(1, 2)}]),
        msgpack.packb(["kind", {"x": b"\xff"}]).replace(b"\xc4\x01", b"\xa1"),
        msgpack.packb(["kind", {}]) + b"\x00",
        msgpack.packb("kind")[:-1],
        b"\x92\xa1k\x81\xa1x" + b"\x91" * 900 + b"\xc0",
        b"\x92\xa1k\x81\xa1x" + b"\x91" * (MAX_DEPTH + 1) + b"\xc0",
        b"\x92\xa1k\xdf\xff\xff\xff\xff",
    ],
)
def test_bodies_that_are_not_plain_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_body(body)


def test_a_header_of_another_version_is_refused() -> None:
    with pytest.raises(ProtocolError, match="version"):
        decode_header(struct.pack("!2sBBII", b"LC", 2, 0, 1, 1))
