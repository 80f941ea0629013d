"""Who may be in a run: anybody, whom the owner invited, or a list of peers.

A token is a certificate signed with the owner's ed25519 key: run, subject, expiry. The subject is
the peer it was made for, or, in a bearer token, a key of the token's own, whose secret half is in
the token. What a peer shows to others is its *pass*: the certificate, and for a bearer token a
signature over its own peer id by the token's key. So a pass is worth nothing to whoever reads it,
and libp2p's handshake proves the peer id that it names.

Shown in the opening frame of every stream and in every record of the DHT (`exchanges/swarm/`).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lowcomm.clock import Clock, SystemClock
from lowcomm.errors import AddressError, ConfigError, StorageError
from lowcomm.exchanges.swarm.identity import Identity, public_key, verify
from lowcomm.types import PeerId

MAX_PASS = 640
"""Characters; an opening frame has room for so many."""

_CERTIFICATE, _HOLDER = "invite", "invite holder"
_SEED = slice(4, 36)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the owner signed: `subject` may be in `run_id` until `expires_s` (since 1970)."""

    run_id: str
    subject: PeerId
    bearer: bool
    expires_s: int

    def signed_bytes(self) -> bytes:
        packed: bytes = msgpack.packb([self.run_id, self.subject, self.bearer, self.expires_s])
        return packed


def make_token(owner: Identity, run_id: str, *, peer: PeerId | None, expires_s: int) -> str:
    """A token for one peer, or for whoever holds it if `peer` is None: then it is a secret.

    Raises:
        AddressError: `peer` is no ed25519 peer id.
    """
    secret = ""
    if peer is None:
        key = Identity.generate()
        peer, secret = key.peer_id, "." + key.to_bytes()[_SEED].hex()
    else:
        public_key(peer)
    certificate = Certificate(run_id, peer, bool(secret), expires_s)
    signature = owner.sign(_CERTIFICATE, certificate.signed_bytes())
    packed = msgpack.packb([run_id, peer, bool(secret), expires_s, signature])
    return base64.urlsafe_b64encode(packed).decode().rstrip("=") + secret


def _read(text: str, owner: PeerId) -> Certificate | None:
    """The certificate in a text from anywhere, if it is `owner`'s."""
    try:
        padded = text + "=" * (-len(text) % 4)
        value = msgpack.unpackb(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, msgpack.UnpackException):
        return None
    if not isinstance(value, list) or len(value) != 5:
        return None
    run_id, subject, bearer, expires_s, signature = value
    kinds = (str, str, bool, int, bytes)
    if not all(type(part) is kind for part, kind in zip(value, kinds, strict=True)):
        return None
    certificate = Certificate(run_id, PeerId(subject), bearer, expires_s)
    return certificate if verify(owner, _CERTIFICATE, certificate.signed_bytes(), signature) else None


class Gate:
    """Decides whom this peer talks to, and holds what it shows to others.

    Args:
        owner: peer id of the run's owner, for runs by invitation; empty otherwise.
        allow: the peers allowed; empty = not by list.
        token: from `make_token`; the owner needs none.

    Raises:
        ConfigError: the owner is no peer id, or the token is not the owner's, or not for this run.
    """

    def __init__(
        self,
        run_id: str,
        *,
        owner: str = "",
        allow: tuple[str, ...] = (),
        token: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._run_id, self._owner, self._clock = run_id, PeerId(owner), clock or SystemClock()
        self._allow = frozenset(allow)
        self._certificate, _, self._secret = token.strip().partition(".")
        try:
            for peer in (owner, *allow):
                if peer:
                    public_key(PeerId(peer))
        except AddressError as error:
            raise ConfigError(f"shared.access.owner, exchange.allow: {error}") from error
        if owner and token:
            found = _read(self._certificate, self._owner)
            if found is None or found.run_id != run_id:
                raise ConfigError(
                    f"exchange.token_file: expected a token that {owner} made for run {run_id!r} with "
                    "`lowcomm invite`, got another or a damaged one"
                )

    def show(self, identity: Identity) -> str:
        """The pass of the peer with this identity; empty where none is needed."""
        if not self._secret:
            return self._certificate
        try:
            key = Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self._secret)))
        except ValueError as error:
            raise ConfigError("exchange.token_file: the secret half of the token is damaged") from error
        return f"{self._certificate}.{key.sign(_HOLDER, identity.peer_id.encode()).hex()}"

    def admits(self, peer: PeerId, shown: object) -> bool:
        """Whether `peer`, who showed `shown`, may be in the run."""
        if self._allow and peer not in self._allow:
            return False
        if not self._owner or peer == self._owner:
            return True
        if not isinstance(shown, str) or len(shown) > MAX_PASS or not shown.isascii():
            return False
        certificate, _, proof = shown.partition(".")
        found = _read(certificate, self._owner)
        if found is None or found.run_id != self._run_id or found.expires_s <= self._clock.wall_s():
            return False
        if not found.bearer:
            return found.subject == peer
        try:
            return verify(found.subject, _HOLDER, peer.encode(), bytes.fromhex(proof))
        except ValueError:
            return False


def read_token(file: Path) -> str:
    """The token in a file.

    Raises:
        StorageError: it can't be read.
    """
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{file}: expected a token of `lowcomm invite`: {error}") from error
