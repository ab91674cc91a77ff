"""Keys, peer ids, sealing, and secrets that do not show."""

from __future__ import annotations

import copy
import operator
import pickle

import pytest

from magik_proto.errors import InvalidField, LocalProtocolError, RemoteProtocolError
from magik_proto.identity import (
    BootstrapPeer,
    Identity,
    PeerId,
    SealingKey,
    Secret,
    format_address,
    parse_address,
    seal,
    verify_signature,
)

# RFC 8032, section 7.1, tests 1 and 2: (secret, public, message, signature).
RFC8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC8032)
def test_signatures_are_those_of_the_standard(seed: str, public: str, message: str, signature: str) -> None:
    identity = Identity.from_seed(bytes.fromhex(seed))
    assert str(identity.peer_id) == public
    assert identity.sign(bytes.fromhex(message)).hex() == signature
    verify_signature(identity.peer_id, bytes.fromhex(message), bytes.fromhex(signature))


def test_a_foreign_damaged_or_short_signature_is_refused(owner: Identity, node: Identity) -> None:
    good = owner.sign(b"message")
    for peer, message, signature in [
        (node.peer_id, b"message", good),
        (owner.peer_id, b"massage", good),
        (owner.peer_id, b"message", good[:-1] + bytes([good[-1] ^ 1])),
        (owner.peer_id, b"message", good[:-1]),
        (owner.peer_id, b"message", b""),
        (PeerId(bytes(32)), b"message", good),
    ]:
        with pytest.raises(RemoteProtocolError) as caught:
            verify_signature(peer, message, signature)
        assert caught.value.rule == "signature.invalid"


def test_a_key_of_small_order_verifies_nothing() -> None:
    """With the neutral point as key, S = 0 and R = neutral would fit every message."""
    neutral = b"\x01" + bytes(31)
    with pytest.raises(RemoteProtocolError):
        verify_signature(PeerId(neutral), b"anything", neutral + bytes(32))


def test_peer_ids_are_written_read_ordered_and_hashed_by_their_bytes() -> None:
    low, high = PeerId(bytes(31) + b"\x01"), PeerId(b"\x01" + bytes(31))
    assert low < high
    assert len({low, high, PeerId(low.raw)}) == 2
    assert PeerId.parse(str(high)) == high
    assert high.short == str(high)[:12]


@pytest.mark.parametrize(
    "text", ["", "00", "g" * 64, "AB" * 32, "00" * 33, " " + "00" * 32, "00" * 32 + "\n"]
)
def test_other_texts_are_no_peer_id(text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        PeerId.parse(text)
    assert caught.value.rule == "identity.peer-id"


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33), "a" * 32, bytearray(32)])
def test_other_values_are_no_peer_id(raw: object) -> None:
    with pytest.raises(InvalidField):
        PeerId(raw)  # type: ignore[arg-type]


def test_sealed_bytes_are_opened_by_the_holder_only() -> None:
    key, other = SealingKey.from_seed(b"\x05" * 32), SealingKey.generate()
    sealed = seal(key.public, b"manifest")
    assert key.open(sealed) == b"manifest"
    assert seal(key.public, b"manifest") != sealed
    for holder, box in [
        (other, sealed),
        (key, sealed[:-1]),
        (key, sealed[:10]),
        (key, bytes(100)),
        (key, b""),
    ]:
        with pytest.raises(RemoteProtocolError) as caught:
            holder.open(box)
        assert caught.value.rule == "seal.invalid"


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_nothing_is_sealed_to_a_bad_key(public: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        seal(public, b"manifest")
    assert caught.value.rule == "seal.key"


def test_generated_keys_come_from_the_source_given() -> None:
    assert Identity.generate(lambda size: b"\x07" * size).seed() == b"\x07" * 32
    assert SealingKey.generate(lambda size: b"\x07" * size).seed() == b"\x07" * 32
    assert Identity.generate().peer_id != Identity.generate().peer_id


@pytest.mark.parametrize("make", [Identity.from_seed, SealingKey.from_seed, lambda seed: Secret(seed, "key")])
def test_secrets_do_not_show(make: object) -> None:
    seed = bytes(range(32))
    holder = make(seed)  # type: ignore[operator]
    for text in (repr(holder), str(holder), f"{holder!r}"):
        assert seed.hex() not in text
        assert repr(seed)[2:20] not in text
    for escape in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(LocalProtocolError, match="secret"):
            escape(holder)


def test_a_wiped_secret_is_zero_and_of_no_more_use() -> None:
    secret = Secret(b"\x09" * 32, "key")
    buffer = secret._buffer
    secret.wipe()
    secret.wipe()
    assert bytes(buffer) == bytes(32)
    assert secret.wiped
    with pytest.raises(LocalProtocolError, match="wiped"):
        secret.reveal()


def test_a_secret_is_wiped_when_it_goes() -> None:
    secret = Secret(b"\x09" * 32, "key")
    buffer = secret._buffer
    del secret
    assert bytes(buffer) == bytes(32)


def test_identities_are_wiped_at_the_end_of_their_block() -> None:
    with Identity.from_seed(b"\x09" * 32) as identity:
        peer = identity.peer_id
    assert identity.peer_id == peer
    with pytest.raises(LocalProtocolError, match="wiped"):
        identity.sign(b"")
    key = SealingKey.from_seed(b"\x09" * 32)
    sealed = seal(key.public, b"x")
    key.wipe()
    with pytest.raises(LocalProtocolError, match="wiped"):
        key.open(sealed)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_seed_has_32_bytes(length: int) -> None:
    with pytest.raises(InvalidField):
        Identity.from_seed(bytes(length))


@pytest.mark.parametrize(
    ("text", "host", "port"), [("10.0.0.1:4001", "10.0.0.1", 4001), ("[::1]:1", "::1", 1)]
)
def test_addresses_are_read_and_written(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1",
        ":1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:08",
        "::1:80",
        "[10.0.0.1]:80",
        "host:80",
        "[::1:80",
        "10.0.0.1:+1",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_address(text)
    assert caught.value.rule == "identity.address"


def test_bootstrap_peers_are_read_and_written(owner: Identity) -> None:
    text = f"{owner.peer_id}@[fd00::1]:4001"
    peer = BootstrapPeer.parse(text)
    assert (peer.peer, peer.host, peer.port) == (owner.peer_id, "fd00::1", 4001)
    assert str(peer) == text
    assert text in repr(peer)
    for bad in ("", str(owner.peer_id), "00@10.0.0.1:1", f"{owner.peer_id}@10.0.0.1"):
        with pytest.raises(RemoteProtocolError):
            BootstrapPeer.parse(bad)


def test_peer_ids_are_ordered_by_their_bytes() -> None:
    low, high = PeerId(bytes(32)), PeerId(b"\xff" * 32)
    again = PeerId(bytes(32))
    assert [low < high, low <= high, low <= again, high > low, high >= low, low >= again] == [True] * 6
    assert [low > high, low >= high, high < low, high <= low, low < again, low > again] == [False] * 6
    assert (hash(low), low) == (hash(again), again)
    for compare in (operator.lt, operator.le, operator.gt, operator.ge):
        with pytest.raises(TypeError):
            compare(low, str(low))


def test_a_peer_id_is_its_key_and_made_of_nothing_else() -> None:
    peer = PeerId(bytes(range(32)))
    assert (type(peer.raw), peer.raw) == (bytes, bytes(range(32)))
    assert peer == PeerId.parse(str(peer)) == peer.raw
    assert f"{peer}" == peer.raw.hex()
    assert copy.copy(peer) == pickle.loads(pickle.dumps(peer)) == peer
    for wrong in (bytes(31), bytes(33), bytearray(32), 32, "00" * 32, peer):
        with pytest.raises(InvalidField):
            PeerId(wrong)  # type: ignore[arg-type]
