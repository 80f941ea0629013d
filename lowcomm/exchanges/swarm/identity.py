"""Who a peer is: an ed25519 key in a file that only its owner may read.

The file holds a libp2p PrivateKey message (key type 1, then 32 bytes of seed and 32 of public
key), so p2pd can use it as it is. An ed25519 peer id embeds the public key: whoever knows a peer's
name can check its signatures, and nobody has to hand out keys.
https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lowcomm.errors import AddressError, StorageError
from lowcomm.locks import Lock, TakenError
from lowcomm.types import PeerId

logger = logging.getLogger(__name__)

_PRIVATE_PREFIX = b"\x08\x01\x12\x40"
_PEER_ID_PREFIX = b"\x00\x24\x08\x01\x12\x20"
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER_ID_CHARS = 52
MESSAGES = "message"
"""The domain of what peers sign in a run."""


class Identity:
    """A private key and the name that follows from it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.peer_id = _peer_id(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> Identity:
        return cls(Ed25519PrivateKey.generate())

    def to_bytes(self) -> bytes:
        """The libp2p PrivateKey message, 68 bytes."""
        return _PRIVATE_PREFIX + self._key.private_bytes_raw() + self._key.public_key().public_bytes_raw()

    def sign(self, domain: str, data: bytes) -> bytes:
        """64 bytes; a signature for one domain is none for another, nor for libp2p's own handshake."""
        return self._key.sign(_signed_bytes(domain, data))


class Gatekeeper(Protocol):
    """Decides who may be in a run; `lowcomm.exchanges.swarm.access.Gate` is one."""

    def show(self, identity: Identity) -> str:
        """What the peer with this identity shows to others."""
        ...

    def admits(self, peer: PeerId, shown: object) -> bool:
        """Whether `peer`, who showed `shown`, may be in the run."""
        ...


def verify(peer: PeerId, domain: str, data: bytes, signature: bytes) -> bool:
    """Whether `signature` was made by the key in `peer`'s name; False too if that is no ed25519 id."""
    try:
        public_key(peer).verify(signature, _signed_bytes(domain, data))
    except (InvalidSignature, AddressError):
        return False
    return True


def has_key(peer: PeerId) -> bool:
    """Whether a peer's name is that of a key, so that its signatures can be checked."""
    try:
        public_key(peer)
    except AddressError:
        return False
    return True


def _signed_bytes(domain: str, data: bytes) -> bytes:
    return f"lowcomm/{domain}:".encode() + data


@functools.lru_cache(maxsize=4096)
def public_key(peer: PeerId) -> Ed25519PublicKey:
    """The key in a peer id.

    Raises:
        AddressError: not the id of an ed25519 key.
    """
    decoded = _base58_decode(peer) if len(peer) == _PEER_ID_CHARS else None
    if decoded is None or len(decoded) != 38 or not decoded.startswith(_PEER_ID_PREFIX):
        raise AddressError(f"expected a peer id of the form 12D3KooW... (52 characters), got {peer!r:.80}")
    return Ed25519PublicKey.from_public_bytes(decoded[len(_PEER_ID_PREFIX) :])


def _peer_id(public: bytes) -> PeerId:
    number = int.from_bytes(_PEER_ID_PREFIX + public)
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    return PeerId("1" + text)  # "1" stands for the leading zero byte


def _base58_decode(text: str) -> bytes | None:
    number = 0
    for character in text:
        digit = _ALPHABET.find(character)
        if digit < 0:
            return None
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8)


class IdentityFile:
    """An identity file, locked while open: two processes of one name would break the swarm.

    Where the disk knows no locks or no file modes (NFS without a lock daemon; CIFS, exFAT, /mnt/c of WSL), a
    warning says what is not protected.

    Args:
        path: created (mode 0600) if it does not exist; its folder must.

    Raises:
        StorageError: the file is corrupt, readable by others, in use, or can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.exists():
                _create(path)
            self._lock = Lock(path)
        except TakenError as error:
            raise StorageError(
                f"identity {path}: another process uses it now; each peer needs its own file"
            ) from error
        except OSError as error:
            raise StorageError(
                f"identity {path}: {error.strerror}; name a file in a writable folder (exchange.identity)"
            ) from error
        try:
            self.identity = self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> Identity:
        mode = stat.S_IMODE(os.fstat(self._lock.descriptor).st_mode)
        if mode & 0o077:
            if not _without_modes(self.path.parent):
                raise StorageError(
                    f"identity {self.path}: expected mode 0600, got {mode:04o}: others could read the key. "
                    f"Run chmod 600 on it, delete it to get a new identity, or name another file in "
                    f"exchange.identity"
                )
            logger.warning(
                "identity %s: its disk has no file modes (%04o), so whoever may read the disk can take this "
                "peer's name; exchange.identity names a file elsewhere",
                self.path,
                mode,
            )
        if self._lock.missing:
            logger.warning(
                "identity %s: its disk gives no locks (%s), so nothing here keeps a second process from "
                "using it; exchange.identity names a file elsewhere",
                self.path,
                self._lock.missing,
            )
        data = os.read(self._lock.descriptor, 4096)
        seed, public = data[4:36], data[36:]
        if len(data) == 68 and data.startswith(_PRIVATE_PREFIX):
            key = Ed25519PrivateKey.from_private_bytes(seed)
            if key.public_key().public_bytes_raw() == public:
                return Identity(key)
        raise StorageError(
            f"identity {self.path}: expected 68 bytes holding an ed25519 key, got {len(data)} that do not; "
            f"restore it, or delete it to get a new identity"
        )

    def close(self) -> None:
        """Release the lock. Idempotent."""
        self._lock.close()


def _create(path: Path) -> None:
    """Write a new key so that no reader ever sees half of it."""
    partial, descriptor = _new_file(path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(Identity.generate().to_bytes())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)
        except FileExistsError:
            pass  # another process was first; its key is as good
        except OSError:  # no links on this disk; of two processes that are first, each keeps a key of its own
            partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _new_file(folder: Path) -> tuple[Path, int]:
    """An empty file of mode 0600 that nobody else knows, open for writing."""
    path = folder / f".identity.{secrets.token_hex(8)}"
    return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _without_modes(folder: Path) -> bool:
    """Whether a new file here shows other modes than it was made with."""
    try:
        path, descriptor = _new_file(folder)
    except OSError:
        return False
    try:
        return bool(stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077)
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)
