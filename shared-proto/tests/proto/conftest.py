"""One signed sample of every message and record, from fixed seeds."""

from __future__ import annotations

from uuid import UUID

import pytest

from magik_proto import signing
from magik_proto.credentials import Delegation, Member, Revocations
from magik_proto.identity import Identity
from magik_proto.messages import (
    Award,
    Bid,
    Disposal,
    Event,
    EventType,
    Expression,
    Requirements,
    ResourceId,
    SelectorTerm,
    Tender,
    Toleration,
)
from magik_proto.records import HoldingRecord, MachineRecord, ServiceRecord, Workload
from magik_proto.wire import SignedMessage, encode_message

NOW = 1_700_000_000_000


@pytest.fixture(scope="session")
def owner() -> Identity:
    return Identity.from_seed(b"\x01" * 32)


@pytest.fixture(scope="session")
def node() -> Identity:
    return Identity.from_seed(b"\x02" * 32)


@pytest.fixture(scope="session")
def samples(owner: Identity, node: Identity) -> dict[str, SignedMessage]:
    """By type name: a signed message in which every field that can hold something does."""
    tender_id, uid = UUID(int=(4 << 76) | 7), UUID(int=(4 << 76) | 9)
    resource = ResourceId("default", "Deployment", "nginx")
    when = {"timestamp": NOW, "nonce": 42}
    requirements = Requirements(
        cpu_millis=250,
        memory_bytes=64 << 20,
        storage_bytes=1 << 30,
        runtime="krun",
        architecture="amd64",
        node_selector={"disk": "ssd", "example.org/zone": "a"},
        affinity=(SelectorTerm((Expression("zone", "In", ("a", "b")),)),),
        tolerations=(Toleration(key="dedicated", operator="Equal", value="x", effect="NoSchedule"),),
        avoid=(node.peer_id,),
    )
    messages: list[tuple[SignedMessage, Identity]] = [
        (
            Tender(
                id=tender_id,
                owner=owner.peer_id,
                manifest_digest=b"\x0a" * 32,
                qos_preemptible=True,
                priority=-5,
                requirements=requirements,
                bid_sample=20,
                round=1,
                **when,
            ),
            owner,
        ),
        (
            Bid(
                tender_id=tender_id,
                node_id=node.peer_id,
                score=900_000,
                resource_fit_score=800_000,
                network_locality_score=1_000_000,
                slots=3,
                sealing_key=b"\x0b" * 32,
                **when,
            ),
            node,
        ),
        (
            Award(
                tender_id=tender_id,
                owner_identity=owner.peer_id,
                owner_pubkey=owner.peer_id.raw,
                winner=node.peer_id,
                resource=resource,
                uid=uid,
                generation=2,
                replicas=2,
                manifest_digest=b"\x0a" * 32,
                sealed_digest=bytes(32),
                **when,
            ),
            owner,
        ),
        (
            Event(
                tender_id=tender_id,
                node_id=node.peer_id,
                event_type=EventType.Failed,
                reason="no such image",
                pods=("nginx-0",),
                **when,
            ),
            node,
        ),
        (
            Disposal(
                signer=owner.peer_id,
                namespace="default",
                kind="Deployment",
                name="nginx",
                uid=uid,
                generation=2,
                **when,
            ),
            owner,
        ),
        (
            Workload(
                resource=resource,
                uid=uid,
                generation=2,
                replicas=3,
                manifest=b'{"kind":"Deployment"}',
                author=owner.peer_id,
                stamp=NOW << 16,
                **when,
            ),
            owner,
        ),
        (
            MachineRecord(
                peer=node.peer_id,
                addrs=("10.0.0.1:4001", "[fd00::1]:4001"),
                labels={"kubernetes.io/arch": "amd64"},
                member=b"member",
                seq=5,
                **when,
            ),
            node,
        ),
        (
            ServiceRecord(
                workload_id=str(resource),
                namespace=resource.namespace,
                workload_kind=resource.kind,
                workload_name=resource.name,
                peer_id=node.peer_id,
                pod_name="nginx-0",
                ordinal=0,
                addrs=("10.0.0.1:4001",),
                caps={"leader": True, "leader_epoch": 4, "zone": "a"},
                ports={"http": 8080},
                version=1,
                ts=NOW,
                ready=True,
                healthy=False,
                nonce=42,
            ),
            node,
        ),
        (
            HoldingRecord(
                peer=node.peer_id, holds="workload", id=str(resource), life=300, member=b"member", **when
            ),
            node,
        ),
    ]
    messages += credentials(owner, node)
    return {message.TYPE: signing.sign(message, identity) for message, identity in messages}


def credentials(root: Identity, delegate: Identity) -> list[tuple[SignedMessage, Identity]]:
    """A delegation, a member by it, and revocations."""
    delegation = Delegation(
        root=root.peer_id,
        delegate=delegate.peer_id,
        roles=("run", "submit"),
        issued=NOW,
        expires=NOW + 1000,
        member_life_ms=5000,
        nonce=42,
    )
    member = Member(
        peer=root.peer_id,
        roles=("run", "submit"),
        issued=NOW,
        expires=NOW + 5000,
        delegate=delegate.peer_id,
        delegation=encode_message(signing.sign(delegation, root)),
        nonce=42,
    )
    revocations = Revocations(
        root=root.peer_id,
        serial=3,
        peers=(root.peer_id,),
        invites=(delegate.peer_id,),
        issued=NOW,
        nonce=42,
    )
    return [(delegation, root), (member, delegate), (revocations, root)]


TYPES = [
    *("tender", "bid", "award", "event", "disposal"),
    *("workload", "machine", "service", "holding"),
    *("delegation", "member", "revocations"),
]


@pytest.fixture(params=TYPES)
def sample(request: pytest.FixtureRequest, samples: dict[str, SignedMessage]) -> SignedMessage:
    """Each of `samples` in turn."""
    return samples[request.param]
