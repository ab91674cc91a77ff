"""Signatures on messages: domain-separated, so that one type's bytes never pass for another's."""

from __future__ import annotations

import hashlib
import os
from typing import TypeVar

from magik_proto import wire
from magik_proto.errors import LocalProtocolError
from magik_proto.identity import Identity, RandomSource, verify_signature
from magik_proto.wire import SignedMessage

M = TypeVar("M", bound=SignedMessage)


def domain(cls: type[SignedMessage]) -> bytes:
    """``magik/<type>/<version>`` and a NUL: the first bytes of all that is signed for messages of `cls`."""
    return f"magik/{cls.TYPE}/{cls.VERSION}".encode() + b"\0"


def signed_bytes(message: SignedMessage) -> bytes:
    """What the signature of `message` is over: domain ‖ SHA-256(canonical CBOR of all fields but the
    signature)."""
    digest = message.digest_read or hashlib.sha256(wire.encode_unsigned(message)).digest()
    return domain(type(message)) + digest


def sign(message: M, identity: Identity) -> M:
    """`message` with `identity`'s signature. Raises `LocalProtocolError` when the message names another
    signer."""
    if message.signer != identity.peer_id:
        raise LocalProtocolError(
            f"{message.TYPE} names {message.signer} as signer, the key is {identity.peer_id}"
        )
    return message.with_signature(identity.sign(signed_bytes(message)))


def verify(message: SignedMessage) -> None:
    """Return if `message` is signed by the signer that it names and its fields agree with that signer.

    Raises `RemoteProtocolError`: ``signature.invalid``, or the rule of `SignedMessage.check`. Whether the
    signer may send such a message (membership, roles) and whether it is fresh (`magik_proto.replay`) are
    questions of their own.
    """
    message.check()
    verify_signature(message.signer, signed_bytes(message), message.signature)


def new_nonce(random: RandomSource = os.urandom) -> int:
    """A random 64-bit nonce."""
    return int.from_bytes(random(8), "big")
