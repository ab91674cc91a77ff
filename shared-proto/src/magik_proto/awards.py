"""What goes with an award to its winner alone: the workload record, sealed to the key that the winner's bid
named."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from attrs import field, frozen

from magik_proto import signing
from magik_proto.errors import RemoteProtocolError
from magik_proto.fields import MAX_MANIFEST
from magik_proto.identity import SealingKey, seal
from magik_proto.messages import Award
from magik_proto.records import Workload
from magik_proto.wire import decode_as, encode_message

MAX_SEALED: Final = MAX_MANIFEST + 8 * 1024
"""Bytes of a sealed workload record: a manifest and the record around it. At it: refused."""


@frozen
class Delivery:
    """An award on its way to its winner: `sealed` is the box that only the winner can open."""

    award: Award
    sealed: bytes = field(repr=False)

    def to_body(self) -> dict[str, bytes]:
        """As the body of the call ``/magik/award/1.0.0``."""
        return {"award": encode_message(self.award), "sealed": self.sealed}

    @classmethod
    def from_body(cls, body: Any) -> Delivery:
        """The delivery in a call's body; `RemoteProtocolError` (``award.body``, or as of `decode_as`)."""
        match body:
            case {"award": bytes(award), "sealed": bytes(sealed)} if 0 < len(sealed) <= MAX_SEALED:
                return cls(decode_as(Award, award), sealed)
        detail = f"expected 'award' and 'sealed' as bytes, sealed of 1 to {MAX_SEALED}"
        raise RemoteProtocolError("award.body", detail)


def seal_workload(workload: Workload, sealing_key: bytes) -> bytes:
    """`workload` in a box, to be opened only by the holder of `sealing_key` (`Bid.sealing_key`).

    Raises `RemoteProtocolError` (``seal.key``) when nothing can be sealed to that key.
    """
    return seal(sealing_key, encode_message(workload))


def digest_of(sealed: bytes) -> bytes:
    """What `Award.sealed_digest` says of a box."""
    return hashlib.sha256(sealed).digest()


def open_award(delivery: Delivery, key: SealingKey) -> Workload:
    """The workload in the box, which is what the award says it is and signed by its author.

    The award's own signature is the caller's to verify. Raises `RemoteProtocolError`: ``award.other-box``
    when the box is not the award's, ``seal.invalid``, a rule of the codec, of the message or of the
    signature, or ``award.mismatch`` when inside and outside differ.
    """
    award = delivery.award
    if digest_of(delivery.sealed) != award.sealed_digest:
        raise RemoteProtocolError("award.other-box", f"the box is not that of the {award.resource} awarded")
    workload = decode_as(Workload, key.open(delivery.sealed))
    outside = (award.resource, award.uid, award.generation, award.manifest_digest)
    if outside != (workload.resource, workload.uid, workload.generation, workload.digest):
        raise RemoteProtocolError(
            "award.mismatch", f"the sealed workload is not the {award.resource} awarded"
        )
    signing.verify(workload)
    return workload
