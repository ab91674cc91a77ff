"""Every message, record and credential survives the wire, and no change of its bytes keeps it valid."""

from __future__ import annotations

import hashlib

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magik_proto import signing, wire
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import Identity
from magik_proto.messages import decode_as, encode_message
from magik_proto.testing import strategies
from magik_proto.wire import SignedMessage

KEY = Identity.from_seed(b"\x07" * 32)
SIGNERS = {
    "tender": ("owner",),
    "bid": ("node_id",),
    "award": ("owner_identity", "owner_pubkey"),
    "event": ("node_id",),
    "disposal": ("signer",),
    "workload": ("author",),
    "machine": ("peer",),
    "service": ("peer_id",),
    "delegation": ("root",),
    "member": ("delegate",),
    "revocations": ("root",),
}
KINDS = {
    "tender": strategies.tenders,
    "bid": strategies.bids,
    "award": strategies.awards,
    "event": strategies.events,
    "disposal": strategies.disposals,
    "workload": strategies.workloads,
    "machine": strategies.machine_records,
    "service": strategies.service_records,
    "delegation": strategies.delegations,
    "member": strategies.members,
    "revocations": strategies.revocations,
}


def signed(message: SignedMessage) -> SignedMessage:
    """`message` as the test's key would send it."""
    names = SIGNERS[message.TYPE]
    key = {name: KEY.peer_id.raw if name == "owner_pubkey" else KEY.peer_id for name in names}
    return signing.sign(attrs.evolve(message, **key), KEY)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    @given(KINDS[kind])
    @settings(max_examples=40)
    def survives(message: SignedMessage) -> None:
        sent = signed(message)
        data = encode_message(sent)
        back = decode_as(type(sent), data)
        signing.verify(back)
        assert back == sent
        assert encode_message(back) == data
        assert back.digest_read in (None, hashlib.sha256(wire.encode_unsigned(sent)).digest())

    survives()


@given(st.one_of(*KINDS.values()), st.data())
@settings(max_examples=300)
def test_a_changed_byte_is_refused_or_does_not_verify(message: SignedMessage, data: st.DataObject) -> None:
    sent = signed(message)
    raw = bytearray(encode_message(sent))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteProtocolError):
        signing.verify(decode_as(type(sent), bytes(raw)))


@given(st.one_of(*KINDS.values()))
def test_one_types_bytes_are_no_other_type(message: SignedMessage) -> None:
    sent = signed(message)
    classes = {type(sample) for sample in (sent,)} | set(wire.SignedMessage.__subclasses__())
    for cls in classes - {type(sent)}:
        if cls.__module__.startswith("magik_proto."):
            with pytest.raises(RemoteProtocolError, match=r"message\.unknown-type|codec\.size"):
                decode_as(cls, encode_message(sent))
