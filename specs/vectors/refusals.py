"""The vectors of decisions: who is admitted, what is fresh, which award is obeyed, who wins, what is refused.

Used by make.py. Each row holds what goes in and the rule that comes out, so that a reader in another language
can run it against its own code.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any
from uuid import UUID

import cbor2
from nacl import bindings

from magik_proto import codec, leadership_wire, signing
from magik_proto.awards import Delivery, digest_of, open_award, open_objects
from magik_proto.bidder import AwardReceived, Bidder, BidderConfig, Deploy, RefuseAward, TenderSeen
from magik_proto.clock import HybridClock
from magik_proto.credentials import Delegation, Member, Revocations
from magik_proto.dht_frames import parse_find, parse_found, parse_store, parse_stored
from magik_proto.errors import RemoteProtocolError
from magik_proto.gossip_frames import parse_frame
from magik_proto.identity import BootstrapPeer, Identity, PeerId, SealingKey, seal
from magik_proto.membership import INVITE_PREFIX, Invite, MembershipPolicy, RootKey
from magik_proto.messages import Award, Bid, ResourceId, Tender, encode_message
from magik_proto.placement import MachineFacts, choose_winners
from magik_proto.records import Workload
from magik_proto.replay import ReplayFilter
from magik_proto.rpc import FrameDecoder, Request, Response
from magik_proto.testing.builders import machine

NOW = 1_700_000_000_000
ROOT, OTHER_ROOT = RootKey.from_seed(b"\x21" * 32), RootKey.from_seed(b"\x31" * 32)
INVITED = Identity.from_seed(b"\x22" * 32)
NODE, STRANGER = Identity.from_seed(b"\x02" * 32), Identity.from_seed(b"\x03" * 32)
SEALING = SealingKey.from_seed(b"\x05" * 32)


def rule_of(action: Any) -> str:
    """The rule by which `action` refuses; ``accepted`` if it does not."""
    try:
        action()
    except RemoteProtocolError as error:
        return error.rule
    return "accepted"


# -- sealing ---------------------------------------------------------------------------------------


def sealed_to(public: bytes, plaintext: bytes, ephemeral: bytes) -> bytes:
    """libsodium's sealed box with a given ephemeral key (in earnest it is random), so that it is always the
    same."""
    shown = bindings.crypto_scalarmult_base(ephemeral)
    nonce = hashlib.blake2b(shown + public, digest_size=24).digest()
    return shown + bindings.crypto_box(plaintext, nonce, public, ephemeral)


def sealing() -> dict[str, Any]:
    """Boxes that open, and what does not."""
    box = sealed_to(SEALING.public, b"a manifest", b"\x06" * 32)
    assert SEALING.open(box) == b"a manifest"
    damaged = box[:-1] + bytes([box[-1] ^ 1])
    others = [
        ("damaged", damaged),
        ("cut off", box[:47]),
        ("to another key", sealed_to(b"\x09" * 32, b"x", b"\x06" * 32)),
    ]
    return {
        "seed": SEALING.seed().hex(),
        "public": SEALING.public.hex(),
        "opens": [{"sealed": box.hex(), "plaintext": b"a manifest".hex()}],
        "refused": [
            {"what": what, "sealed": data.hex(), "rule": rule_of(lambda d=data: SEALING.open(d))}
            for what, data in others
        ],
        "refused_keys": [
            {"what": what, "public": key.hex(), "rule": rule_of(lambda k=key: seal(k, b"x"))}
            for what, key in (("of small order", bytes(32)), ("too short", bytes(31)))
        ],
    }


# -- membership ------------------------------------------------------------------------------------


def delegation_of(root: RootKey = ROOT, signer: RootKey | None = None, **changes: Any) -> Delegation:
    fields = {
        "root": root.peer_id, "delegate": INVITED.peer_id, "roles": ("run",), "issued": NOW, "nonce": 1,
        "expires": NOW + 3_600_000, "member_life_ms": 86_400_000, **changes,
    }  # fmt: skip
    unsigned = Delegation(**fields)
    identity = Identity.from_seed((signer or root).seed())
    return unsigned.evolve(signature=identity.sign(signing.signed_bytes(unsigned)))


def member_of(
    delegation: Delegation, signer: Identity = INVITED, *, forged: bool = False, **changes: Any
) -> bytes:
    fields = {
        "peer": NODE.peer_id, "roles": ("run",), "issued": NOW + 1000, "expires": NOW + 60_000, "nonce": 2,
        "delegate": signer.peer_id, "delegation": encode_message(delegation), **changes,
    }  # fmt: skip
    unsigned = Member(**fields)
    if forged:
        return unsigned.evolve(signature=bytes(64)).encode()
    return unsigned.evolve(signature=signer.sign(signing.signed_bytes(unsigned))).encode()


def admissions() -> list[dict[str, Any]]:
    """Who is admitted by a machine of the fabric, and why not."""
    good = delegation_of()
    member = member_of(good)
    early, late = {"issued": NOW - 30_001}, {"issued": NOW + 3_600_000, "expires": NOW + 3_600_001}
    rows: list[tuple[str, bytes, int, Revocations | None]] = [
        ("a member", member, NOW + 2000, None),
        ("nothing shown", b"", NOW + 2000, None),
        ("not a member", b"\xa0", NOW + 2000, None),
        ("another fabric's", member_of(delegation_of(OTHER_ROOT)), NOW + 2000, None),
        ("another machine's", member_of(good, peer=STRANGER.peer_id), NOW + 2000, None),
        ("revoked", member, NOW + 2000, ROOT.revoke(1, NOW, peers=(NODE.peer_id,), random=bytes)),
        ("of a revoked invite", member, NOW + 2000, ROOT.revoke(1, NOW, invites=(INVITED.peer_id,), random=bytes)),
        ("an invite signed by another root", member_of(delegation_of(signer=OTHER_ROOT)), NOW + 2000, None),
        ("signed by a key that was not invited", member_of(good, STRANGER), NOW + 2000, None),
        ("a signature that is none", member_of(good, forged=True), NOW + 2000, None),
        ("more roles than the invite gives", member_of(good, roles=("run", "submit")), NOW + 2000, None),
        ("dated before the invite", member_of(good, **early), NOW + 2000, None),
        ("dated after the invite", member_of(good, **late), NOW + 3_600_000, None),
        ("longer than the invite allows", member_of(good, expires=NOW + 1000 + 86_400_001), NOW + 2000, None),
        ("more than the skew in the future", member, NOW + 1000 - 30_001, None),
        ("within the skew", member, NOW + 1000 - 30_000, None),
        ("expired", member, NOW + 60_000, None),
    ]  # fmt: skip
    return [_admission(*row) for row in rows]


def _admission(what: str, member: bytes, now: int, revoked: Revocations | None) -> dict[str, Any]:
    policy = MembershipPolicy(ROOT.peer_id)
    if revoked is not None:
        policy.revoke(revoked)
    rule = rule_of(lambda: policy.admit(NODE.peer_id, member, now))
    row = {"what": what, "member": member.hex(), "peer": str(NODE.peer_id), "now": now, "rule": rule}
    return row if revoked is None else {**row, "revocations": encode_message(revoked).hex()}


def revocation_lists() -> list[dict[str, Any]]:
    """Lists in the order in which a machine of the fabric is given them."""
    first, second = (
        ROOT.revoke(5, NOW, random=bytes),
        ROOT.revoke(6, NOW, peers=(NODE.peer_id,), random=bytes),
    )
    conflict = ROOT.revoke(6, NOW, peers=(STRANGER.peer_id,), random=bytes)
    forged = ROOT.revoke(7, NOW, random=bytes).evolve(serial=8)
    steps = [("first", first), ("newer", second), ("older", first), ("the same", second), ("conflict", conflict),
             ("forged", forged), ("another fabric's", OTHER_ROOT.revoke(9, NOW, random=bytes))]  # fmt: skip
    policy = MembershipPolicy(ROOT.peer_id)
    rows = []
    for what, revocations in steps:
        taken: list[bool] = []
        rule = rule_of(lambda r=revocations, t=taken: t.append(policy.revoke(r)))
        encoding = encode_message(revocations).hex()
        rows.append({"what": what, "revocations": encoding, "rule": rule, "news": taken == [True]})
    return rows


def invites() -> list[dict[str, str]]:
    """Texts that are no invites."""
    forged = {
        "magik": "invite/1", "delegation": encode_message(delegation_of(signer=OTHER_ROOT)),
        "seed": INVITED.seed(), "bootstrap": [],
    }  # fmt: skip
    other_key = {**forged, "delegation": encode_message(delegation_of()), "seed": bytes(32)}
    texts = {
        "no prefix": "magik-invite-2.oA",
        "no base64": INVITE_PREFIX + "!!",
        "no map": INVITE_PREFIX + "AA",
        "not signed by its root": _invite(forged),
        "another key than the delegate's": _invite(other_key),
        "no address": _invite({**forged, "delegation": encode_message(delegation_of()), "bootstrap": ["x"]}),
    }
    return [
        {"what": w, "text": text, "rule": rule_of(lambda t=text: Invite.parse(t))}
        for w, text in texts.items()
    ]


def _invite(value: Any) -> str:
    return INVITE_PREFIX + base64.urlsafe_b64encode(codec.encode(value)).decode().rstrip("=")


# -- replay, clocks --------------------------------------------------------------------------------


def replay() -> dict[str, Any]:
    """A filter with room for 4 and 2 a signer, started at `started`, and what it says to one after another."""
    signers = [PeerId(bytes([n]) * 32) for n in range(4)]
    steps = [
        ("new", 0, 1, 0, 0), ("again", 0, 1, 0, 0), ("again, later", 0, 1, 0, 29_000), ("another nonce", 0, 2, 0, 0),
        ("over the signer's quota", 0, 3, 0, 0), ("another signer", 1, 1, 0, 0), ("30 s ahead", 1, 2, 30_000, 0),
        ("more than 30 s ahead", 2, 1, 30_001, 0), ("more than 30 s behind", 2, 1, 0, 30_001),
        ("from before the start", 2, 1, -1, 0), ("no room", 2, 1, 0, 0),
        ("room again after the window", 2, 1, 300_000, 300_000),
        ("of a time whose entries are forgotten", 2, 2, 0, 29_999), ("new again", 3, 1, 330_000, 330_000),
    ]  # fmt: skip
    filter = ReplayFilter(NOW, capacity=4, per_signer=2)
    rows = []
    for what, signer, nonce, timestamp, now in steps:
        arguments = (signers[signer], b"tender" + bytes(16), nonce, NOW + timestamp, NOW + now)
        rule = rule_of(lambda a=arguments: filter.check(*a))
        rows.append({"what": what, "signer": str(signers[signer]), "id": arguments[1].hex(), "nonce": nonce,
                     "timestamp": NOW + timestamp, "now": NOW + now, "rule": rule})  # fmt: skip
    return {
        "started": NOW,
        "capacity": 4,
        "per_signer": 2,
        "skew_ms": 30_000,
        "window_ms": 300_000,
        "steps": rows,
    }


def stamps() -> list[dict[str, Any]]:
    """Stamps that a hybrid clock is shown at `now`."""
    found = []
    for ahead in (0, 30_000, 30_001):
        stamp = (NOW + ahead) << 16
        rule = rule_of(lambda s=stamp: HybridClock(lambda: NOW).observe(s))
        found.append({"now": NOW, "stamp": str(stamp), "rule": rule})
    return found


# -- auctions --------------------------------------------------------------------------------------


def _bid(node: int, score: int, slots: int) -> Bid:
    identity = Identity.from_seed(bytes([0x40 + node]) * 32)
    return signing.sign(
        Bid(
            tender_id=UUID(int=4 << 76), node_id=identity.peer_id, score=score, resource_fit_score=score,
            network_locality_score=score, slots=slots, sealing_key=SEALING.public, timestamp=NOW, nonce=node,
        ),
        identity,
    )  # fmt: skip


def winners() -> list[dict[str, Any]]:
    """Bids, how many replicas are wanted, what runs where already, and who gets how many."""
    three = [_bid(1, 700_000, 4), _bid(2, 900_000, 1), _bid(3, 900_000, 4)]
    cases: list[tuple[str, list[Bid], int, dict[PeerId, int]]] = [
        ("one", three, 1, {}),
        ("spread first", three, 3, {}),
        ("then double up where slots allow", three, 6, {}),
        ("more than there is room for", three, 20, {}),
        ("equal scores by node id", [_bid(4, 5, 1), _bid(5, 5, 1), _bid(6, 5, 1)], 2, {}),
        ("what runs already counts", three, 2, {three[1].node_id: 1, three[2].node_id: 2}),
        ("the better of two bids of one node", [_bid(1, 1, 9), _bid(1, 2, 3)], 9, {}),
        ("nobody", [], 3, {}),
    ]
    return [
        {
            "what": what,
            "bids": [encode_message(bid).hex() for bid in bids],
            "replicas": replicas,
            "taken": {str(peer): count for peer, count in taken.items()},
            "winners": [[str(bid.node_id), count] for bid, count in choose_winners(bids, replicas, taken)],
        }
        for what, bids, replicas, taken in cases
    ]


def awards(tender: Tender, award: Award, key: Identity) -> dict[str, Any]:
    """What a machine that bid 2 slots for `tender` says to awards, one after another for each list."""

    def changed(**changes: Any) -> Award:
        unsigned = award.evolve(**{"nonce": 77, **changes})
        return unsigned.evolve(signature=key.sign(signing.signed_bytes(unsigned)))

    stories = [
        ("obeyed, repeated, and given twice", [award, award, changed()], 100),
        ("no bid for it", [changed(tender_id=UUID(int=1))], 100),
        ("not from the tender's owner", [changed(owner_identity=STRANGER.peer_id)], 100),
        ("for another machine", [changed(winner=STRANGER.peer_id)], 100),
        ("for another manifest", [changed(manifest_digest=bytes(32))], 100),
        ("more than was bid", [changed(replicas=3, ordinals=())], 100),
        ("too many remembered", [award], 1),
    ]
    return {"tender": encode_message(tender).hex(), "node": str(NODE.peer_id), "slots": 2, "stories": [
        {"what": what, "awards": [encode_message(one).hex() for one in given], "answers": _answers(tender, given, room),
         "room": room} for what, given, room in stories
    ]}  # fmt: skip


def _answers(tender: Tender, given: list[Award], room: int) -> list[str]:
    usual, labels = machine(1), {"disk": "ssd", "zone": "a"}
    facts = MachineFacts(NODE.peer_id, usual.capacity, "amd64", usual.runtimes, labels)
    bidder = Bidder(facts, BidderConfig(max_open=room, max_slots=2))
    if room == 1:  # an award obeyed before takes the only place
        first = tender.evolve(id=UUID(int=9))
        bidder.receive(TenderSeen(first, 3), 0.0)
        bidder.receive(AwardReceived(given[0].evolve(tender_id=first.id, nonce=1)), 0.0)
    bidder.receive(TenderSeen(tender, 3), 0.0)
    answers = []
    for award in given:
        (answer,) = bidder.receive(AwardReceived(award), 1.0)
        refused = answer.reason if isinstance(answer, RefuseAward) else None
        answers.append(refused or ("deploy" if isinstance(answer, Deploy) else "repeated"))
    return answers


def opened_awards(award: Award, workload: Workload, key: Identity) -> list[dict[str, Any]]:
    """Awards and what opening them with the sealing key gives."""

    def box_of(record: Workload) -> bytes:
        return sealed_to(SEALING.public, encode_message(record), b"\x06" * 32)

    def naming(box: bytes, **changes: Any) -> Delivery:
        unsigned = award.evolve(sealed_digest=digest_of(box), **changes)
        return Delivery(unsigned.evolve(signature=key.sign(signing.signed_bytes(unsigned))), box)

    def carrying(record: Workload, **changes: Any) -> Delivery:
        return naming(box_of(record), **changes)

    rows = [
        ("as sealed", Delivery(award, box_of(workload))),
        ("another box than the award names", Delivery(award, box_of(workload.evolve(replicas=9)))),
        ("another generation outside than inside", carrying(workload, generation=9)),
        ("a record whose signature is not its author's", carrying(workload.evolve(replicas=9))),
        ("a box to nobody", naming(bytes(60))),
    ]
    return [
        {
            "what": what,
            "award": encode_message(one.award).hex(),
            "sealed": one.sealed.hex(),
            "rule": rule_of(lambda d=one: open_award(d, SEALING)),
        }
        for what, one in rows
    ]


def opened_objects(award: Award, workload: Workload, key: Identity) -> list[dict[str, Any]]:
    """Boxes of objects beside an award, and what opening them gives."""

    def record(namespace: str) -> Workload:
        resource = ResourceId(namespace, "Secret", "key")
        unsigned = workload.evolve(resource=resource, replicas=0)
        return unsigned.evolve(signature=key.sign(signing.signed_bytes(unsigned)))

    def box_of(value: Any) -> bytes:
        return sealed_to(SEALING.public, codec.encode(value), b"\x07" * 32)

    good, other = record(workload.resource.namespace), record("elsewhere")
    rows = [
        ("a record of the award's namespace", box_of([encode_message(good)])),
        ("a record of another namespace", box_of([encode_message(other)])),
        ("no list", box_of({"records": []})),
        ("a record whose signature is not its author's", box_of([encode_message(good.evolve(replicas=9))])),
        ("a box to nobody", bytes(60)),
    ]
    return [
        {
            "what": what,
            "award": encode_message(award).hex(),
            "objects": box.hex(),
            "rule": rule_of(lambda b=box: open_objects(Delivery(award, b"-", b), SEALING)),
        }
        for what, box in rows
    ]


# -- texts and streams -----------------------------------------------------------------------------


def texts() -> list[dict[str, str]]:
    """Names and addresses that people type, with what reading them says."""
    peer = str(NODE.peer_id)
    rows = [
        ("peer-id", peer), ("peer-id", peer.upper()), ("peer-id", peer[1:]), ("peer-id", ""),
        ("bootstrap", f"{peer}@10.0.0.1:4001"), ("bootstrap", f"{peer}@[fd00::1]:4001"), ("bootstrap", peer),
        ("bootstrap", f"{peer}@fd00::1:4001"), ("bootstrap", f"{peer}@host:1"), ("bootstrap", f"{peer}@10.0.0.1:0"),
        ("bootstrap", "x@10.0.0.1:1"), ("resource", "default/Deployment/web"), ("resource", "default/web"),
        ("resource", "Default/Deployment/web"), ("resource", "default/deployment/web"),
    ]  # fmt: skip
    readers = {"peer-id": PeerId.parse, "bootstrap": BootstrapPeer.parse, "resource": ResourceId.parse}
    return [
        {"kind": kind, "text": text, "rule": rule_of(lambda k=kind, t=text: readers[k](t))}
        for kind, text in rows
    ]


def streams() -> list[dict[str, str]]:
    """Bytes of a stream that then ends, and the rule that refuses them."""
    rows = [
        ("a frame", "00000001f6"), ("two frames", "0000000100" * 2), ("nothing", ""), ("an empty frame", "00000000"),
        ("a frame of 16 MiB and a byte", "01000001"), ("cut off", "0000000201"), ("a head cut off", "0000"),
        ("not a value", "00000001ff"),
    ]  # fmt: skip
    return [
        {"what": what, "bytes": data, "rule": rule_of(lambda d=data: _stream(bytes.fromhex(d)))}
        for what, data in rows
    ]


def _stream(data: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(data)
    decoder.end()


def calls() -> list[dict[str, str]]:
    """Values that are no request, no response, no gossip frame, no award's delivery, no message of leadership, no body
    of the hash table's calls."""
    request = {"method": "/magik/bid/1.0.0", "deadline_ms": 1, "body": None}
    response = {"ok": True, "error": None, "body": None}
    life = {"life": 0, "lives": [[1, 7], [4, 9]]}
    beat = {"kind": "heartbeat", "term": 3, "generation": 2, "round": 1, **life}
    told = {"kind": "rejoin-reply", "incarnation": 1, "term": 2, "generation": 0, "since": 0, **life}
    good = {"kind": "heartbeat-reply", "term": 1, "generation": 2, "round": None, "later": 1, **life}
    rows: list[tuple[str, str, Any]] = [
        ("request", "good", request), ("request", "with a field of a later version", {**request, "x": 1}),
        ("request", "no deadline", {**request, "deadline_ms": 0}),
        ("request", "an odd method", {**request, "method": "bid"}),
        ("request", "no map", []), ("response", "good", response), ("response", "neither", {**response, "ok": False}),
        ("response", "an error that is none", {**response, "ok": False, "error": 5}),
        ("gossip", "good", {"graft": ["magik-fabric"], "later": 1}), ("gossip", "no map", []),
        ("gossip", "an id of 31 bytes", {"iwant": [bytes(31)]}), ("gossip", "65 topics", {"graft": ["t"] * 65}),
        ("gossip", "a message that the sender has", {"idontwant": [bytes(32)]}),
        ("gossip", "1001 messages that the sender has", {"idontwant": [bytes(32)] * 1001}),
        ("dht-find", "good", {"key": bytes(32), "kind": "service", "after": bytes(32), "addrs": ["10.0.0.1:4001"]}),
        ("dht-find", "with a field of a later version", {"key": bytes(32), "later": 1}),
        ("dht-find", "a key of 31 bytes", {"key": bytes(31)}), ("dht-find", "no key", {}),
        ("dht-find", "a kind with a capital", {"key": bytes(32), "kind": "Service"}),
        ("dht-find", "five addresses", {"key": bytes(32), "addrs": ["10.0.0.1:4001"] * 5}),
        ("dht-found", "good", {"peers": [[bytes(32), ["10.0.0.1:4001"]]], "records": [b"r"], "more": True}),
        ("dht-found", "no peers", {"records": [b"r"]}),
        ("dht-found", "a peer without addresses", {"peers": [[bytes(32)]]}),
        ("dht-found", "an empty record", {"peers": [], "records": [b""]}),
        ("dht-store", "good", {"records": [b"r"]}), ("dht-store", "no record", {"records": []}),
        ("dht-store", "a record of 16385 bytes", {"records": [bytes(16_385)]}),
        ("dht-stored", "good", {"refused": ["", "dht.full"]}),
        ("dht-stored", "a rule in capitals", {"refused": ["FULL"]}),
        ("delivery", "an award without its box", {"award": b"\0"}), ("delivery", "no map", b"\0"),
        ("leadership", "good", good), ("leadership", "of no life", {**good, "life": None}),
        ("leadership", "lives that are no pairs", {**good, "lives": [[4]]}),
        ("leadership", "an unknown kind", {"kind": "veto"}),
        ("leadership", "no term", {"kind": "vote", "generation": 2, "since": 1, "settled": True, **life}),
        ("leadership", "a vote asked for without its configuration", {"kind": "vote", "term": 3, "generation": 2, **life}),
        ("leadership", "a change of the voters", {**beat, "voters": [5, 3]}),
        ("leadership", "a leader that knows no voters", {**beat, "voters": []}),
        ("leadership", "a lock of no voters", {**beat, "voters": [0]}),
        ("leadership", "three numbers of voters", {**beat, "voters": [7, 5, 3]}),
        ("leadership", "a learner's answer", {**told, "voters": []}),
        ("leadership", "an answer without a configuration", {"kind": "rejoin-reply", "incarnation": 1, "term": 2, **life}),
    ]  # fmt: skip
    readers = {
        "request": Request.from_value,
        "response": Response.from_value,
        "gossip": parse_frame,
        "delivery": Delivery.from_body,
        "leadership": leadership_wire.from_value,
        "dht-find": parse_find,
        "dht-found": parse_found,
        "dht-store": parse_store,
        "dht-stored": parse_stored,
    }
    return [
        {"kind": kind, "what": what, "encoding": cbor2.dumps(value, canonical=True).hex(),
         "rule": rule_of(lambda k=kind, v=value: readers[k](v))}
        for kind, what, value in rows
    ]  # fmt: skip
