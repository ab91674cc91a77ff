"""Strategies for hypothesis: valid messages, records and credentials, unsigned.  The only module that needs
hypothesis.
"""

from __future__ import annotations

from uuid import UUID

from hypothesis import strategies as st

from magik_proto.credentials import Delegation, Member, Revocations
from magik_proto.identity import PeerId
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
from magik_proto.records import HoldingRecord, MachineRecord, ServiceRecord, Workload, canonical_json

PPM = 1_000_000
_names = st.from_regex(r"[a-z]([a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
_digests = st.binary(min_size=32, max_size=32)
_nonces = st.integers(0, (1 << 64) - 1)
_timestamps = st.integers(1_600_000_000_000, 2_000_000_000_000)
_scores = st.integers(0, PPM)
_counts = st.integers(1, 10_000)
_generations = st.integers(1, 1 << 31)

peer_ids: st.SearchStrategy[PeerId] = _digests.map(PeerId)
uuids: st.SearchStrategy[UUID] = st.uuids(version=4)
resource_ids: st.SearchStrategy[ResourceId] = st.builds(
    ResourceId, _names, st.sampled_from(("Deployment", "StatefulSet", "Pod")), _names
)

expressions: st.SearchStrategy[Expression] = st.one_of(
    st.builds(Expression, _names, st.sampled_from(("In", "NotIn")), st.lists(_names, min_size=1).map(tuple)),
    st.builds(Expression, _names, st.sampled_from(("Exists", "DoesNotExist"))),
    st.builds(Expression, _names, st.sampled_from(("Gt", "Lt")), st.integers(0, 99).map(lambda n: (str(n),))),
)
terms: st.SearchStrategy[SelectorTerm] = st.builds(SelectorTerm, st.lists(expressions, max_size=3).map(tuple))
tolerations: st.SearchStrategy[Toleration] = st.builds(
    Toleration,
    key=st.one_of(st.just(""), _names),
    operator=st.sampled_from(("Equal", "Exists")),
    value=st.one_of(st.just(""), _names),
    effect=st.sampled_from(("", "NoSchedule", "PreferNoSchedule", "NoExecute")),
)
requirements: st.SearchStrategy[Requirements] = st.builds(
    Requirements,
    cpu_millis=st.integers(0, 64_000),
    memory_bytes=st.integers(0, 1 << 38),
    storage_bytes=st.integers(0, 1 << 42),
    runtime=st.sampled_from(("crun", "krun", "wasm")),
    architecture=st.sampled_from((None, "amd64", "arm64")),
    node_selector=st.dictionaries(_names, _names, max_size=3),
    affinity=st.lists(terms, max_size=3).map(tuple),
    tolerations=st.lists(tolerations, max_size=3).map(tuple),
    avoid=st.lists(peer_ids, max_size=3, unique=True).map(tuple),
)

tenders: st.SearchStrategy[Tender] = st.builds(
    Tender,
    id=uuids,
    owner=peer_ids,
    manifest_digest=_digests,
    qos_preemptible=st.booleans(),
    priority=st.integers(-(1 << 31), (1 << 31) - 1),
    requirements=requirements,
    bid_sample=st.integers(1, PPM),
    round=st.integers(1, 255),
    timestamp=_timestamps,
    nonce=_nonces,
)
bids: st.SearchStrategy[Bid] = st.builds(
    Bid,
    tender_id=uuids,
    node_id=peer_ids,
    score=_scores,
    resource_fit_score=_scores,
    network_locality_score=_scores,
    slots=_counts,
    sealing_key=_digests,
    timestamp=_timestamps,
    nonce=_nonces,
)


@st.composite
def _awards(draw: st.DrawFn) -> Award:
    owner = draw(peer_ids)
    ordinals = tuple(sorted(draw(st.sets(st.integers(0, 1000), max_size=8))))
    return Award(
        tender_id=draw(uuids),
        owner_identity=owner,
        owner_pubkey=owner.raw,
        winner=draw(peer_ids),
        resource=draw(resource_ids),
        uid=draw(uuids),
        generation=draw(_generations),
        replicas=len(ordinals) or draw(_counts),
        ordinals=ordinals,
        manifest_digest=draw(_digests),
        sealed_digest=draw(_digests),
        timestamp=draw(_timestamps),
        nonce=draw(_nonces),
    )


awards: st.SearchStrategy[Award] = _awards()
events: st.SearchStrategy[Event] = st.builds(
    Event,
    tender_id=uuids,
    node_id=peer_ids,
    event_type=st.sampled_from(EventType),
    reason=st.text("abcdefghijklmnopqrstuvwxyz ", max_size=40),
    pods=st.lists(_names, max_size=5).map(tuple),
    timestamp=_timestamps,
    nonce=_nonces,
)
disposals: st.SearchStrategy[Disposal] = st.builds(
    Disposal,
    signer=peer_ids,
    namespace=_names,
    kind=st.just("Deployment"),
    name=_names,
    uid=uuids,
    generation=_generations,
    timestamp=_timestamps,
    nonce=_nonces,
)
messages: st.SearchStrategy[Tender | Bid | Award | Event | Disposal] = st.one_of(
    tenders, bids, awards, events, disposals
)


# -- records and credentials -----------------------------------------------------------------------

_u64 = st.integers(0, (1 << 64) - 1)
_addresses = st.lists(
    st.one_of(
        st.tuples(st.ip_addresses(v=4), st.integers(1, 65_535)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
        st.tuples(st.ip_addresses(v=6), st.integers(1, 65_535)).map(lambda pair: f"[{pair[0]}]:{pair[1]}"),
    ),
    max_size=3,
).map(tuple)
_labels = st.dictionaries(_names, _names, max_size=3)
_roles = st.sets(st.sampled_from(("run", "submit", "watch")), min_size=1).map(frozenset)

workloads: st.SearchStrategy[Workload] = st.builds(
    Workload,
    resource=resource_ids,
    uid=uuids,
    generation=_generations,
    replicas=st.integers(0, 10_000),
    manifest=st.dictionaries(_names, _names, max_size=3).map(canonical_json),
    author=peer_ids,
    stamp=_u64,
    timestamp=_timestamps,
    nonce=_nonces,
)
machine_records: st.SearchStrategy[MachineRecord] = st.builds(
    MachineRecord,
    peer=peer_ids,
    addrs=_addresses,
    labels=_labels,
    member=st.one_of(st.none(), st.binary(min_size=1, max_size=200)),
    relays=st.one_of(st.none(), st.lists(peer_ids, max_size=4).map(tuple)),
    seq=_u64,
    timestamp=_timestamps,
    nonce=_nonces,
)


@st.composite
def _service_records(draw: st.DrawFn) -> ServiceRecord:
    resource = draw(resource_ids)
    return ServiceRecord(
        workload_id=str(resource),
        namespace=resource.namespace,
        workload_kind=resource.kind,
        workload_name=resource.name,
        peer_id=draw(peer_ids),
        pod_name=draw(_names),
        ordinal=draw(st.one_of(st.none(), st.integers(0, 1000))),
        addrs=draw(_addresses),
        caps=draw(st.dictionaries(_names, st.one_of(st.booleans(), _u64, _names), max_size=3)),
        ports=draw(st.dictionaries(_names, st.integers(1, 65_535), max_size=3)),
        version=draw(_u64),
        ts=draw(_timestamps),
        ready=draw(st.booleans()),
        healthy=draw(st.booleans()),
        nonce=draw(_nonces),
    )


service_records: st.SearchStrategy[ServiceRecord] = _service_records()
delegations: st.SearchStrategy[Delegation] = st.builds(
    Delegation,
    root=peer_ids,
    delegate=peer_ids,
    roles=_roles,
    issued=_timestamps,
    expires=_timestamps,
    member_life_ms=st.integers(0, 1 << 40),
    nonce=_nonces,
)
members: st.SearchStrategy[Member] = st.builds(
    Member,
    peer=peer_ids,
    roles=_roles,
    issued=_timestamps,
    expires=_timestamps,
    delegate=peer_ids,
    delegation=st.binary(min_size=1, max_size=300),
    nonce=_nonces,
)
revocations: st.SearchStrategy[Revocations] = st.builds(
    Revocations,
    root=peer_ids,
    serial=st.integers(1, 1 << 40),
    peers=st.lists(peer_ids, max_size=4).map(tuple),
    invites=st.lists(peer_ids, max_size=4).map(tuple),
    issued=_timestamps,
    nonce=_nonces,
)
holding_records: st.SearchStrategy[HoldingRecord] = st.builds(
    HoldingRecord,
    peer=peer_ids,
    holds=st.sampled_from(["workload", "image"]),
    id=st.text(min_size=1, max_size=40),
    life=st.integers(1, 3600),
    member=st.one_of(st.none(), st.binary(min_size=1, max_size=200)),
    timestamp=_timestamps,
    nonce=_nonces,
)
records: st.SearchStrategy[Workload | MachineRecord | ServiceRecord | HoldingRecord] = st.one_of(
    workloads, machine_records, service_records, holding_records
)
credentials: st.SearchStrategy[Delegation | Member | Revocations] = st.one_of(
    delegations, members, revocations
)
