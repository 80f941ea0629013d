"""How a message lies on the wire: a fixed header, a msgpack body, then the raw payload.

    offset  size  field
    0       2     b"LC"
    2       1     FRAME_VERSION
    3       1     reserved, 0
    4       4     body length in bytes, big endian, at most MAX_BODY_BYTES
    8       4     payload length in bytes, big endian, at most MAX_PAYLOAD_BYTES

The body is [kind, {...}] of plain values. All three exchanges use this one codec, so that a test
on threads fails where the swarm would. Nothing is allocated for a length that was not checked.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, cast

import msgpack

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.base import MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, Buffer, Message
from lowcomm.types import Json

FRAME_VERSION = 1
MAX_DEPTH = 32
"""How deep a body may nest; deeper ones are refused, so that no reader has to recurse far."""

_HEADER = struct.Struct("!2sBBII")
HEADER_BYTES = _HEADER.size
_MAGIC = b"LC"
_PLAIN = (type(None), bool, int, float, str)


def encode_frame(message: Message) -> tuple[bytes, memoryview]:
    """A message as (header and body, payload); the payload is not copied.

    Raises:
        ProtocolError: the body holds something that is not plain, or either part is too large.
    """
    payload = memoryview(message.payload).cast("B")
    try:
        body: bytes = msgpack.packb([message.kind, message.body])
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"message {message.kind!r}: its body can't be packed: {error}") from error
    _check_sizes(len(body), payload.nbytes, f"message {message.kind!r}")
    return _HEADER.pack(_MAGIC, FRAME_VERSION, 0, len(body), payload.nbytes) + body, payload


def decode_header(header: Buffer) -> tuple[int, int]:
    """(body length, payload length) in bytes, both within their bounds.

    Raises:
        ProtocolError: not a header of this version, or a length above its bound.
    """
    if len(header) != HEADER_BYTES:
        raise ProtocolError(f"frame: expected a header of {HEADER_BYTES} bytes, got {len(header)}")
    magic, version, reserved, body_bytes, payload_bytes = _HEADER.unpack(header)
    if magic != _MAGIC or version != FRAME_VERSION or reserved != 0:
        raise ProtocolError(
            f"frame: expected a header of version {FRAME_VERSION}, got {bytes(header[:4]).hex()}"
        )
    _check_sizes(body_bytes, payload_bytes, "frame")
    return body_bytes, payload_bytes


def decode_body(body: Buffer, payload: Buffer = b"") -> Message:
    """The message of a received body.

    Raises:
        ProtocolError: it is not [text, {text: plain value, ...}].
    """
    try:
        value: Any = msgpack.unpackb(
            body, raw=False, strict_map_key=True, max_ext_len=0, max_bin_len=0, ext_hook=_refuse_ext
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"frame: the body is not msgpack: {error!r:.200}") from error
    if not isinstance(value, list) or len(value) != 2:
        raise ProtocolError("frame: expected a body of [kind, fields]")
    kind, fields = value
    if not isinstance(kind, str) or not isinstance(fields, dict):
        raise ProtocolError("frame: expected a body of [text, map]")
    _check_plain(fields)
    return Message(kind, cast(Mapping[str, Json], fields), payload)


def _check_sizes(body_bytes: int, payload_bytes: int, what: str) -> None:
    if body_bytes > MAX_BODY_BYTES:
        raise ProtocolError(f"{what}: a body of {body_bytes} bytes, at most {MAX_BODY_BYTES} are allowed")
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise ProtocolError(
            f"{what}: a payload of {payload_bytes} bytes, at most {MAX_PAYLOAD_BYTES} are allowed"
        )


def _refuse_ext(code: int, _data: bytes) -> None:
    raise ValueError(f"extension type {code}")


def _check_plain(fields: dict[Any, Any]) -> None:
    level: list[Any] = [fields]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            if isinstance(container, dict):
                if not all(isinstance(key, str) for key in container):
                    raise ProtocolError("frame: a key of the body is not text")
                values = container.values()
            else:
                values = container
            for value in values:
                if isinstance(value, dict | list):
                    below.append(value)
                elif not isinstance(value, _PLAIN):
                    raise ProtocolError(f"frame: a {type(value).__name__} in the body; expected plain values")
        if not below:
            return
        level = below
    raise ProtocolError(f"frame: the body nests deeper than {MAX_DEPTH}")
