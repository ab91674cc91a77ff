"""The messages of the machine plane (protocol.md, "Messages on the machine plane").

Times are milliseconds since the epoch, amounts are bytes and thousandths of a core, scores are parts per
million. Every class checks its fields when it is built; `encode_message` and `decode_message` are in
`magik_proto.wire` and offered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, Final, Self
from uuid import UUID

from attrs import field, frozen

from magik_proto import fields, wire
from magik_proto.errors import InvalidField, RemoteProtocolError
from magik_proto.fields import MAX_COUNT
from magik_proto.identity import PeerId
from magik_proto.wire import Message, OpenPart, Part, SignedMessage, decode_as, encode_message

__all__ = [
    "FABRIC_TOPIC",
    "MESSAGES",
    "Award",
    "Bid",
    "Disposal",
    "Event",
    "EventType",
    "Expression",
    "Message",
    "Requirements",
    "ResourceId",
    "SelectorTerm",
    "SignedMessage",
    "Tender",
    "Toleration",
    "decode_as",
    "decode_message",
    "encode_message",
]

FABRIC_TOPIC: Final = "magik-fabric"
"""The gossip topic of tenders and disposals."""
_peer = fields.instance(PeerId)
_member = fields.optional(fields.octets(1, 4096))  # technical-spec §6: a member is at most 4 KiB


@frozen
class ResourceId(Part):
    """Which Kubernetes object: its namespace, kind and name. ``str()`` gives ``default/Deployment/nginx``."""

    namespace: str = field(validator=fields.namespace)
    kind: str = field(validator=fields.kind_name)
    name: str = field(validator=fields.object_name)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The id written in `text`; `RemoteProtocolError` (``message.resource-id``) when it is not one."""
        parts = text.split("/")
        if len(parts) != 3:
            raise RemoteProtocolError("message.resource-id", f"{text[:400]!r}: expected namespace/kind/name")
        try:
            return cls(*parts)
        except InvalidField as error:
            raise RemoteProtocolError("message.resource-id", f"{text[:400]!r}: {error}") from error

    def __str__(self) -> str:
        return f"{self.namespace}/{self.kind}/{self.name}"


@frozen
class Expression(Part):
    """One condition on a machine's labels, as Kubernetes' NodeSelectorRequirement."""

    key: str = field(validator=fields.label_key)
    operator: str = field(validator=fields.one_of("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"))
    values: tuple[str, ...] = field(default=(), validator=fields.sequence(fields.label_value, 64))


@frozen
class SelectorTerm(Part):
    """Conditions that must all hold. A term without any matches no machine, as in Kubernetes."""

    expressions: tuple[Expression, ...] = field(validator=fields.sequence(fields.instance(Expression), 32))


@frozen
class Toleration(Part):
    """A taint that the workload puts up with. An empty key with ``Exists`` tolerates all; an empty effect
    means any."""

    key: str = field(default="", validator=fields.matching(fields.OPTIONAL_LABEL_KEY, "empty or a label key"))
    operator: str = field(default="Equal", validator=fields.one_of("Equal", "Exists"))
    value: str = field(default="", validator=fields.label_value)
    effect: str = field(
        default="", validator=fields.one_of("", "NoSchedule", "PreferNoSchedule", "NoExecute")
    )


@frozen(kw_only=True)
class Requirements(OpenPart):
    """What one replica needs of a machine. `affinity` terms are alternatives; `avoid` names machines not to
    use."""

    cpu_millis: int = field(validator=fields.integer(0, fields.MAX_MILLIS))
    memory_bytes: int = field(validator=fields.integer(0, fields.MAX_BYTES))
    storage_bytes: int = field(default=0, validator=fields.integer(0, fields.MAX_BYTES))
    runtime: str = field(default="crun", validator=fields.one_of("crun", "krun", "wasm"))
    architecture: str | None = field(
        default=None, validator=fields.optional(fields.matching(fields.ARCHITECTURE, "like amd64"))
    )
    node_selector: Mapping[str, str] = field(
        factory=dict,
        converter=fields.freeze,
        validator=fields.mapping(fields.label_key, fields.label_value, 64),
        hash=False,
    )
    affinity: tuple[SelectorTerm, ...] = field(
        default=(), validator=fields.sequence(fields.instance(SelectorTerm), 32)
    )
    tolerations: tuple[Toleration, ...] = field(
        default=(), validator=fields.sequence(fields.instance(Toleration), 64)
    )
    avoid: tuple[PeerId, ...] = field(default=(), validator=fields.sequence(_peer, 256))


@frozen(kw_only=True)
class Tender(SignedMessage):
    """An owner asks the fabric who can run a workload. Gossiped; names neither the manifest nor the replica
    count.

    `member` is the owner's membership where machines may not know it (a large fabric); else None.
    `bid_sample` machines should answer in round `round`; `priority` is Kubernetes' pod priority (32 bits,
    signed).
    """

    TYPE: ClassVar[str] = "tender"

    id: UUID = field(validator=fields.uuid)
    owner: PeerId = field(validator=_peer)
    manifest_digest: bytes = field(validator=fields.digest)
    qos_preemptible: bool = field(validator=fields.boolean)
    priority: int = field(validator=fields.integer(-(1 << 31), (1 << 31) - 1))
    requirements: Requirements = field(validator=fields.instance(Requirements))
    bid_sample: int = field(validator=fields.integer(1, 1_000_000))
    round: int = field(validator=fields.integer(0, 255))
    member: bytes | None = field(default=None, validator=_member, repr=False)
    timestamp: int = field(validator=fields.timestamp)

    @property
    def signer(self) -> PeerId:
        """The owner."""
        return self.owner

    @property
    def has_unknown(self) -> bool:
        """Whether the tender or its requirements hold fields that this version does not know."""
        return bool(self.extra or self.requirements.extra)

    @property
    def replay_id(self) -> bytes:
        """Type and tender id."""
        return b"tender" + self.id.bytes


@frozen(kw_only=True)
class Bid(SignedMessage):
    """A machine offers `slots` replicas' room to a tender's owner. Scores are parts per million."""

    TYPE: ClassVar[str] = "bid"

    tender_id: UUID = field(validator=fields.uuid)
    node_id: PeerId = field(validator=_peer)
    score: int = field(validator=fields.ppm)
    resource_fit_score: int = field(validator=fields.ppm)
    network_locality_score: int = field(validator=fields.ppm)
    slots: int = field(validator=fields.count)
    sealing_key: bytes = field(validator=fields.public_key)
    timestamp: int = field(validator=fields.timestamp)

    @property
    def signer(self) -> PeerId:
        """The bidding machine."""
        return self.node_id

    @property
    def replay_id(self) -> bytes:
        """Type and tender id."""
        return b"bid" + self.tender_id.bytes


@frozen(kw_only=True)
class Award(SignedMessage):
    """An owner gives `replicas` replicas to `winner`. The manifest travels beside it, sealed to the winner
    (`magik_proto.awards.Delivery`); `sealed_digest` is that box's SHA-256.

    `ordinals` are those of a StatefulSet's replicas, one for each; empty for other kinds. So the award is its
    own receipt: it shows who may run what, and is short enough to be shown by every pod that it led to.
    """

    TYPE: ClassVar[str] = "award"

    tender_id: UUID = field(validator=fields.uuid)
    owner_identity: PeerId = field(validator=_peer)
    owner_pubkey: bytes = field(validator=fields.public_key)
    winner: PeerId = field(validator=_peer)
    resource: ResourceId = field(validator=fields.instance(ResourceId))
    uid: UUID = field(validator=fields.uuid)
    generation: int = field(validator=fields.generation)
    replicas: int = field(validator=fields.count)
    ordinals: tuple[int, ...] = field(default=(), validator=fields.ascending(MAX_COUNT, (1 << 31) - 1))
    manifest_digest: bytes = field(validator=fields.digest)
    sealed_digest: bytes = field(validator=fields.digest)
    timestamp: int = field(validator=fields.timestamp)

    def __attrs_post_init__(self) -> None:
        if self.ordinals and len(self.ordinals) != self.replicas:
            raise InvalidField("ordinals", f"{len(self.ordinals)} of them for {self.replicas} replicas")

    @property
    def signer(self) -> PeerId:
        """The tender's owner."""
        return self.owner_identity

    @property
    def replay_id(self) -> bytes:
        """Type and tender id."""
        return b"award" + self.tender_id.bytes

    def check(self) -> None:
        """The key must be the one that the identity is."""
        if self.owner_identity.raw != self.owner_pubkey:
            raise RemoteProtocolError(
                "signature.identity-mismatch", "owner_pubkey is not owner_identity's key"
            )


class EventType(StrEnum):
    """What became of an award."""

    Deployed = "Deployed"
    Failed = "Failed"
    Preempted = "Preempted"
    Cancelled = "Cancelled"


@frozen(kw_only=True)
class Event(SignedMessage):
    """A machine tells a tender's owner what became of its award; `pods` are the names of the pods
    concerned."""

    TYPE: ClassVar[str] = "event"
    MAX_SIZE: ClassVar[int] = 4 * 1024 * 1024

    tender_id: UUID = field(validator=fields.uuid)
    node_id: PeerId = field(validator=_peer)
    event_type: EventType = field(validator=fields.instance(EventType))
    reason: str = field(default="", validator=fields.prose)
    pods: tuple[str, ...] = field(default=(), validator=fields.sequence(fields.object_name, MAX_COUNT))
    timestamp: int = field(validator=fields.timestamp)

    @property
    def signer(self) -> PeerId:
        """The machine that was awarded."""
        return self.node_id

    @property
    def replay_id(self) -> bytes:
        """Type and tender id."""
        return b"event" + self.tender_id.bytes


@frozen(kw_only=True)
class Disposal(SignedMessage):
    """A workload is deleted for good: this uid, up to this generation, and never a later namesake.
    Gossiped. `member` is as in `Tender`."""

    TYPE: ClassVar[str] = "disposal"

    signer: PeerId = field(validator=_peer)
    namespace: str = field(validator=fields.namespace)
    kind: str = field(validator=fields.kind_name)
    name: str = field(validator=fields.object_name)
    uid: UUID = field(validator=fields.uuid)
    generation: int = field(validator=fields.generation)
    member: bytes | None = field(default=None, validator=_member, repr=False)
    timestamp: int = field(validator=fields.timestamp)

    @property
    def resource(self) -> ResourceId:
        """The workload's id."""
        return ResourceId(self.namespace, self.kind, self.name)

    @property
    def replay_id(self) -> bytes:
        """Type and the workload's uid."""
        return b"disposal" + self.uid.bytes


MESSAGES: Final[tuple[type[SignedMessage], ...]] = (Tender, Bid, Award, Event, Disposal)
"""All messages that `decode_message` reads."""
_MESSAGES: Final = wire.Family(MESSAGES)


def decode_message(data: bytes) -> SignedMessage:
    """The message in `data`, whichever of `MESSAGES` it is; its signature is not checked yet.

    Raises `RemoteProtocolError`: a rule of the codec, ``message.malformed``, ``message.unknown-type``,
    ``message.unknown-version``, ``message.field`` or ``signature.missing``.
    """
    return _MESSAGES.decode(data)
