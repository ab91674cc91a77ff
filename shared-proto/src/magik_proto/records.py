"""Records: signed statements that lie in tables with a lifetime (protocol.md, "Workload plane" and
"Invariants" 2).

A record is a hint and never the truth; who reads one checks signature, freshness and, where it matters, asks
its author.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final
from uuid import UUID

from attrs import field, frozen

from magik_proto import fields, wire
from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.fields import MAX_MANIFEST
from magik_proto.identity import PeerId
from magik_proto.messages import ResourceId
from magik_proto.wire import SignedMessage, decode_as, encode_message

__all__ = [
    "RECORDS",
    "HoldingRecord",
    "MachineRecord",
    "ServiceRecord",
    "Workload",
    "canonical_json",
    "decode_as",
    "decode_record",
    "encode_message",
]

SERVICE_LIFE_MS: Final = 15_000
"""How long a service record holds after its `ts`; it is announced every 5 s."""
SERVICE_ANNOUNCE_MS: Final = 5_000
MAX_ADDRESSES: Final = 16
MAX_LABELS: Final = 64
MAX_HOLDING_LIFE_S: Final = 3600
"""Of a holding record, in seconds: what nobody renews for an hour is not there any more (guess)."""
MAX_HOLDING_ID: Final = 640
"""Characters of a holding's id: a resource id has 63 + 63 + 253 and two strokes, an image's name 512."""
MAX_RELAYS: Final = 4
"""Relays of a machine in its record: twice what it keeps."""

_peer = fields.instance(PeerId)
_addresses = fields.sequence(fields.address, MAX_ADDRESSES)
_holds = fields.matching(re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?"), "a word of at most 32 small letters")
_cap_name = fields.matching(fields.FIELD_NAME, "a name in snake_case")


def _cap_value(_: Any, attribute: Any, value: Any) -> None:
    if type(value) is int and 0 <= value <= fields.MAX_U64:
        return
    if type(value) is not bool and not (type(value) is str and len(value) <= 256):
        raise fields.fail(attribute, "holds booleans, unsigned integers and texts of at most 256 characters")


def _holding_id(_: Any, attribute: Any, value: Any) -> None:
    fields.text(MAX_HOLDING_ID)(_, attribute, value)
    if not value:
        raise fields.fail(attribute, "must not be empty")


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and no spaces: what `Workload.manifest` holds and digests are
    taken of.

    Raises `LocalProtocolError` for what JSON cannot say (NaN, bytes, keys that are not text).
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise LocalProtocolError(f"no canonical JSON: {error}") from error


@frozen(kw_only=True)
class Workload(SignedMessage):
    """A Kubernetes object as its author wants it to be: the desired state that machines hold for each other.

    `manifest` is canonical JSON; `stamp` is the author's hybrid clock (see `magik_proto.clock`).
    """

    TYPE: ClassVar[str] = "workload"
    MAX_SIZE: ClassVar[int] = MAX_MANIFEST + 4 * 1024

    resource: ResourceId = field(validator=fields.instance(ResourceId))
    uid: UUID = field(validator=fields.uuid)
    generation: int = field(validator=fields.generation)
    replicas: int = field(validator=fields.integer(0, fields.MAX_COUNT))
    manifest: bytes = field(validator=fields.octets(2, MAX_MANIFEST), repr=False)
    author: PeerId = field(validator=_peer)
    stamp: int = field(validator=fields.integer(0, fields.MAX_U64))
    timestamp: int = field(validator=fields.timestamp)

    @property
    def signer(self) -> PeerId:
        """The author."""
        return self.author

    @property
    def replay_id(self) -> bytes:
        """Type and uid."""
        return b"workload" + self.uid.bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of the manifest: what tenders and awards call `manifest_digest`."""
        return hashlib.sha256(self.manifest).digest()

    @property
    def precedence(self) -> tuple[int, int, PeerId]:
        """Of two records of one uid the one with the higher precedence counts."""
        return (self.generation, self.stamp, self.author)


@frozen(kw_only=True)
class MachineRecord(SignedMessage):
    """A machine tells the fabric where it is and what it is. Of two, the one with the higher `seq` counts.

    `member` is its membership (see `magik_proto.membership`), so that who has the record can check the
    machine's messages without having met it; None in an open fabric. `relays` are members that relay for a
    machine that cannot be reached itself; None for all others.
    """

    TYPE: ClassVar[str] = "machine"

    peer: PeerId = field(validator=_peer)
    addrs: tuple[str, ...] = field(default=(), validator=_addresses)
    labels: Mapping[str, str] = field(
        factory=dict,
        converter=fields.freeze,
        validator=fields.mapping(fields.label_key, fields.label_value, MAX_LABELS),
        hash=False,
    )
    member: bytes | None = field(default=None, validator=fields.optional(fields.octets(1, 4096)), repr=False)
    relays: tuple[PeerId, ...] | None = field(
        default=None, validator=fields.optional(fields.sequence(_peer, MAX_RELAYS))
    )
    seq: int = field(validator=fields.integer(0, fields.MAX_U64))
    timestamp: int = field(validator=fields.timestamp)

    @property
    def signer(self) -> PeerId:
        """The machine."""
        return self.peer

    @property
    def replay_id(self) -> bytes:
        """Type and machine."""
        return b"machine" + self.peer.raw


@frozen(kw_only=True)
class ServiceRecord(SignedMessage):
    """One replica of a workload in the workload DHT (protocol.md, "Workload plane"), signed by the replica.

    `caps` are facts like ``leader`` (bool) and ``leader_epoch`` (int); `ports` maps names to numbers; `ts` is
    in ms. `member` is the replica's pass (see `magik_proto.passes`), so that who has the record can tell
    whose it is without having met it; None in an open fabric.
    """

    TYPE: ClassVar[str] = "service"

    workload_id: str = field(validator=fields.text(400))
    namespace: str = field(validator=fields.namespace)
    workload_kind: str = field(validator=fields.kind_name)
    workload_name: str = field(validator=fields.object_name)
    peer_id: PeerId = field(validator=_peer)
    pod_name: str = field(validator=fields.object_name)
    ordinal: int | None = field(default=None, validator=fields.optional(fields.integer(0, (1 << 31) - 1)))
    addrs: tuple[str, ...] = field(default=(), validator=_addresses)
    caps: Mapping[str, bool | int | str] = field(
        factory=dict, converter=fields.freeze, validator=fields.mapping(_cap_name, _cap_value, 32), hash=False
    )
    ports: Mapping[str, int] = field(
        factory=dict,
        converter=fields.freeze,
        validator=fields.mapping(fields.port_name, fields.port, 64),
        hash=False,
    )
    version: int = field(validator=fields.integer(0, fields.MAX_U64))
    ts: int = field(validator=fields.timestamp)
    ready: bool = field(validator=fields.boolean)
    healthy: bool = field(validator=fields.boolean)
    member: bytes | None = field(default=None, validator=fields.optional(fields.octets(1, 4096)), repr=False)

    @property
    def signer(self) -> PeerId:
        """The replica."""
        return self.peer_id

    @property
    def timestamp(self) -> int:
        """`ts`, by the name that all other messages use."""
        return self.ts

    @property
    def replay_id(self) -> bytes:
        """Type and workload."""
        return b"service" + self.workload_id.encode()

    @property
    def resource(self) -> ResourceId:
        """The workload."""
        return ResourceId(self.namespace, self.workload_kind, self.workload_name)

    @property
    def precedence(self) -> tuple[int, int, PeerId]:
        """Conflict order of protocol.md: higher version, then higher ts, then the higher peer id."""
        return (self.version, self.ts, self.peer_id)

    def expired(self, now_ms: int) -> bool:
        """Whether its life is over."""
        return now_ms >= self.ts + SERVICE_LIFE_MS

    def check(self) -> None:
        """The workload id must say what the other fields say."""
        if self.workload_id != str(self.resource):
            raise RemoteProtocolError("signature.identity-mismatch", f"workload_id is not {self.resource}")


@frozen(kw_only=True)
class HoldingRecord(SignedMessage):
    """A machine tells that it has something of what `holds` and `id` name, for `life` seconds from now.

    As ``workload`` ``default/Deployment/web``: a pod of it runs there. It is a hint of whom to ask. `member` is as a
    machine record's.
    """

    TYPE: ClassVar[str] = "holding"

    peer: PeerId = field(validator=_peer)
    holds: str = field(validator=_holds)
    id: str = field(validator=_holding_id)
    life: int = field(validator=fields.integer(1, MAX_HOLDING_LIFE_S))
    member: bytes | None = field(default=None, validator=fields.optional(fields.octets(1, 4096)), repr=False)
    timestamp: int = field(validator=fields.timestamp)

    @property
    def signer(self) -> PeerId:
        """The machine."""
        return self.peer

    @property
    def replay_id(self) -> bytes:
        """Type and what it has."""
        return b"holding" + f"{self.holds}\0{self.id}".encode()


RECORDS: Final[tuple[type[SignedMessage], ...]] = (Workload, MachineRecord, ServiceRecord, HoldingRecord)
_RECORDS: Final = wire.Family(RECORDS)


def decode_record(data: bytes) -> SignedMessage:
    """The record in `data`, whichever of `RECORDS` it is; its signature is not checked yet. Errors as
    `decode_message`'s."""
    return _RECORDS.decode(data)
