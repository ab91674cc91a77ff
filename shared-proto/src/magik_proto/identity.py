"""Keys and the names made of them.

A peer id *is* a 32-byte Ed25519 public key. Secrets live in a `Secret`, which shows itself nowhere and can be
overwritten; what Python and libsodium's binding copy on the way (a transient `bytes` for each signature) is
beyond reach, and is freed at once but not overwritten.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from typing import Final, NoReturn, Self

from attrs import frozen
from nacl import bindings
from nacl.exceptions import CryptoError

from magik_proto.errors import InvalidField, LocalProtocolError, RemoteProtocolError

RandomSource = Callable[[int], bytes]
"""Takes a number of bytes, gives that many unpredictable bytes; `os.urandom` is one."""

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SEAL_OVERHEAD: Final = 48
"""Bytes that a sealed box is longer than its content: an ephemeral public key (32) and a tag (16)."""

_HEX_ID: Final = re.compile(r"[0-9a-f]{64}")


class PeerId(bytes):
    """Who a machine or workload is: its Ed25519 public key. Ordered by its bytes, written as 64 lower-case
    hex digits.

    The very bytes, not an object around them: machines look peers up in dicts all the time, and bytes keep
    their hash. So one equals the plain bytes of its key.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        if type(raw) is not bytes or len(raw) != KEY_BYTES:
            raise InvalidField("peer id", f"must be {KEY_BYTES} bytes")
        return super().__new__(cls, raw)

    @property
    def raw(self) -> bytes:
        """The key as plain bytes, which is what goes onto the wire."""
        return bytes(self)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The peer id written in `text`; `RemoteProtocolError` (``identity.peer-id``) when it is not one."""
        if not _HEX_ID.fullmatch(text):
            raise RemoteProtocolError("identity.peer-id", "a peer id is 64 lower-case hex digits")
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"PeerId({self.hex()[:12]}…)"

    @property
    def short(self) -> str:
        """The first 12 digits, for people to read; never for decisions."""
        return self.hex()[:12]


class Secret:
    """Key bytes that `repr`, `str`, copies and pickles do not show, and that `wipe` overwrites in place."""

    __slots__ = ("_buffer", "_name")

    def __init__(self, value: bytes, name: str) -> None:
        if len(value) != KEY_BYTES:
            raise InvalidField(name, f"must be {KEY_BYTES} bytes")
        self._buffer = bytearray(value)
        self._name = name

    def reveal(self) -> bytes:
        """A copy of the secret; keep it no longer than the call that needs it."""
        if not self._buffer:
            raise LocalProtocolError(f"{self._name} was wiped and cannot be used any more")
        return bytes(self._buffer)

    @property
    def wiped(self) -> bool:
        """Whether `wipe` was called."""
        return not self._buffer

    def wipe(self) -> None:
        """Overwrite the secret; using it afterwards raises `LocalProtocolError`. Calling it again does
        nothing."""
        for index in range(len(self._buffer)):
            self._buffer[index] = 0
        self._buffer = bytearray()

    def __repr__(self) -> str:
        return f"<{self._name}: secret>"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError(f"{self._name} is secret: it cannot be pickled or copied")

    def __del__(self) -> None:
        if getattr(self, "_buffer", None):
            self.wipe()


class _SecretHolder:
    """What `Identity` and `SealingKey` share: one secret that can be wiped, never pickled, never shown."""

    __slots__ = ("_secret",)
    _secret: Secret

    def seed(self) -> bytes:
        """The 32 secret bytes, for storing in a file that only the owner may read."""
        return self._secret.reveal()

    def wipe(self) -> None:
        """Overwrite the secret. The public part stays usable."""
        self._secret.wipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def __reduce__(self) -> NoReturn:
        self._secret.__reduce__()


class Identity(_SecretHolder):
    """An Ed25519 key pair. As a context manager it wipes its secret at the end."""

    __slots__ = ("_peer_id",)

    def __init__(self, seed: bytes) -> None:
        self._secret = Secret(seed, "identity key")
        public, _ = bindings.crypto_sign_seed_keypair(seed)
        self._peer_id = PeerId(public)

    @classmethod
    def generate(cls, random: RandomSource = os.urandom) -> Self:
        """A new identity."""
        return cls(random(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The identity that `seed` (32 bytes) stands for."""
        return cls(seed)

    @property
    def peer_id(self) -> PeerId:
        """The public key, which is the name of this identity."""
        return self._peer_id

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature (RFC 8032) of `message`. Use `magik_proto.signing` for messages."""
        # libsodium's secret key is the seed and the public key side by side.
        return bindings.crypto_sign(message, self._secret.reveal() + self._peer_id.raw)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"<Identity {self._peer_id}>"


class SealingKey(_SecretHolder):
    """An X25519 key pair to which anyone may seal bytes that only its holder opens."""

    __slots__ = ("_public",)

    def __init__(self, seed: bytes) -> None:
        self._secret = Secret(seed, "sealing key")
        self._public = bindings.crypto_scalarmult_base(seed)

    @classmethod
    def generate(cls, random: RandomSource = os.urandom) -> Self:
        """A new sealing key."""
        return cls(random(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The sealing key whose secret scalar is `seed` (32 bytes, clamped as RFC 7748 says)."""
        return cls(seed)

    @property
    def public(self) -> bytes:
        """The 32-byte X25519 public key."""
        return self._public

    def open(self, sealed: bytes) -> bytes:
        """What was sealed to this key; `RemoteProtocolError` (``seal.invalid``) for anything else."""
        if len(sealed) < SEAL_OVERHEAD:
            raise RemoteProtocolError("seal.invalid", "shorter than a sealed box can be")
        try:
            return bindings.crypto_box_seal_open(sealed, self._public, self._secret.reveal())
        except CryptoError as error:
            raise RemoteProtocolError(
                "seal.invalid", "not sealed to this machine's key, or damaged"
            ) from error

    def __repr__(self) -> str:
        return f"<SealingKey {self._public.hex()}>"


def seal(public: bytes, plaintext: bytes) -> bytes:
    """`plaintext` sealed (libsodium's sealed box: X25519, XSalsa20-Poly1305) to the holder of `public`.

    The sender is anonymous and the box is never the same twice; who sent it is said by a signature around it.
    Raises `RemoteProtocolError` (``seal.key``) for a public key to which nothing can be sealed.
    """
    if len(public) != KEY_BYTES:
        raise RemoteProtocolError("seal.key", f"a sealing key is {KEY_BYTES} bytes")
    try:
        return bindings.crypto_box_seal(plaintext, public)
    except CryptoError as error:  # a point of small order: everybody could open the box
        raise RemoteProtocolError("seal.key", "the sealing key is not a usable X25519 point") from error


def verify_signature(peer_id: PeerId, message: bytes, signature: bytes) -> None:
    """Return if `signature` is `peer_id`'s Ed25519 signature of `message`; else `RemoteProtocolError`
    (``signature.invalid``)."""
    if len(signature) != SIGNATURE_BYTES:
        raise RemoteProtocolError(
            "signature.invalid", f"a signature is {SIGNATURE_BYTES} bytes, not {len(signature)}"
        )
    try:
        bindings.crypto_sign_open(signature + message, peer_id.raw)
    except CryptoError as error:
        raise RemoteProtocolError("signature.invalid", f"not signed by {peer_id}") from error


def parse_address(text: str) -> tuple[str, int]:
    """``ip:port`` or ``[ipv6]:port`` as (host, port); `RemoteProtocolError` (``identity.address``) for
    anything else."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = host[1:-1] if bracketed else host
    if not colon or not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 0xFFFF:
        raise RemoteProtocolError("identity.address", f"{text!r}: expected ip:port")
    try:
        address = ipaddress.ip_address(plain)
    except ValueError as error:
        raise RemoteProtocolError("identity.address", f"{text!r}: {plain!r} is not an IP address") from error
    if bracketed != (address.version == 6):
        raise RemoteProtocolError("identity.address", f"{text!r}: IPv6 is written [ip]:port, IPv4 ip:port")
    return str(address), int(port)


def format_address(host: str, port: int) -> str:
    """The text form that `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@frozen(repr=False)
class BootstrapPeer:
    """A machine to connect to first, with the identity that it must prove: ``<identity_hex>@<ip:port>``."""

    peer: PeerId
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The peer written in `text`; `RemoteProtocolError` (``identity.peer-id`` or ``identity.address``)
        otherwise."""
        identity, at, address = text.partition("@")
        if not at:
            raise RemoteProtocolError("identity.address", f"{text!r}: expected <identity_hex>@<ip:port>")
        host, port = parse_address(address)
        return cls(PeerId.parse(identity), host, port)

    def __str__(self) -> str:
        return f"{self.peer}@{format_address(self.host, self.port)}"

    def __repr__(self) -> str:
        return f"BootstrapPeer({str(self)!r})"
