"""Messages and records on the wire: one form, every field checked, unknown fields kept."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import attrs
import pytest

from magik_proto import codec, conversion, signing, wire
from magik_proto.credentials import Delegation, Member, Revocations
from magik_proto.errors import InvalidField, LocalProtocolError, RemoteProtocolError
from magik_proto.identity import Identity, PeerId
from magik_proto.messages import (
    MESSAGES,
    Award,
    Bid,
    Disposal,
    Event,
    EventType,
    Expression,
    Requirements,
    ResourceId,
    Tender,
    Toleration,
    decode_as,
    decode_message,
    encode_message,
)
from magik_proto.records import RECORDS, decode_record
from magik_proto.wire import SignedMessage

ALL = (*MESSAGES, *RECORDS, Delegation, Member, Revocations)
Samples = dict[str, SignedMessage]


def refused(cls: type[SignedMessage], value: dict[str, Any]) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_as(cls, codec.encode(value))
    return caught.value


def test_a_message_survives_the_wire(sample: SignedMessage) -> None:
    data = encode_message(sample)
    back = decode_as(type(sample), data)
    assert back == sample
    assert encode_message(back) == data
    assert hash(back) == hash(sample)


def test_all_messages_and_records_are_found_by_their_header(samples: Samples) -> None:
    for cls in MESSAGES:
        assert decode_message(encode_message(samples[cls.TYPE])) == samples[cls.TYPE]
    for cls in RECORDS:
        assert decode_record(encode_message(samples[cls.TYPE])) == samples[cls.TYPE]


def test_one_types_bytes_never_decode_as_another(samples: Samples) -> None:
    for message in samples.values():
        for cls in ALL:
            if cls is not type(message):
                with pytest.raises(RemoteProtocolError, match=r"message\.unknown-type"):
                    decode_as(cls, encode_message(message))
                # Not even with the header exchanged.
                assert (
                    refused(cls, {**wire.to_wire(message), "magik": wire.header(cls)}).rule == "message.field"
                )


def test_unknown_versions_types_and_forms_are_refused(samples: Samples) -> None:
    value = wire.to_wire(samples["tender"])
    assert refused(Tender, {**value, "magik": "tender/2"}).rule == "message.unknown-version"
    assert refused(Tender, {**value, "magik": "tinder/1"}).rule == "message.unknown-type"
    assert refused(Tender, {**value, "magik": 1}).rule == "message.malformed"
    for other in ([], 1, "tender/1", {}, None, b"x"):
        with pytest.raises(RemoteProtocolError, match=r"message\.malformed"):
            decode_message(codec.encode(other))
    with pytest.raises(RemoteProtocolError, match=r"message\.unknown-version"):
        decode_message(codec.encode({**value, "magik": "tender/2"}))
    with pytest.raises(RemoteProtocolError, match=r"message\.unknown-type"):
        decode_record(encode_message(samples["tender"]))


def test_each_field_but_the_optional_ones_must_be_there(sample: SignedMessage) -> None:
    value = wire.to_wire(sample)
    optional = {"ordinal", "member"}
    for name in value.keys() - optional - {"magik"}:
        rest = {key: item for key, item in value.items() if key != name}
        error = refused(type(sample), rest)
        assert error.rule == "message.field"
        assert name in error.detail


def test_a_null_is_refused_for_absent_has_one_form(sample: SignedMessage) -> None:
    value = wire.to_wire(sample)
    for name in value.keys() - {"magik"}:
        assert refused(type(sample), {**value, name: None}).rule == "message.field"
    assert refused(type(sample), {**value, "unknown": None}).rule == "message.field"


def test_a_field_of_another_type_is_refused(sample: SignedMessage) -> None:
    value = wire.to_wire(sample)
    others: list[Any] = [True, -(2**64), "x" * 1100, "\x00", b"", [[]], {"": {}}]
    for name, good in value.items():
        if name == "magik":
            continue
        for other in others:
            if type(other) is type(good):
                continue
            if isinstance(good, list) and other == []:
                continue
            assert refused(type(sample), {**value, name: other}).rule == "message.field", (name, other)


def test_unknown_fields_survive_and_are_signed(
    sample: SignedMessage, owner: Identity, node: Identity
) -> None:
    identity = owner if sample.signer == owner.peer_id else node
    extra = {"later": [1, {"deep": b"x"}], "more": "text"}
    newer = signing.sign(attrs.evolve(sample, extra=extra, signature=b""), identity)
    back = decode_as(type(sample), encode_message(newer))
    assert dict(back.extra) == extra
    signing.verify(back)
    with pytest.raises(RemoteProtocolError, match=r"signature\.invalid"):
        signing.verify(attrs.evolve(back, extra={**extra, "more": "other"}))
    with pytest.raises(RemoteProtocolError, match=r"signature\.invalid"):
        signing.verify(attrs.evolve(back, extra={}))


@pytest.mark.parametrize("name", ["magik", "nonce", "Upper", "with-dash", "", "a" * 65, "ü"])
def test_unknown_fields_cannot_pose_as_known_ones(samples: Samples, name: str) -> None:
    with pytest.raises(InvalidField):
        attrs.evolve(samples["bid"], extra={name: 1})
    if name not in ("magik", "nonce"):
        assert refused(Bid, {**wire.to_wire(samples["bid"]), name: 1}).rule == "message.field"


def test_there_are_at_most_64_unknown_fields(samples: Samples) -> None:
    value = wire.to_wire(samples["bid"])
    decode_as(Bid, codec.encode({**value, **{f"x{index}": 1 for index in range(64)}}))
    assert refused(Bid, {**value, **{f"x{index}": 1 for index in range(65)}}).rule == "message.field"


def test_parts_that_select_know_all_their_fields(samples: Samples) -> None:
    """An unknown field in a selector could turn its meaning round; in requirements it is kept."""
    value = wire.to_wire(samples["tender"])
    needs = value["requirements"]
    newer = codec.encode({**value, "requirements": {**needs, "gpus": 1}})
    assert dict(decode_as(Tender, newer).requirements.extra) == {"gpus": 1}
    term = {"expressions": [{"key": "a", "operator": "In", "values": [], "not": True}]}
    assert refused(Tender, {**value, "requirements": {**needs, "affinity": [term]}}).rule == "message.field"
    resource = wire.to_wire(samples["award"])["resource"]
    odd = {**wire.to_wire(samples["award"]), "resource": {**resource, "cluster": "x"}}
    assert refused(Award, odd).rule == "message.field"


def test_an_absent_optional_field_stays_absent() -> None:
    needs = Requirements(cpu_millis=1, memory_bytes=1)
    value = conversion.build_converter().unstructure(needs)
    assert "architecture" not in value
    assert value["avoid"] == []


def test_unsigned_messages_are_neither_sent_nor_read(samples: Samples) -> None:
    with pytest.raises(LocalProtocolError, match="not signed"):
        encode_message(attrs.evolve(samples["tender"], signature=b""))
    value = {**wire.to_wire(samples["tender"]), "signature": b""}
    assert refused(Tender, value).rule == "signature.missing"


def test_gossiped_messages_are_at_most_64_kib(samples: Samples) -> None:
    big = attrs.evolve(samples["tender"], extra={"big": b"\0" * 65536})
    with pytest.raises(LocalProtocolError, match="allowed 65536"):
        encode_message(big)
    data = codec.encode(wire.to_wire(big))
    for decode in (decode_message, lambda data: decode_as(Tender, data)):
        with pytest.raises(RemoteProtocolError, match=r"codec\.size"):
            decode(data)


def test_messages_are_frozen_to_the_bottom(samples: Samples) -> None:
    tender = samples["tender"]
    assert isinstance(tender, Tender)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        tender.priority = 7  # type: ignore[misc]
    with pytest.raises(TypeError):
        tender.requirements.node_selector["disk"] = "hdd"  # type: ignore[index]
    selector = {"a": "b"}
    needs = Requirements(cpu_millis=1, memory_bytes=1, node_selector=selector)
    selector["c"] = "d"
    assert dict(needs.node_selector) == {"a": "b"}


BAD: list[tuple[str, str, Any]] = [
    ("tender", "id", "text"),
    ("tender", "owner", b"\0" * 32),
    ("tender", "manifest_digest", b"\0" * 31),
    ("tender", "qos_preemptible", 1),
    ("tender", "priority", 2**31),
    ("tender", "priority", True),
    ("tender", "bid_sample", 0),
    ("tender", "round", 256),
    ("tender", "round", -1),
    ("tender", "timestamp", 2**48),
    ("tender", "timestamp", -1),
    ("tender", "nonce", 2**64),
    ("tender", "signature", b"\0" * 63),
    ("bid", "score", 1_000_001),
    ("bid", "score", 0.5),
    ("bid", "score", float("nan")),
    ("bid", "resource_fit_score", -1),
    ("bid", "network_locality_score", None),
    ("bid", "slots", 0),
    ("bid", "slots", 10_001),
    ("bid", "sealing_key", b"\0" * 33),
    ("award", "replicas", 0),
    ("award", "ordinals", (3, 0)),
    ("award", "ordinals", (1, 1)),
    ("award", "ordinals", (1,)),
    ("award", "ordinals", [0, 1]),
    ("award", "generation", -1),
    ("award", "sealed_digest", b""),
    ("award", "sealed_digest", b"\0" * 33),
    ("event", "event_type", "Deployed"),
    ("event", "reason", "line\nbreak"),
    ("event", "reason", "\x1b[31m"),
    ("event", "reason", "x" * 1025),
    ("event", "pods", ("Upper",)),
    ("event", "pods", "nginx-0"),
    ("disposal", "namespace", "a.b"),
    ("disposal", "namespace", ""),
    ("disposal", "namespace", "a" * 64),
    ("disposal", "namespace", "default\n"),
    ("disposal", "kind", "deployment"),
    ("disposal", "name", "-a"),
    ("disposal", "name", "a..b"),
    ("disposal", "name", "a/b"),
    ("disposal", "name", ".".join(["a" * 60] * 5)),
    ("workload", "manifest", b"\0" * (1024 * 1024 + 1)),
    ("workload", "replicas", -1),
    ("workload", "stamp", 2**64),
    ("machine", "addrs", ("host:80",)),
    ("machine", "addrs", ("10.0.0.1:1",) * 17),
    ("machine", "labels", {"a b": "c"}),
    ("machine", "labels", {"a": "c/d"}),
    ("machine", "labels", [("a", "b")]),
    ("machine", "member", b""),
    ("service", "ordinal", -1),
    ("service", "caps", {"Leader": True}),
    ("service", "caps", {"leader": -1}),
    ("service", "caps", {"leader": "x" * 257}),
    ("service", "ports", {"http": 0}),
    ("service", "ports", {"a" * 16: 80}),
    ("service", "ready", 1),
    ("holding", "id", ""),
    ("holding", "id", "x" * 641),
    ("holding", "life", 3601),
]


@pytest.mark.parametrize(("kind", "name", "value"), BAD, ids=lambda value: repr(value)[:30])
def test_a_value_out_of_its_range_is_refused_by_the_constructor(
    samples: Samples, kind: str, name: str, value: Any
) -> None:
    with pytest.raises(InvalidField) as caught:
        attrs.evolve(samples[kind], **{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    "make",
    [
        lambda: Requirements(cpu_millis=-1, memory_bytes=0),
        lambda: Requirements(cpu_millis=1, memory_bytes=0, runtime="docker"),
        lambda: Requirements(cpu_millis=1, memory_bytes=0, architecture="AMD 64"),
        lambda: Requirements(cpu_millis=1, memory_bytes=0, node_selector={"/a": "b"}),
        lambda: Requirements(cpu_millis=1, memory_bytes=0, avoid=(PeerId(bytes(32)),) * 257),
        lambda: Expression("key", "Like", ()),
        lambda: Expression("key", "In", ("v",) * 65),
        lambda: Toleration(key="a b"),
        lambda: Toleration(effect="Sometimes"),
        lambda: ResourceId("default", "Deployment", "Nginx"),
    ],
)
def test_parts_check_their_fields(make: Any) -> None:
    with pytest.raises(InvalidField):
        make()


def test_resource_ids_are_written_and_read() -> None:
    resource = ResourceId.parse("default/Deployment/nginx.v1")
    assert resource == ResourceId("default", "Deployment", "nginx.v1")
    assert str(resource) == "default/Deployment/nginx.v1"
    for bad in ("", "default/Deployment", "a/B/c/d", "a/b/c", "/Pod/x"):
        with pytest.raises(RemoteProtocolError, match=r"message\.resource-id"):
            ResourceId.parse(bad)


def test_events_and_disposals_name_their_subject(samples: Samples) -> None:
    event, disposal = samples["event"], samples["disposal"]
    assert isinstance(event, Event)
    assert isinstance(disposal, Disposal)
    assert event.event_type is EventType.Failed
    assert disposal.resource == ResourceId("default", "Deployment", "nginx")
    assert refused(Event, {**wire.to_wire(event), "event_type": "Exploded"}).rule == "message.field"


def test_replay_ids_differ_by_type_and_subject(samples: Samples) -> None:
    assert len({message.replay_id for message in samples.values()}) == len(samples)
    tender = samples["tender"]
    assert attrs.evolve(tender, id=UUID(int=1)).replay_id != tender.replay_id


def test_reprs_are_short_and_hold_no_manifest(samples: Samples) -> None:
    for message in samples.values():
        assert "signature" not in repr(message)
    assert "manifest=" not in repr(samples["workload"])
    assert "<later>" in repr(attrs.evolve(samples["bid"], extra={"later": 1}))
