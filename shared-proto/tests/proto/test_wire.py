"""The digest that reading takes on the way is the one that encoding again would give, or none."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs
import pytest

from magik_proto import signing, wire
from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.identity import Identity
from magik_proto.messages import Requirements, Tender, decode_as, decode_message, encode_message
from magik_proto.records import decode_record
from magik_proto.wire import SignedMessage

Samples = dict[str, SignedMessage]


def digest(message: SignedMessage) -> bytes:
    return hashlib.sha256(wire.encode_unsigned(message)).digest()


def test_what_was_read_need_not_be_encoded_again(sample: SignedMessage) -> None:
    assert sample.digest_read is None, "built here, not read"
    back = decode_as(type(sample), encode_message(sample))
    expected = None if sample.TYPE == "member" else digest(sample)  # a member holds a second signature
    assert back.digest_read == expected
    signing.verify(back)


def test_a_change_forgets_the_digest(samples: Samples, owner: Identity) -> None:
    back = decode_message(encode_message(samples["tender"]))
    changed = back.evolve(priority=7)
    assert changed.digest_read is None
    with pytest.raises(RemoteProtocolError, match=r"signature\.invalid"):
        signing.verify(changed)
    again = signing.sign(changed, owner)
    signing.verify(decode_message(encode_message(again)))


def test_a_signature_inside_a_value_does_not_mislead(samples: Samples, owner: Identity) -> None:
    """Bytes that look like the signature's entry: the digest is left to encoding again."""
    trap = b"\x69signature\x58\x40" + bytes(64)
    workload = signing.sign(attrs.evolve(samples["workload"], manifest=trap), owner)
    back = decode_record(encode_message(workload))
    assert back.digest_read is None
    signing.verify(back)


def test_a_map_with_a_long_head_is_encoded_again(
    samples: Samples, node: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_LAST_SHORT_MAP", 0xA1)
    back = decode_message(encode_message(samples["bid"]))
    assert back.digest_read is None
    signing.verify(back)


@pytest.mark.parametrize("where", ["message", "requirements"])
def test_unknown_fields_are_written_in_their_place(samples: Samples, owner: Identity, where: str) -> None:
    tender = samples["tender"]
    assert isinstance(tender, Tender)
    extra: dict[str, Any] = {"a": 1, "zz_longer_than_all_the_others": {"b": [1, 2], "a": b""}}
    changes: dict[str, Any] = {"extra": extra}
    if where == "requirements":
        changes = {"requirements": attrs.evolve(tender.requirements, extra=extra)}
    newer = signing.sign(attrs.evolve(tender, **changes), owner)
    assert newer.has_unknown
    assert not tender.has_unknown
    data = encode_message(newer)
    back = decode_message(data)
    assert (back, back.digest_read, encode_message(back)) == (newer, None, data)
    signing.verify(back)


def test_unknown_fields_are_checked_before_they_leave(samples: Samples, owner: Identity) -> None:
    deep: Any = 1
    for _ in range(16):
        deep = [deep]
    for extra in ({"a": 1.5}, {"a": deep}, {"a": {1: 2}}):
        with pytest.raises(LocalProtocolError, match="cannot be encoded"):
            signing.sign(attrs.evolve(samples["bid"], extra=extra), _signer(samples["bid"], owner))


def _signer(message: SignedMessage, owner: Identity) -> Identity:
    return owner if message.signer == owner.peer_id else Identity.from_seed(b"\x02" * 32)


def test_every_part_writes_its_keys_in_canonical_order(sample: SignedMessage) -> None:
    """`codec.write` trusts this."""
    value = wire.to_wire(sample)
    assert list(value) == wire.codec.sorted_keys(value)
    assert wire.codec.write(value) == wire.codec.encode(value)


def test_mappings_are_written_in_canonical_order() -> None:
    needs = Requirements(cpu_millis=1, memory_bytes=1, node_selector={"bb": "1", "a": "2", "aa": "3"})
    assert list(wire._CONVERTER.unstructure(needs)["node_selector"]) == ["a", "aa", "bb"]


def test_a_copy_with_a_signature_differs_in_nothing_else(samples: Samples) -> None:
    copy = samples["tender"].with_signature(b"\x01" * 64)
    assert copy.evolve(signature=samples["tender"].signature) == samples["tender"]
    assert copy.signature == b"\x01" * 64


def test_a_message_without_a_signer_is_nobodys() -> None:
    @attrs.frozen(kw_only=True)
    class Nameless(SignedMessage):
        TYPE = "nameless"

    for name in ("signer", "replay_id"):
        with pytest.raises(NotImplementedError):
            getattr(Nameless(nonce=1), name)
