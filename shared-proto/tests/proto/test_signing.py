"""Signatures: over everything but themselves, and for one type and version only."""

from __future__ import annotations

import hashlib

import attrs
import pytest

from magik_proto import codec, signing, wire
from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.identity import Identity, PeerId
from magik_proto.messages import Award, Bid, Tender, decode_as
from magik_proto.records import ServiceRecord
from magik_proto.wire import SignedMessage

Samples = dict[str, SignedMessage]


def test_a_signed_message_verifies(sample: SignedMessage) -> None:
    signing.verify(sample)


def test_what_is_signed_is_domain_and_digest(samples: Samples, owner: Identity) -> None:
    value = wire.to_wire(samples["tender"])
    signature = value.pop("signature")
    expected = b"magik/tender/1\0" + hashlib.sha256(codec.encode(value)).digest()
    assert signing.signed_bytes(samples["tender"]) == expected
    assert owner.sign(expected) == signature


def test_every_field_is_covered(sample: SignedMessage) -> None:
    """Whatever field is exchanged for another allowed value, the signature does not fit any more."""
    value = wire.to_wire(sample)
    changed = 0
    for name in value.keys() - {"magik", "signature"}:
        for other in alternatives(value[name]):
            if other == value[name]:
                continue
            try:
                message = decode_as(type(sample), codec.encode({**value, name: other}))
            except RemoteProtocolError:
                continue
            with pytest.raises(RemoteProtocolError) as caught:
                signing.verify(message)
            assert caught.value.rule.startswith("signature."), name
            changed += 1
            break
        else:
            pytest.fail(f"no other value found for {name}")
    assert changed == len(value) - 2


def alternatives(value: object) -> list[object]:
    """Values like `value`, one of which the field will allow."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value - 1]
        case bytes():
            return [value[:-1] + bytes([value[-1] ^ 1])]
        case str():
            return ["x" + value, "Xx" + value, "Deployed", "crun", value + "x"]
        case list():
            return [[], value[:-1], [3, 4]]
        case dict():
            changes = [{**value, key: other} for key, item in value.items() for other in alternatives(item)]
            return [*changes, {}]
        case _:
            return []


def test_a_signature_of_one_type_does_not_fit_another(samples: Samples, owner: Identity) -> None:
    domains = {signing.domain(type(message)) for message in samples.values()}
    assert len(domains) == len(samples)

    class Later(Tender):
        VERSION = 2

    assert signing.domain(Later) not in domains
    digest = signing.signed_bytes(samples["tender"])[len(signing.domain(Tender)) :]
    foreign = owner.sign(signing.domain(Bid) + digest)
    with pytest.raises(RemoteProtocolError, match=r"signature\.invalid"):
        signing.verify(attrs.evolve(samples["tender"], signature=foreign))


def test_no_domain_is_the_beginning_of_another(samples: Samples) -> None:
    domains = sorted(signing.domain(type(message)) for message in samples.values())
    assert all(not b.startswith(a) for a in domains for b in domains if a != b)


def test_only_the_signer_named_can_sign(samples: Samples, node: Identity) -> None:
    with pytest.raises(LocalProtocolError, match="names"):
        signing.sign(samples["tender"], node)


def test_an_award_must_name_one_owner(samples: Samples, owner: Identity, node: Identity) -> None:
    award = attrs.evolve(samples["award"], owner_pubkey=node.peer_id.raw)
    assert isinstance(award, Award)
    forged = attrs.evolve(award, signature=owner.sign(signing.signed_bytes(award)))
    with pytest.raises(RemoteProtocolError) as caught:
        signing.verify(forged)
    assert caught.value.rule == "signature.identity-mismatch"


def test_a_service_record_must_name_one_workload(samples: Samples, node: Identity) -> None:
    record = attrs.evolve(samples["service"], workload_id="default/Deployment/other")
    assert isinstance(record, ServiceRecord)
    with pytest.raises(RemoteProtocolError) as caught:
        signing.verify(signing.sign(record, node))
    assert caught.value.rule == "signature.identity-mismatch"


def test_another_claimed_signer_fails(samples: Samples) -> None:
    with pytest.raises(RemoteProtocolError, match=r"signature\.invalid"):
        signing.verify(attrs.evolve(samples["tender"], owner=PeerId(b"\x01" + bytes(31))))


def test_nonces_are_64_bits_of_the_source() -> None:
    assert signing.new_nonce(lambda size: b"\xff" * size) == 2**64 - 1
    assert signing.new_nonce(lambda size: bytes(size)) == 0
    assert signing.new_nonce() != signing.new_nonce()
