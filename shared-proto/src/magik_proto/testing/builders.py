"""Messages with little to write: valid, unsigned, and the same for the same arguments."""

from __future__ import annotations

from uuid import UUID

from magik_proto.identity import PeerId
from magik_proto.messages import Award, Bid, Event, EventType, Requirements, ResourceId, Tender
from magik_proto.placement import Capacity, MachineFacts

GIB = 1 << 30
DIGEST = bytes(32)
TENDER_ID = UUID("00000000-0000-4000-8000-000000000001")
_TIMESTAMP = 1_700_000_000_000


def peer(number: int) -> PeerId:
    """A peer id; ids are in the order of their numbers."""
    return PeerId(number.to_bytes(32, "big"))


def machine(number: int, *, cpu_millis: int = 4000, pods: int = 110) -> MachineFacts:
    """A machine that runs crun and wasm on amd64."""
    capacity = Capacity(cpu_millis, 8 * GIB, 100 * GIB, pods)
    return MachineFacts(peer(number), capacity, "amd64", frozenset({"crun", "wasm"}))


def requirements(cpu_millis: int = 500, memory_bytes: int = GIB // 4) -> Requirements:
    """What a small pod needs."""
    return Requirements(cpu_millis=cpu_millis, memory_bytes=memory_bytes)


def tender(
    owner: int,
    *,
    id: UUID = TENDER_ID,
    needs: Requirements | None = None,
    round: int = 1,
    bid_sample: int = 16,
    nonce: int = 0,
) -> Tender:
    return Tender(
        id=id,
        owner=peer(owner),
        manifest_digest=DIGEST,
        qos_preemptible=False,
        priority=0,
        requirements=needs or requirements(),
        bid_sample=bid_sample,
        round=round,
        timestamp=_TIMESTAMP,
        nonce=nonce,
    )


def bid(node: int, score: int = 500_000, slots: int = 1, *, id: UUID = TENDER_ID, nonce: int = 0) -> Bid:
    return Bid(
        tender_id=id,
        node_id=peer(node),
        score=score,
        resource_fit_score=score,
        network_locality_score=score,
        slots=slots,
        sealing_key=DIGEST,
        timestamp=_TIMESTAMP,
        nonce=nonce,
    )


def award(
    owner: int,
    winner: int,
    replicas: int = 1,
    *,
    id: UUID = TENDER_ID,
    ordinals: tuple[int, ...] = (),
    digest: bytes = DIGEST,
    nonce: int = 0,
) -> Award:
    return Award(
        tender_id=id,
        owner_identity=peer(owner),
        owner_pubkey=peer(owner).raw,
        winner=peer(winner),
        resource=ResourceId("default", "Deployment", "web"),
        uid=TENDER_ID,
        generation=1,
        replicas=replicas,
        ordinals=ordinals,
        manifest_digest=digest,
        sealed_digest=DIGEST,
        timestamp=_TIMESTAMP,
        nonce=nonce,
    )


def event(
    node: int, kind: EventType, pods: tuple[str, ...] = (), *, id: UUID = TENDER_ID, reason: str = ""
) -> Event:
    return Event(
        tender_id=id,
        node_id=peer(node),
        event_type=kind,
        reason=reason,
        pods=pods,
        timestamp=_TIMESTAMP,
        nonce=0,
    )
