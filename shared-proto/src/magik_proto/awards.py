"""What an award carries for its winner alone: the workload record, sealed to the key that the winner's bid
named."""

from __future__ import annotations

from magik_proto import signing
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import SealingKey, seal
from magik_proto.messages import Award
from magik_proto.records import Workload
from magik_proto.wire import decode_as, encode_message


def seal_workload(workload: Workload, sealing_key: bytes) -> bytes:
    """`workload` for `Award.sealed_manifest`, to be opened only by the holder of `sealing_key`
    (`Bid.sealing_key`).

    Raises `RemoteProtocolError` (``seal.key``) when nothing can be sealed to that key.
    """
    return seal(sealing_key, encode_message(workload))


def open_award(award: Award, key: SealingKey) -> Workload:
    """The workload in `award`, which is what the award's outside says it is and signed by its author.

    The award's own signature is the caller's to verify. Raises `RemoteProtocolError`: ``seal.invalid``, a
    rule of the codec, of the message or of the signature, or ``award.mismatch`` when inside and outside
    differ.
    """
    workload = decode_as(Workload, key.open(award.sealed_manifest))
    outside = (award.resource, award.uid, award.generation, award.manifest_digest)
    if outside != (workload.resource, workload.uid, workload.generation, workload.digest):
        raise RemoteProtocolError(
            "award.mismatch", f"the sealed workload is not the {award.resource} awarded"
        )
    signing.verify(workload)
    return workload
