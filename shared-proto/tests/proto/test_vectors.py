"""The code agrees with every vector in specs/vectors, and the vectors with their generator."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import magik_proto
from magik_proto import codec, leadership_wire, signing, wire
from magik_proto.awards import Delivery, open_award, open_objects
from magik_proto.bidder import (
    AwardReceived,
    AwardRepeated,
    Bidder,
    BidderConfig,
    Deploy,
    MakeBid,
    NoBid,
    RefuseAward,
    TenderSeen,
)
from magik_proto.clock import HybridClock
from magik_proto.dht_frames import parse_find, parse_found, parse_store, parse_stored
from magik_proto.errors import RemoteProtocolError
from magik_proto.gossip_frames import parse_frame
from magik_proto.identity import BootstrapPeer, Identity, PeerId, SealingKey, seal, verify_signature
from magik_proto.membership import Invite, MembershipError, MembershipPolicy, Revocations, RootKey
from magik_proto.messages import Award, Bid, ResourceId, Tender, decode_as, decode_message, encode_message
from magik_proto.passes import PassPolicy
from magik_proto.placement import MachineFacts, choose_winners
from magik_proto.records import decode_record
from magik_proto.replay import ReplayFilter
from magik_proto.rpc import FrameDecoder, Request, Response, encode_frame
from magik_proto.testing.builders import machine

FOLDER = Path(__file__).parents[3] / "specs" / "vectors"
CODEC, MESSAGES = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("codec", "messages"))


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def unhexed(value: Any) -> Any:
    """JSON with ``{"hex": …}`` for byte strings → the value."""
    if isinstance(value, dict):
        if value.keys() == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: unhexed(item) for key, item in value.items()}
    return [unhexed(item) for item in value] if isinstance(value, list) else value


def test_the_generator_gives_these_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(FOLDER / "make.py"), str(tmp_path)], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in FOLDER.glob("*.json") if path.name in made}
    assert len(made) == 9


@pytest.mark.parametrize("vector", CODEC["values"], ids=lambda vector: vector["encoding"][:20])
def test_values(vector: Any) -> None:
    value, data = unhexed(vector["value"]), bytes.fromhex(vector["encoding"])
    assert codec.encode(value) == data
    assert codec.decode(data) == value


@pytest.mark.parametrize("vector", CODEC["refused"], ids=lambda vector: vector["what"])
def test_refused_bytes(vector: Any) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(bytes.fromhex(vector["bytes"]))
    assert caught.value.rule == vector["rule"]


def test_keys() -> None:
    for vector in load("keys.json"):
        seed = bytes.fromhex(vector["seed"])
        identity = Identity.from_seed(seed)
        assert str(identity.peer_id) == vector["peer_id"]
        assert identity.sign(b"magik").hex() == vector["signature_of_magik"]
        assert SealingKey.from_seed(seed).public.hex() == vector["sealing_public"]


@pytest.mark.parametrize("vector", MESSAGES["accepted"], ids=lambda vector: vector["type"])
def test_messages(vector: Any) -> None:
    data = bytes.fromhex(vector["encoding"])
    kind = vector["type"].partition("/")[0]
    decode = decode_record if kind in ("workload", "machine", "service", "holding") else decode_message
    message = decode(data)
    signing.verify(message)
    assert str(message.signer) == vector["signer"]
    assert encode_message(message) == data == codec.encode(unhexed(vector["fields"]))
    assert wire.to_wire(message) == unhexed(vector["fields"])
    signed = bytes.fromhex(vector["signed_bytes"])
    assert signing.signed_bytes(message) == signed
    assert Identity.from_seed(bytes.fromhex(vector["seed"])).sign(signed).hex() == vector["signature"]
    verify_signature(PeerId.parse(vector["signer"]), signed, bytes.fromhex(vector["signature"]))


@pytest.mark.parametrize("vector", MESSAGES["refused_as_bid"], ids=lambda vector: vector["what"])
def test_refused_messages(vector: Any) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        message = decode_message(bytes.fromhex(vector["encoding"]))
        signing.verify(message)
    assert caught.value.rule == vector["rule"]
    with pytest.raises(RemoteProtocolError):
        signing.verify(decode_as(Bid, bytes.fromhex(vector["encoding"])))


def test_membership() -> None:
    vector = load("membership.json")
    root = RootKey.from_seed(bytes.fromhex(vector["root_seed"]))
    invite = Invite.parse(vector["invite"])
    peer = PeerId.parse(vector["peer"])
    policy = MembershipPolicy(root.peer_id)
    member = bytes.fromhex(vector["member"])
    assert (str(root.peer_id), str(invite.id)) == (vector["root"], vector["invite_id"])
    assert encode_message(invite.delegation).hex() == vector["delegation"]
    assert sorted(policy.admit(peer, member, vector["admitted_at"])) == vector["roles"]
    with pytest.raises(MembershipError, match=r"membership\.expired"):
        policy.admit(peer, member, vector["expired_at"])
    assert policy.revoke(decode_as(Revocations, bytes.fromhex(vector["revocations"])))
    with pytest.raises(MembershipError, match=r"membership\.invite-revoked"):
        policy.admit(peer, member, vector["admitted_at"])


def rule_of(action: Callable[[], object]) -> str:
    try:
        action()
    except RemoteProtocolError as error:
        return error.rule
    return "accepted"


def test_refused_under_limits() -> None:
    for row in CODEC["refused_under_limits"]:
        limits = {name: row[name] for name in ("max_size", "max_depth", "max_items") if name in row}
        assert rule_of(lambda r=row, n=limits: codec.decode(bytes.fromhex(r["bytes"]), **n)) == row["rule"]


def test_messages_that_do_not_verify_or_are_too_large() -> None:
    for row in MESSAGES["refused"]:
        data = bytes.fromhex(row["encoding"]) if "encoding" in row else _large_disposal(row)
        kind = codec.decode(data)["magik"]
        decode = decode_record if kind == "service/1" else decode_message
        assert rule_of(lambda d=data, read=decode: signing.verify(read(d))) == row["rule"]


def _large_disposal(row: Any) -> bytes:
    (disposal,) = (m for m in MESSAGES["accepted"] if m["type"] == "disposal/1")
    value = {**unhexed(disposal["fields"]), "later": bytes(row["disposal_with_zeros"])}
    data = codec.encode(value)
    assert hashlib.sha256(data).hexdigest() == row["sha256"]
    return data


@pytest.mark.parametrize("row", load("membership.json")["admissions"], ids=lambda row: row["what"])
def test_admissions(row: Any) -> None:
    policy = MembershipPolicy(PeerId.parse(load("membership.json")["root"]))
    if "revocations" in row:
        policy.revoke(decode_as(Revocations, bytes.fromhex(row["revocations"])))
    peer, member = PeerId.parse(row["peer"]), bytes.fromhex(row["member"])
    assert rule_of(lambda: policy.admit(peer, member, row["now"])) == row["rule"]


@pytest.mark.parametrize("row", load("membership.json")["passes"], ids=lambda row: row["what"])
def test_passes(row: Any) -> None:
    membership = MembershipPolicy(PeerId.parse(load("membership.json")["root"]))
    if "revocations" in row:
        membership.revoke(decode_as(Revocations, bytes.fromhex(row["revocations"])))
    judge, peer, shown = (
        PassPolicy(membership, "default"),
        PeerId.parse(row["peer"]),
        bytes.fromhex(row["pass"]),
    )
    assert rule_of(lambda: judge.admit(peer, shown, row["now"])) == row["rule"]


def test_revocation_lists_and_invites() -> None:
    vector = load("membership.json")
    policy = MembershipPolicy(PeerId.parse(vector["root"]))
    for row in vector["revocation_lists"]:
        revocations = decode_as(Revocations, bytes.fromhex(row["revocations"]))
        news: list[bool] = []
        assert rule_of(lambda r=revocations, n=news: n.append(policy.revoke(r))) == row["rule"]
        assert (news == [True]) == row["news"]
    for row in vector["invites"]:
        assert rule_of(lambda r=row: Invite.parse(r["text"])) == row["rule"]


def test_sealed_boxes() -> None:
    vector = load("sealing.json")
    key = SealingKey.from_seed(bytes.fromhex(vector["seed"]))
    assert key.public.hex() == vector["public"]
    for row in vector["opens"]:
        assert key.open(bytes.fromhex(row["sealed"])).hex() == row["plaintext"]
    for row in vector["refused"]:
        assert rule_of(lambda r=row: key.open(bytes.fromhex(r["sealed"]))) == row["rule"]
    for row in vector["refused_keys"]:
        assert rule_of(lambda r=row: seal(bytes.fromhex(r["public"]), b"x")) == row["rule"]


def test_replay() -> None:
    vector = load("replay.json")
    limits = {name: vector[name] for name in ("capacity", "per_signer", "skew_ms", "window_ms")}
    filter = ReplayFilter(vector["started"], **limits)
    for row in vector["steps"]:
        arguments = (
            PeerId.parse(row["signer"]),
            bytes.fromhex(row["id"]),
            row["nonce"],
            row["timestamp"],
            row["now"],
        )
        assert rule_of(lambda a=arguments: filter.check(*a)) == row["rule"], row["what"]
    for row in vector["stamps"]:
        clock = HybridClock(lambda now=row["now"]: now)
        assert rule_of(lambda c=clock, r=row: c.observe(int(r["stamp"]))) == row["rule"]


@pytest.mark.parametrize("row", load("auction.json")["winners"], ids=lambda row: row["what"])
def test_winners(row: Any) -> None:
    bids = [decode_as(Bid, bytes.fromhex(data)) for data in row["bids"]]
    taken = {PeerId.parse(peer): count for peer, count in row["taken"].items()}
    for order in permutations(bids):
        won = choose_winners(order, row["replicas"], taken)
        assert [[str(bid.node_id), count] for bid, count in won] == row["winners"]
    for bid in bids:
        signing.verify(bid)


def test_awards_obeyed_and_refused() -> None:
    vector = load("auction.json")["awards"]
    tender = decode_as(Tender, bytes.fromhex(vector["tender"]))
    labels = {"disk": "ssd", "zone": "a"}
    facts = MachineFacts(
        PeerId.parse(vector["node"]), machine(1).capacity, "amd64", frozenset({"crun"}), labels
    )
    for story in vector["stories"]:
        given = [decode_as(Award, bytes.fromhex(data)) for data in story["awards"]]
        bidder = Bidder(facts, BidderConfig(max_open=story["room"], max_slots=vector["slots"]))
        if story["room"] == 1:
            bidder.receive(TenderSeen(tender.evolve(id=UUID(int=9)), 3), 0.0)
            bidder.receive(AwardReceived(given[0].evolve(tender_id=UUID(int=9), nonce=1)), 0.0)
        (bid,) = bidder.receive(TenderSeen(tender, 3), 0.0)
        assert isinstance(bid, MakeBid | NoBid)
        for award, answer in zip(given, story["answers"], strict=True):
            (said,) = bidder.receive(AwardReceived(award), 1.0)
            names = {"deploy": Deploy, "repeated": AwardRepeated}
            assert isinstance(said, names.get(answer, RefuseAward)), story["what"]
            assert not isinstance(said, RefuseAward) or said.reason == answer


def test_awards_opened() -> None:
    vector = load("auction.json")
    key = SealingKey.from_seed(bytes.fromhex(vector["sealing_seed"]))
    for row in vector["opened"]:
        award = decode_as(Award, bytes.fromhex(row["award"]))
        delivery = Delivery(award, bytes.fromhex(row["sealed"]))
        assert rule_of(lambda d=delivery: open_award(d, key)) == row["rule"], row["what"]


def test_objects_opened() -> None:
    vector = load("auction.json")
    key = SealingKey.from_seed(bytes.fromhex(vector["sealing_seed"]))
    for row in vector["objects"]:
        delivery = Delivery(
            decode_as(Award, bytes.fromhex(row["award"])), b"-", bytes.fromhex(row["objects"])
        )
        assert rule_of(lambda d=delivery: open_objects(d, key)) == row["rule"], row["what"]


def test_texts() -> None:
    readers = {"peer-id": PeerId.parse, "bootstrap": BootstrapPeer.parse, "resource": ResourceId.parse}
    for row in load("texts.json"):
        assert rule_of(lambda r=row: readers[r["kind"]](r["text"])) == row["rule"], row["text"]


def test_streams_and_calls() -> None:
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
    for row in load("rpc.json")["streams"]:
        assert rule_of(lambda r=row: _stream(bytes.fromhex(r["bytes"]))) == row["rule"], row["what"]
    for row in load("rpc.json")["calls"]:
        value = codec.decode(bytes.fromhex(row["encoding"]))
        assert rule_of(lambda r=row, v=value: readers[r["kind"]](v)) == row["rule"], row["what"]


def _stream(data: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(data)
    decoder.end()


def test_every_refusal_has_a_vector() -> None:
    """Each rule that is written in the package's source is the answer of some vector."""
    source = "".join(path.read_text() for path in Path(magik_proto.__file__).parent.glob("*.py"))
    families = "codec|message|signature|seal|identity|award|replay|freshness|membership|pass|rpc|clock|gossip|leadership"
    rules = set(re.findall(rf'"((?:{families})\.[a-z-]+)"', source))
    shown = "".join(path.read_text() for path in FOLDER.glob("*.json"))
    without_bytes = {"leadership.not-a-replica"}  # a matter of who sent it, not of bytes
    assert len(rules) > 55
    assert {rule for rule in rules if f'"{rule}"' not in shown} == without_bytes


def test_frames() -> None:
    for vector in load("rpc.json")["frames"]:
        frame = bytes.fromhex(vector["frame"])
        (value,) = FrameDecoder().feed(frame)
        assert value == unhexed(vector["value"])
        cls = Request if vector["kind"] == "request" else Response
        assert encode_frame(cls.from_value(value)) == frame
