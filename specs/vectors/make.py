"""Writes the JSON files beside it, from fixed seeds, by `magik_proto`: ``python make.py [FOLDER]``.

Every byte string is hex. The same code gives the same files; the test
`shared-proto/tests/proto/test_vectors.py` holds both together, and checks the code against every vector.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import cbor2
import passes
import refusals

from magik_proto import codec, signing, wire
from magik_proto.awards import digest_of
from magik_proto.credentials import Member
from magik_proto.identity import BootstrapPeer, Identity, SealingKey
from magik_proto.membership import RootKey
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
from magik_proto.rpc import Request, Response, encode_frame
from magik_proto.wire import SignedMessage, encode_message

NOW = 1_700_000_000_000
OWNER, NODE = Identity.from_seed(b"\x01" * 32), Identity.from_seed(b"\x02" * 32)
SEALING = SealingKey.from_seed(b"\x05" * 32)
TENDER_ID = UUID("018bcfe5-6800-4000-8000-000000000001")
UID = UUID("018bcfe5-6800-4000-8000-000000000002")
RESOURCE = ResourceId("default", "Deployment", "nginx")
MANIFEST = canonical_json({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "nginx"}})

NOT_BY_FORM = {
    "an unknown field with a capital",
    "a changed field",
    "an added field",
    "another signer",
}
"""Refusals that a reader of CDDL alone does not see: names in comments there, and signatures."""

VALUES: list[Any] = [
    *(0, 1, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1, -1, -24, -25, -(2**64)),
    *(False, True, None, b"", b"\x01\x02", "", "a", "\u00fc", "\u6c34", []),
    [1, [2, 3]],
    {},
    {"a": 1, "b": [2, 3]},
    {"b": 1, "aa": 2, "": 3},
    {"z" * 24: "long key last", "y": {"x": {}}},
]

REFUSED: list[tuple[str, str, str]] = [
    ("codec.truncated", "", "nothing"),
    ("codec.truncated", "1901", "a head cut off"),
    ("codec.truncated", "a16161", "a key without its value"),
    ("codec.length", "82", "an array longer than the bytes left"),
    ("codec.length", "4201", "a byte string longer than the bytes left"),
    ("codec.length", "9bffffffffffffffff00", "a claimed length of 2^64-1"),
    ("codec.trailing", "0102", "a second value"),
    ("codec.non-shortest", "1817", "23 in two bytes"),
    ("codec.non-shortest", "1900ff", "255 in three bytes"),
    ("codec.non-shortest", "1a0000ffff", "65535 in five bytes"),
    ("codec.non-shortest", "1b00000000ffffffff", "2^32-1 in nine bytes"),
    ("codec.non-shortest", "3800", "-1 in two bytes"),
    ("codec.non-shortest", "580100", "a length of 1 in two bytes"),
    ("codec.indefinite", "9f01ff", "an array without a length"),
    ("codec.indefinite", "bf616101ff", "a map without a length"),
    ("codec.indefinite", "5f4100ff", "a byte string in pieces"),
    ("codec.indefinite", "7f6161ff", "a text in pieces"),
    ("codec.indefinite", "ff", "a break with nothing to end"),
    ("codec.reserved", "1c", "reserved additional information"),
    ("codec.tag", "c24101", "a big number"),
    ("codec.tag", "c060", "a date"),
    ("codec.float", "f93c00", "1.0 in half precision"),
    ("codec.float", "fa47c35000", "a float"),
    ("codec.float", "fb7ff8000000000000", "not a number"),
    ("codec.simple", "f7", "undefined"),
    ("codec.simple", "f820", "an unassigned simple value"),
    ("codec.key-type", "a10102", "an integer as key"),
    ("codec.key-type", "a1416102", "bytes as key"),
    ("codec.duplicate-key", "a2616101616102", "a key twice"),
    ("codec.unsorted-key", "a2616201616102", "keys in the wrong order"),
    ("codec.unsorted-key", "a262616101616202", "the longer key first"),
    ("codec.utf8", "61ff", "a text that is not UTF-8"),
    ("codec.utf8", "63eda080", "half of a surrogate pair"),
    ("codec.depth", "81" * 16 + "80", "17 arrays inside each other"),
]


LIMITED: list[dict[str, Any]] = [
    {"rule": "codec.size", "bytes": "420102", "max_size": 2, "what": "three bytes where two are allowed"},
    {"rule": "codec.depth", "bytes": "818180", "max_depth": 2, "what": "three arrays where two are allowed"},
    {
        "rule": "codec.items",
        "bytes": "83000102",
        "max_items": 3,
        "what": "four items where three are allowed",
    },
]


def messages() -> list[tuple[SignedMessage, Identity]]:
    """One of every message and record, with the identity that signs it."""
    when: dict[str, Any] = {"timestamp": NOW, "nonce": 0x0123456789ABCDEF}
    needs = Requirements(
        cpu_millis=250,
        memory_bytes=67_108_864,
        storage_bytes=0,
        runtime="crun",
        architecture="amd64",
        node_selector={"disk": "ssd"},
        affinity=(SelectorTerm((Expression("zone", "In", ("a", "b")),)),),
        tolerations=(Toleration(key="dedicated", operator="Exists", effect="NoSchedule"),),
    )
    workload = Workload(
        resource=RESOURCE,
        uid=UID,
        generation=1,
        replicas=3,
        manifest=MANIFEST,
        author=OWNER.peer_id,
        stamp=NOW << 16,
        **when,
    )
    tender = Tender(
        id=TENDER_ID,
        owner=OWNER.peer_id,
        manifest_digest=workload.digest,
        qos_preemptible=False,
        priority=0,
        requirements=needs,
        bid_sample=20,
        round=0,
        **when,
    )
    bid = Bid(
        tender_id=TENDER_ID,
        node_id=NODE.peer_id,
        score=812_500,
        resource_fit_score=900_000,
        network_locality_score=750_000,
        slots=2,
        sealing_key=SEALING.public,
        **when,
    )
    award = Award(
        tender_id=TENDER_ID,
        owner_identity=OWNER.peer_id,
        owner_pubkey=OWNER.peer_id.raw,
        winner=NODE.peer_id,
        resource=RESOURCE,
        uid=UID,
        generation=1,
        replicas=2,
        ordinals=(0, 1),
        manifest_digest=workload.digest,
        sealed_digest=bytes(32),
        **when,
    )
    record = encode_message(signing.sign(workload, OWNER))
    box = refusals.sealed_to(SEALING.public, record, b"\x06" * 32)
    award = award.evolve(sealed_digest=digest_of(box))
    event = Event(
        tender_id=TENDER_ID,
        node_id=NODE.peer_id,
        event_type=EventType.Deployed,
        pods=("nginx-0", "nginx-1"),
        **when,
    )
    disposal = Disposal(
        signer=OWNER.peer_id,
        namespace="default",
        kind="Deployment",
        name="nginx",
        uid=UID,
        generation=1,
        **when,
    )
    machine = MachineRecord(
        peer=NODE.peer_id, addrs=("10.0.0.1:4001",), labels={"disk": "ssd"}, seq=1, **when
    )
    service = ServiceRecord(
        workload_id=str(RESOURCE),
        namespace="default",
        workload_kind="Deployment",
        workload_name="nginx",
        peer_id=NODE.peer_id,
        pod_name="nginx-0",
        ordinal=0,
        addrs=("10.0.0.1:4002",),
        caps={"leader": True, "leader_epoch": 1},
        ports={"http": 80},
        version=1,
        ts=NOW,
        ready=True,
        healthy=True,
        nonce=1,
    )
    holding = HoldingRecord(peer=NODE.peer_id, holds="workload", id=str(RESOURCE), life=300, **when)
    newer = bid.evolve(extra={"price_ppm": 5})
    by_owner = [(message, OWNER) for message in (tender, award, disposal, workload)]
    hidden = machine.evolve(relays=(OWNER.peer_id,))
    by_node = (bid, newer, event, machine, hidden, service, holding)
    return [*by_owner, *((message, NODE) for message in by_node)]


def hexed(value: Any) -> Any:
    """`value` with byte strings as ``{"hex": …}`` so that JSON can hold it; other values as they are."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: hexed(item) for key, item in value.items()}
    return [hexed(item) for item in value] if isinstance(value, list) else value


def message_vector(message: SignedMessage, identity: Identity) -> dict[str, Any]:
    """What a reader needs to build, sign and check one message."""
    signed = signing.sign(message, identity)
    return {
        "type": wire.header(type(signed)),
        "seed": identity.seed().hex(),
        "signer": str(signed.signer),
        "fields": hexed(wire.to_wire(signed)),
        "signed_bytes": signing.signed_bytes(signed).hex(),
        "signature": signed.signature.hex(),
        "encoding": encode_message(signed).hex(),
    }


def refused_bids() -> list[dict[str, Any]]:
    """Encodings that must not be read as a bid, or must not verify."""
    good = wire.to_wire(signing.sign(messages()[4][0], NODE))
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("message.unknown-type", "an unknown type", {"magik": "offer/1"}),
        ("message.unknown-version", "a later version", {"magik": "bid/2"}),
        ("message.malformed", "no header that is a text", {"magik": 1}),
        ("message.field", "another type's header", {"magik": "tender/1"}),
        ("message.field", "a score above a million", {"score": 1_000_001}),
        ("message.field", "a boolean for a number", {"slots": True}),
        ("message.field", "no slots", {"slots": 0}),
        ("message.field", "a key of 31 bytes", {"sealing_key": bytes(31)}),
        ("message.field", "a null", {"score": None}),
        ("message.field", "an unknown field with a capital", {"Price": 1}),
        ("signature.missing", "an empty signature", {"signature": b""}),
        ("signature.invalid", "a changed field", {"score": 1}),
        ("signature.invalid", "an added field", {"price_ppm": 5}),
        ("signature.invalid", "another signer", {"node_id": OWNER.peer_id.raw}),
    ]
    # What CDDL cannot say, or what is not a matter of form.
    rows = [(rule, what, {**good, **change}) for rule, what, change in changes]
    rows.append(("message.field", "a field left out", {k: v for k, v in good.items() if k != "slots"}))
    return [
        {
            "rule": rule,
            "what": what,
            "encoding": cbor2.dumps(value, canonical=True).hex(),
            "by_form": what not in NOT_BY_FORM,
        }
        for rule, what, value in rows
    ]


def refused_messages() -> list[dict[str, Any]]:
    """Messages of the other types that do not verify, or are too large."""
    by_type = {message.TYPE: signing.sign(message, key) for message, key in messages()}
    award = by_type["award"].evolve(owner_pubkey=NODE.peer_id.raw)
    service = by_type["service"].evolve(workload_id="default/Deployment/other")
    mismatched = [
        award.evolve(signature=OWNER.sign(signing.signed_bytes(award))),
        service.evolve(signature=NODE.sign(signing.signed_bytes(service))),
    ]
    rows = [
        {"rule": "signature.identity-mismatch", "encoding": encode_message(message).hex()}
        for message in mismatched
    ]
    large = cbor2.dumps({**wire.to_wire(by_type["disposal"]), "later": bytes(65_536)}, canonical=True)
    # Given by its length, for it is long: a disposal with an unknown field `later` of so many zero bytes.
    return [
        *rows,
        {"rule": "codec.size", "disposal_with_zeros": 65_536, "sha256": hashlib.sha256(large).hexdigest()},
    ]


def membership() -> dict[str, Any]:
    """A root, an invite, a member and a revocation."""
    root = RootKey.from_seed(b"\x21" * 32)
    bootstrap = (BootstrapPeer(OWNER.peer_id, "10.0.0.1", 4001),)
    invite = root.invite(NOW, bootstrap=bootstrap, random=lambda size: b"\x22" * size)
    member: Member = invite.accept(NODE, NOW + 1000, random=lambda size: b"\x23" * size)
    revoked = root.revoke(1, NOW + 2000, invites=(invite.id,), random=lambda size: b"\x24" * size)
    return {
        "admissions": refusals.admissions(),
        "passes": passes.passes(),
        "revocation_lists": refusals.revocation_lists(),
        "invites": refusals.invites(),
        "root_seed": root.seed().hex(),
        "root": str(root.peer_id),
        "invite": invite.text(),
        "invite_id": str(invite.id),
        "delegation": encode_message(invite.delegation).hex(),
        "peer_seed": NODE.seed().hex(),
        "peer": str(NODE.peer_id),
        "member": member.encode().hex(),
        "roles": sorted(member.roles),
        "admitted_at": NOW + 1500,
        "expired_at": member.expires,
        "revocations": encode_message(revoked).hex(),
    }


def keys() -> list[dict[str, str]]:
    """Ed25519 and X25519 keys from seeds, with a signature of "magik" by the first."""
    rows = []
    for byte in (0, 1, 2, 255):
        seed = bytes([byte]) * 32
        identity = Identity.from_seed(seed)
        rows.append(
            {
                "seed": seed.hex(),
                "peer_id": str(identity.peer_id),
                "signature_of_magik": identity.sign(b"magik").hex(),
                "sealing_public": SealingKey.from_seed(seed).public.hex(),
            }
        )
    return rows


def frames() -> list[dict[str, Any]]:
    """Requests and responses as frames."""
    values: list[tuple[str, Request | Response]] = [
        ("request", Request(method="/magik/bid/1.0.0", deadline_ms=30_000, body={"bid": b"\x01"})),
        ("response", Response.success({"accepted": True})),
        ("response", Response.failure("replay.seen", "nonce was seen before")),
    ]
    return [
        {"kind": kind, "value": hexed(value.to_value()), "frame": encode_frame(value).hex()}
        for kind, value in values
    ]


def auction() -> dict[str, Any]:
    """Winner lists, awards that are obeyed or refused, awards opened."""
    signed = {message.TYPE: signing.sign(message, key) for message, key in messages() if key is OWNER}
    tender, award, workload = signed["tender"], signed["award"], signed["workload"]
    assert isinstance(tender, Tender)
    assert isinstance(award, Award)
    assert isinstance(workload, Workload)
    return {
        "winners": refusals.winners(),
        "awards": refusals.awards(tender, award, OWNER),
        "sealing_seed": SEALING.seed().hex(),
        "opened": refusals.opened_awards(award, workload, OWNER),
        "objects": refusals.opened_objects(award, workload, OWNER),
    }


def files() -> dict[str, Any]:
    """File name → content."""
    return {
        "codec.json": {
            "values": [{"value": hexed(value), "encoding": codec.encode(value).hex()} for value in VALUES],
            "refused": [{"rule": rule, "bytes": data, "what": what} for rule, data, what in REFUSED],
            "refused_under_limits": LIMITED,
        },
        "keys.json": keys(),
        "messages.json": {
            "accepted": [message_vector(message, identity) for message, identity in messages()],
            "refused_as_bid": refused_bids(),
            "refused": refused_messages(),
        },
        "membership.json": membership(),
        "rpc.json": {"frames": frames(), "streams": refusals.streams(), "calls": refusals.calls()},
        "sealing.json": refusals.sealing(),
        "replay.json": {**refusals.replay(), "stamps": refusals.stamps()},
        "auction.json": auction(),
        "texts.json": refusals.texts(),
    }


def main(folder: Path) -> None:
    """Write all files into `folder`."""
    for name, content in files().items():
        (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
