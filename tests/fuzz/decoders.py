"""Every decoder of bytes from the network, and what each may raise; `mutate` makes their inputs.

Inputs are valid messages with damage: bits flipped, pieces cut, doubled or moved, bytes of other
messages spliced in, lengths and type bytes of msgpack replaced; or fields of valid bodies replaced
by values of other types and sizes. Pure noise seldom gets past the first check.

    python -m tests.fuzz.decoders --inputs 1400000 --seed 1 --json docs/results/fuzz.json

Prints what came out beside the named errors, with the input, and ends with exit code 1 if there was any.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import torch

from lowcomm import codecs, exchanges
from lowcomm.algorithms.intervals import Speed
from lowcomm.clock import SystemClock
from lowcomm.errors import CodecError, ProtocolError
from lowcomm.exchanges.base import Message, Traffic
from lowcomm.exchanges.fields import Fields
from lowcomm.exchanges.frames import encode_frame
from lowcomm.exchanges.loopback import LoopbackExchange
from lowcomm.exchanges.swarm.access import Gate, make_token
from lowcomm.exchanges.swarm.directory import Directory, pack_value, signed_bytes
from lowcomm.exchanges.swarm.identity import Identity
from lowcomm.exchanges.swarm.links import Links
from lowcomm.exchanges.swarm.streams import FrameDecoder
from lowcomm.ledger.blobs import Blobs
from lowcomm.ledger.certificate import Ballot, parse_ballot
from lowcomm.ledger.credits import Credits
from lowcomm.ledger.entry import ContributionId, Entry, hash_bytes, parse_entry
from lowcomm.ledger.mandate import Mandate, parse_mandate
from lowcomm.ledger.pieces import check_manifest, make_manifest, name_of
from lowcomm.ledger.upload_rate import UploadRate
from lowcomm.peers.acquaintances import record_addresses
from lowcomm.peers.peer import Chains, Peer, State, parse_state
from lowcomm.peers.table import PROTOCOL, Peers
from lowcomm.peers.terms import Terms
from lowcomm.recovery.donor import MAX_ENTRIES
from lowcomm.recovery.snapshots import _follows, parse_offer
from lowcomm.rounds.roster import Participant, Roster, parse_roster
from lowcomm.rounds.values import Offer, Ready, parse_ready
from lowcomm.sim.disk import SimExecutor
from lowcomm.types import Json, PeerId

ELEMENTS = 5_000
"""More than one chunk of the sparse codec has."""
REFUSALS = (ProtocolError, CodecError)
OWNER, MEMBER = Identity.generate(), Identity.generate()
HASH = hash_bytes(b"x")
ENTRY = Entry(
    run_id="run", fragment=0, outer_step=3, participants=((PeerId("a"), 10), (PeerId("b"), 20)),
    total_tokens=90, stops=(4, 8), chunk_elements=4, update_hash=HASH, update_bytes=32,
    state_digest=HASH, previous=HASH,
    samples=Credits(data=HASH, trained=(((0, 4), (9, 10)), ()), credited=((0, 10),), twice=1),
)  # fmt: skip
ROSTER = Roster(
    fragment=0, outer_step=4, ballot=Ballot(1, "a"), previous=HASH,
    participants=(
        Participant(PeerId("a"), 10, 1.0, 5, Speed(0.5, 10), samples=((3, 9),)),
        Participant(PeerId("b"), 20, 2.0, 5),
    ),
    stops=(4, 8), chunk_elements=4, entry=ENTRY, accepted_in=Ballot(1, "a"), holders=(PeerId("a"),),
    absent=(PeerId("c"),),
)  # fmt: skip
READY = Ready(
    HASH,
    Offer(ContributionId(7, 10, "0" * 32), 1.5, 30, Speed(0.5, 10), ((3, 9),)),
    Ballot(1, "a"),
    (Ballot(1, "a"), ENTRY),
    (PeerId("b"),),
    "A9",
)
STATE = State(
    chains=Chains((1, 2), (HASH, HASH), (64, 128)),
    checkpoints=(5,),
    put_out=(PeerId("bob"),),
    name="north-1",
    loss=2.5,
    links=((PeerId("bob"), 0.1), (PeerId("eve"), None)),
)
EXPIRES_S = SystemClock().wall_s() + 86_400.0
GATE = Gate("run", owner=OWNER.peer_id)
SHOWN = Gate(
    "run", owner=OWNER.peer_id, token=make_token(OWNER, "run", peer=None, expires_s=int(EXPIRES_S))
).show(MEMBER)
RECORD = msgpack.packb({"addresses": ["/ip4/127.0.0.1/tcp/1/p2p/x"], "role": "island"})
VALUE = pack_value(RECORD, MEMBER.sign("directory", signed_bytes("run", RECORD, EXPIRES_S)), SHOWN)
DIRECTORY = Directory(None, "run", MEMBER, SystemClock(), GATE)  # type: ignore[arg-type]  # no node: only reads


def decode_frames(data: bytes) -> None:
    decoder = FrameDecoder()
    decoder.opened = bool(data[:1] > b"\x40")
    view = memoryview(data)
    while view.nbytes:
        buffer = decoder.get_buffer()
        count = min(buffer.nbytes, view.nbytes)
        buffer[:count] = view[:count]
        view = view[count:]
        decoder.advance(count)
        while decoder.next() is not None:
            pass


def of_body(read: Callable[[Fields], object]) -> Callable[[bytes], None]:
    """A decoder of message bodies: unpacked as a frame's body is, then read field by field."""

    def decode(data: bytes) -> None:
        try:
            body = msgpack.unpackb(data, strict_map_key=True)
        except (ValueError, msgpack.UnpackException, RecursionError):
            return  # the frame's decoder, which is another one here, refuses it
        read(Fields("fuzz", body))

    return decode


def payload_of(name: str) -> tuple[Callable[[bytes], None], bytes]:
    """A codec's decoder, as a reducer and whoever gets its mean call it, and what it encodes."""
    codec, values = codecs.by_name(name), torch.linspace(-2.0, 2.0, ELEMENTS)

    def decode(data: bytes) -> None:
        if len(data) <= codec.max_payload_bytes(ELEMENTS):  # else it is refused as it comes
            codec.decode(data, ELEMENTS)
            codec.decode_add(data, 0.5, torch.zeros(ELEMENTS))

    return decode, bytes(codec.encode(values))


def read_record(data: bytes) -> None:
    DIRECTORY._check(MEMBER.peer_id, data, EXPIRES_S)
    record_addresses(data)


def read_pass(data: bytes) -> None:
    shown = data.decode("latin-1")
    if shown != SHOWN:
        assert not GATE.admits(OWNER_NOT, shown)


OWNER_NOT = Identity.generate().peer_id


def pack(value: Json) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def frame(kind: str, body: dict[str, Json], payload: bytes = b"") -> bytes:
    head, raw = encode_frame(Message(kind, body, payload))
    return head + bytes(raw)


def read_opening(data: bytes) -> None:
    """The opening frame of a stream, as the table of links judges it; a fuzzed one opens nothing."""
    try:
        body = msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError):
        return
    if isinstance(body, dict):
        message = Message("link.open", body)
        Links._verdict(LINKS, STRANGER, None, message)  # type: ignore[arg-type]  # refused before it is used


def greet(read: Callable[[Peers, Fields], None]) -> Callable[[Fields], None]:
    """A control message about peers, handled by a peer to which the sender has a link."""

    def handle(fields: Fields) -> None:
        asyncio.run(_greet(read, fields))

    return handle


async def _greet(read: Callable[[Peers, Fields], None], fields: Fields) -> None:
    exchange = LoopbackExchange(exchanges.hub(), "run", PeerId("me"), founder=True)
    peers = Peers(
        exchange, shared=SHARED, layout=(), state=State(), heartbeat_s=1.0, lease_s=10.0,
        on_change=lambda: None, on_refused=lambda peer, reasons: None,
    )  # fmt: skip
    peers.linked[STRANGER] = Peer(STRANGER, greeted=True)
    try:
        read(peers, fields)
    finally:
        await peers.stop()


SHARED: dict[str, Json] = {"shared.seed": 1}
STRANGER = PeerId("stranger")
LINKS = Links(None, "run", None, Traffic(), 1, lambda peer: None)  # type: ignore[arg-type]  # only judges
OPENING: dict[str, Json] = {"run": "other", "channel": -1, "token": "t", "answer": "", "pass": SHOWN}
HELLO: dict[str, Json] = {
    "protocol": PROTOCOL, "greeted": 0, "shared": HASH, "layout": HASH,
    "addresses": ["/ip4/127.0.0.1/tcp/1/p2p/x"],
    "state": {**STATE.to_json(), "role": "seed"},
}  # fmt: skip
PEERS: dict[str, Json] = {"peers": [["a", ["/ip4/127.0.0.1/tcp/1/p2p/a"]], ["b", []]]}
BALLOT: list[Json] = [1, "a"]
VOTE: dict[str, Json] = {"fragment": 0, "outer_step": 4, "ballot": BALLOT, "entry": HASH, "state": HASH}
ABORT: dict[str, Json] = {
    "fragment": 0, "outer_step": 4, "ballot": BALLOT, "reason": "x", "avoid": ["a"], "rejected": ["a"],
}  # fmt: skip
PIECE: dict[str, Json] = {"hash": HASH, "offset": 1 << 20, "length": 1 << 20, "found": 1}
ENTRIES: dict[str, Json] = {"fragment": 0, "entries": [ENTRY.to_json()]}


def read_vote(fields: Fields) -> None:
    """As `Ballots.on_vote` does."""
    fields.integer("outer_step", 1)
    parse_ballot(fields)
    fields.digest("entry")
    fields.digest("state")


def read_abort(fields: Fields) -> None:
    """As `Ballots.on_abort` does."""
    fields.integer("outer_step", 1)
    parse_ballot(fields)
    for name in ("avoid", "rejected"):
        fields.texts(name, len(ROSTER.peers))
    fields.text("reason", 500)


def read_piece(fields: Fields) -> None:
    """What both ends of a transfer of blobs read."""

    async def both() -> None:
        exchange = LoopbackExchange(exchanges.hub(), "run", PeerId("me"), founder=True)
        blobs = Blobs(exchange, lambda name: None, SimExecutor(), UploadRate(0))
        blobs.on_request(STRANGER, fields)
        blobs.on_piece(STRANGER, fields, b"")
        await asyncio.gather(*blobs._replies)

    asyncio.run(both())


def read_entries(fields: Fields) -> None:
    for item in fields.items("entries", MAX_ENTRIES):
        parse_entry(Fields("entries.entry", item))
    _follows(fields, HASH)


def compare_terms(fields: Fields) -> None:
    """The other side's settings, told in one page; the next one is its end."""
    own = Terms({"a": 1}, ())
    end = Fields("terms", {"list": "shared", "page": 1, "items": []})

    async def ask(name: str, page: int) -> Fields:
        return end if page else fields

    asyncio.run(own.compare({**own.digests, "shared": HASH}, ask))


MANDATE = Mandate(
    run_id="run", positions={0: (3, ENTRY.hash), 1: (4, ENTRY.previous)}, members=(PeerId("a"), PeerId("b")),
    operator=PeerId("operator"), signature=b"signed",
)  # fmt: skip
OFFER: dict[str, Json] = {
    "digest": ENTRY.state_digest, "outer_step": 3, "head": ENTRY.hash, "last": ENTRY.to_json(),
    "before": None,
}  # fmt: skip
MANIFEST = make_manifest([bytes(3 << 20)])


DECODERS: dict[str, tuple[Callable[[bytes], None], bytes]] = {
    "frames": (decode_frames, frame("ready", READY.to_json()) + frame("part", {"chunk": 1}, b"payload" * 9)),
    "entry": (of_body(parse_entry), pack(ENTRY.to_json())),
    "roster": (of_body(parse_roster), pack(ROSTER.to_json())),
    "mandate": (of_body(parse_mandate), pack(MANDATE.to_json())),
    "ready": (of_body(parse_ready), pack(READY.to_json())),
    "state": (of_body(parse_state), pack(STATE.to_json())),
    "offer": (of_body(lambda fields: parse_offer(fields, "run", 0)), pack(OFFER)),
    "manifest": (lambda data: check_manifest(data, name_of(MANIFEST), 3 << 20), MANIFEST),
    "link.open": (read_opening, pack(OPENING)),
    "hello": (of_body(greet(lambda peers, fields: peers.on_hello(STRANGER, fields))), pack(HELLO)),
    "terms?": (
        of_body(greet(lambda peers, fields: peers.on_terms_request(STRANGER, fields))),
        pack({"list": "layout", "page": 0}),
    ),
    "terms": (of_body(compare_terms), pack({"list": "shared", "page": 0, "items": [["a", 1], ["b", [2]]]})),
    "peers": (of_body(greet(lambda peers, fields: peers.on_peers(STRANGER, fields))), pack(PEERS)),
    "ping": (of_body(greet(lambda peers, fields: peers.on_ping(STRANGER, fields))), pack({"sent_s": 12.5})),
    "pong": (
        of_body(greet(lambda peers, fields: peers.on_pong(STRANGER, fields))),
        pack({"sent_s": 0.0, "knows": HASH}),
    ),
    "refuse": (
        of_body(greet(lambda peers, fields: peers.on_refuse(STRANGER, fields))),
        pack({"reasons": ["model: here 1, there 2"]}),
    ),
    "vote": (of_body(read_vote), pack(VOTE)),
    "abort": (of_body(read_abort), pack(ABORT)),
    "blob": (of_body(read_piece), pack(PIECE)),
    "entries": (of_body(read_entries), pack(ENTRIES)),
    "ballot": (of_body(parse_ballot), pack({"ballot": [1, "a"]})),
    "record": (read_record, VALUE),
    "addresses": (read_record, RECORD),
    "pass": (read_pass, SHOWN.encode()),
    **{f"payload.{name}": payload_of(name) for name in codecs.NAMES},
}
"""Name -> (decoder, a valid input). A decoder raises one of `REFUSALS`, or nothing."""

ODD: list[Any] = [
    None, True, -1, 2**63, 2**64 - 1, 0.5, float("nan"), float("inf"), "", "x" * 200, "\ud7ff", b"bytes",
    [], {}, [[]], [[1, 2, 3]], {"a": {}}, [None] * 300,
]  # fmt: skip


def mutate(valid: bytes, others: list[bytes], source: random.Random) -> bytes:
    """A damaged copy of a valid input."""
    if source.random() < 0.4:
        try:
            value = msgpack.unpackb(valid)
        except (ValueError, msgpack.UnpackException):
            value = None
        if isinstance(value, dict | list):
            return pack(_replace(value, source))
    data = bytearray(valid)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data) + 1)
        match source.randrange(6):
            case 0:
                data[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                del data[at : at + source.randint(1, 40)]
            case 2:
                other = source.choice(others)
                start = source.randrange(len(other))
                data[at:at] = other[start : start + source.randint(1, 60)]
            case 3:
                data[at : at + 1] = bytes([source.choice(b"\xc1\xc6\xdb\xdd\xdf\xc9\x90\x80\xff\x00")])
            case 4:
                data[at:at] = data[at : at + source.randint(1, 40)]
            case 5:
                data[at : at + 4] = source.randbytes(4)
        if not data:
            data = bytearray(b"\x00")
    return bytes(data)


def _replace(value: Any, source: random.Random) -> Any:
    """`value` with one thing in it, at any depth, replaced by something odd."""
    if isinstance(value, dict) and value and source.random() < 0.8:
        key = source.choice(list(value))
        if source.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _replace(value[key], source)}
    if isinstance(value, list) and value and source.random() < 0.8:
        at = source.randrange(len(value))
        return [*value[:at], _replace(value[at], source), *value[at + 1 :]]
    return source.choice(ODD)


def run(inputs: int, seed: int) -> dict[str, Any]:
    """Feed every decoder in turn; counts what is refused, and what raises anything but one of `REFUSALS`."""
    source = random.Random(seed)
    names, others = list(DECODERS), [valid for _, valid in DECODERS.values()]
    counts = {name: {"inputs": 0, "refused": 0, "other_errors": 0} for name in names}
    for number in range(inputs):
        name = names[number % len(names)]
        decode, valid = DECODERS[name]
        data = mutate(valid, others, source)
        counts[name]["inputs"] += 1
        try:
            decode(data)
        except REFUSALS:
            counts[name]["refused"] += 1
        except Exception as error:  # what is looked for
            counts[name]["other_errors"] += 1
            print(f"{name}, seed {seed}, input {number}: {error!r} from {data.hex()}", file=sys.stderr)
    totals = {
        key: sum(count[key] for count in counts.values()) for key in ("inputs", "refused", "other_errors")
    }
    return {"seed": seed, **totals, "decoders": counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = run(args.inputs, args.seed)
    figures = json.dumps(found, indent=2) + "\n"
    if args.json:
        args.json.write_text(figures)
    print(figures)
    sys.exit(1 if found["other_errors"] else 0)


if __name__ == "__main__":
    main()
