"""What goes with an award to its winner alone: the workload record, sealed to the key that the winner's bid
named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import field, frozen

from magik_proto import signing
from magik_proto.codec import decode, encode
from magik_proto.errors import RemoteProtocolError
from magik_proto.fields import MAX_MANIFEST
from magik_proto.identity import SealingKey, seal
from magik_proto.messages import Award
from magik_proto.records import Workload
from magik_proto.wire import decode_as, encode_message

MAX_SEALED: Final = MAX_MANIFEST + 8 * 1024
"""Bytes of a sealed workload record: a manifest and the record around it. At it: refused."""

MAX_OBJECTS: Final = 8 * 1024 * 1024
"""Bytes of the sealed records that the pods refer to, a guess: half a frame. At it: refused by the winner; an owner
leaves out what does not fit."""

_BOX_ROOM, _ITEM_ROOM = 64, 8  # of a sealed box (48) and a list's head; of an item's head


@frozen
class Delivery:
    """An award on its way to its winner: `sealed` is the box that only the winner can open.

    `objects`, if not empty, is another such box, with the records that the pods refer to (`seal_objects`). It is no
    part of the award, so that who keeps the award as a receipt does not keep what is secret. `founder`: ordinal 0 of this
    award founds its set's leadership, as one award in the life of a workload may say.
    """

    award: Award
    sealed: bytes = field(repr=False)
    objects: bytes = field(default=b"", repr=False)
    founder: bool = False

    def to_body(self) -> dict[str, bytes | bool]:
        """As the body of the call ``/magik/award/1.0.0``."""
        body: dict[str, bytes | bool] = {"award": encode_message(self.award), "sealed": self.sealed}
        body |= {"objects": self.objects} if self.objects else {}
        return body | ({"founder": True} if self.founder else {})

    @classmethod
    def from_body(cls, body: Any) -> Delivery:
        """The delivery in a call's body; `RemoteProtocolError` (``award.body``, or as of `decode_as`)."""
        objects = body.get("objects", b"") if isinstance(body, Mapping) else b""
        if not isinstance(objects, bytes) or len(objects) > MAX_OBJECTS:
            raise RemoteProtocolError("award.body", f"'objects' must be at most {MAX_OBJECTS} bytes")
        match body:
            case {"award": bytes(award), "sealed": bytes(sealed)} if 0 < len(sealed) <= MAX_SEALED:
                return cls(decode_as(Award, award), sealed, objects, body.get("founder") is True)
        detail = f"expected 'award' and 'sealed' as bytes, sealed of 1 to {MAX_SEALED}"
        raise RemoteProtocolError("award.body", detail)


def seal_workload(workload: Workload, sealing_key: bytes) -> bytes:
    """`workload` in a box, to be opened only by the holder of `sealing_key` (`Bid.sealing_key`).

    Raises `RemoteProtocolError` (``seal.key``) when nothing can be sealed to that key.
    """
    return seal(sealing_key, encode_message(workload))


def seal_objects(records: Iterable[Workload], sealing_key: bytes) -> bytes:
    """The records that an award's pods refer to in a box, as `seal_workload`; empty where there are none.

    Records are taken in order as long as they fit into `MAX_OBJECTS`.
    """
    taken, size = list[bytes](), _BOX_ROOM
    for record in records:
        raw = encode_message(record)
        size += len(raw) + _ITEM_ROOM
        if size > MAX_OBJECTS:
            break
        taken.append(raw)
    return seal(sealing_key, encode(taken)) if taken else b""


def open_objects(delivery: Delivery, key: SealingKey) -> tuple[Workload, ...]:
    """The records in the box beside an award: each signed by its author, and of the award's namespace.

    Raises `RemoteProtocolError`: ``seal.invalid``, ``award.objects``, or a rule of codec, message or signature.
    """
    if not delivery.objects:
        return ()
    listed = decode(key.open(delivery.objects), max_size=MAX_OBJECTS)
    if not isinstance(listed, list | tuple) or not all(isinstance(item, bytes) for item in listed):
        raise RemoteProtocolError("award.objects", "the box does not hold a list of records")
    records = tuple(decode_as(Workload, item) for item in listed)
    for record in records:
        signing.verify(record)
        if record.resource.namespace != delivery.award.resource.namespace:
            raise RemoteProtocolError("award.objects", f"{record.resource} is of another namespace")
    return records


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
