"""The code agrees with every vector in specs/vectors, and the vectors with their generator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from magik_proto import codec, signing, wire
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import Identity, PeerId, SealingKey, verify_signature
from magik_proto.membership import Invite, MembershipError, MembershipPolicy, Revocations, RootKey
from magik_proto.messages import Bid, decode_as, decode_message, encode_message
from magik_proto.records import decode_record
from magik_proto.rpc import FrameDecoder, Request, Response, encode_frame

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
    assert len(made) == 5


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
    decode = decode_record if kind in ("workload", "machine", "service") else decode_message
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


def test_frames() -> None:
    for vector in load("rpc.json"):
        frame = bytes.fromhex(vector["frame"])
        (value,) = FrameDecoder().feed(frame)
        assert value == unhexed(vector["value"])
        cls = Request if vector["kind"] == "request" else Response
        assert encode_frame(cls.from_value(value)) == frame
