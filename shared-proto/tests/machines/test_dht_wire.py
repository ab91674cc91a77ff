"""The bodies of the hash table's calls, and the records that it believes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magik_proto import codec, signing
from magik_proto.dht_frames import (
    find_value,
    found_value,
    parse_find,
    parse_found,
    parse_store,
    parse_stored,
    store_value,
    stored_value,
)
from magik_proto.dht_kinds import (
    MACHINE_LIFE_MS,
    Kinds,
    holding_key,
    holding_kind,
    machine_kind,
    service_key,
    service_kind,
)
from magik_proto.dht_types import Find, Found, Store, Stored
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import Identity
from magik_proto.kademlia import Contact, position
from magik_proto.records import SERVICE_LIFE_MS, HoldingRecord, MachineRecord, ServiceRecord
from magik_proto.testing.builders import peer
from magik_proto.wire import encode_message

NOW = 1_700_000_000_000
KEY = bytes(range(32))
MACHINE = Identity.from_seed(bytes([1]) * 32)

peers = st.integers(0, 1 << 256).map(lambda n: peer(n % (1 << 256)))
addrs = st.lists(st.sampled_from(("10.0.0.1:4001", "[2001:db8::1]:65535")), max_size=4).map(tuple)
records = st.binary(min_size=1, max_size=40)


def over_the_wire(value: Any) -> Any:
    return codec.decode(codec.encode(value))


@given(st.binary(min_size=32, max_size=32), st.none() | st.just("machine"), st.none() | peers, addrs)
def test_a_find_comes_back(key: bytes, kind: str | None, after: Any, told: tuple[str, ...]) -> None:
    find = Find(key, kind, after)
    assert parse_find(over_the_wire(find_value(find, told))) == (find, told)


@given(st.lists(st.tuples(peers, addrs), max_size=20), st.lists(records, max_size=64), st.booleans())
def test_an_answer_comes_back(named: list[Any], held: list[bytes], more: bool) -> None:
    found = Found(tuple(Contact(p, a) for p, a in named), tuple(held), more)
    back = parse_found(over_the_wire(found_value(found)))
    assert [(c.peer, c.addrs) for c in back.peers] == named
    assert (back.records, back.more) == (tuple(held), more)


@given(st.lists(records, min_size=1, max_size=16))
def test_a_store_and_its_answer_come_back(held: list[bytes]) -> None:
    assert parse_store(over_the_wire(store_value(Store(tuple(held))))) == Store(tuple(held))
    told = Stored(("", "dht.full"))
    assert parse_stored(over_the_wire(stored_value(told))) == told


HONEST = {"key": KEY}


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (parse_find, None),
        (parse_find, {}),
        (parse_find, {"key": bytes(31)}),
        (parse_find, {**HONEST, "kind": "Machine"}),
        (parse_find, {**HONEST, "kind": 3}),
        (parse_find, {**HONEST, "after": b"short"}),
        (parse_find, {**HONEST, "addrs": ["10.0.0.1:4001"] * 5}),
        (parse_find, {**HONEST, "addrs": ["example.org:4001"]}),
        (parse_find, {**HONEST, "addrs": [7]}),
        (parse_found, {}),
        (parse_found, {"peers": [[KEY, []]] * 21}),
        (parse_found, {"peers": [[KEY]]}),
        (parse_found, {"peers": [KEY]}),
        (parse_found, {"peers": [], "records": [b""]}),
        (parse_found, {"peers": [], "records": [b"x"] * 65}),
        (parse_found, {"peers": [], "records": [bytes(16 * 1024 + 1)]}),
        (parse_found, {"peers": [], "more": 1}),
        (parse_store, {"records": []}),
        (parse_store, {"records": [b"x"] * 17}),
        (parse_store, {"records": ["text"]}),
        (parse_stored, {"refused": ["Any text\n"]}),
        (parse_stored, {"refused": [""] * 17}),
    ],
)
def test_what_breaks_a_type_or_a_limit_is_refused_by_one_rule(parse: Any, body: Any) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        parse(body)
    assert refused.value.rule == "dht.frame"


def test_keys_of_a_later_version_are_ignored() -> None:
    assert parse_find({**HONEST, "later": 1}) == (Find(KEY), ())
    assert parse_found({"peers": [], "later": None}) == Found()


# -- records ---------------------------------------------------------------------------------------


def machine(**changes: Any) -> bytes:
    fields: dict[str, Any] = {"peer": MACHINE.peer_id, "seq": 7, "timestamp": NOW, "nonce": 1, **changes}
    return encode_message(signing.sign(MachineRecord(**fields), MACHINE))


def service(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "workload_id": "default/Deployment/web",
        "namespace": "default",
        "workload_kind": "Deployment",
        "workload_name": "web",
        "peer_id": MACHINE.peer_id,
        "pod_name": "web-1",
        "version": 3,
        "ts": NOW,
        "ready": True,
        "healthy": True,
        "nonce": 1,
        **changes,
    }
    return encode_message(signing.sign(ServiceRecord(**fields), MACHINE))


def refused_by(kinds: Kinds, data: bytes, wall_ms: int = NOW) -> str:
    with pytest.raises(RemoteProtocolError) as refused:
        kinds.judge(data, wall_ms)
    return refused.value.rule


BOTH = Kinds([machine_kind(), service_kind()])


def test_a_machines_record_lies_under_its_position_for_its_life() -> None:
    judged = BOTH.judge(machine(), NOW + 50_000)
    assert (judged.kind, judged.key) == ("machine", position(MACHINE.peer_id))
    assert (judged.signer, judged.precedence, judged.life_s) == (MACHINE.peer_id, 7, 150.0)
    assert BOTH.judge(machine(), NOW + MACHINE_LIFE_MS - 1).life_s == 0.001
    assert refused_by(BOTH, machine(), NOW + MACHINE_LIFE_MS) == "dht.expired"


def test_a_replicas_record_lies_under_its_workload() -> None:
    judged = BOTH.judge(service(), NOW)
    assert (judged.kind, judged.key) == ("service", service_key("default/Deployment/web"))
    assert judged.life_s == SERVICE_LIFE_MS / 1000
    assert judged.precedence < BOTH.judge(service(version=4, ts=NOW - 5), NOW).precedence
    assert refused_by(BOTH, service(), NOW + SERVICE_LIFE_MS) == "dht.expired"


def test_what_a_machine_has_lies_under_its_name_for_as_long_as_it_says() -> None:
    name = {"holds": "image", "id": "sha256:ab", "life": 90}
    record = HoldingRecord(peer=MACHINE.peer_id, **name, timestamp=NOW, nonce=7)  # type: ignore[arg-type]
    kinds = Kinds([holding_kind()])
    judged = kinds.judge(encode_message(signing.sign(record, MACHINE)), NOW + 30_000)
    assert (judged.kind, judged.key) == ("holding", holding_key("image", "sha256:ab"))
    assert (judged.life_s, judged.precedence) == (60.0, NOW)
    assert holding_key("image", "x") != holding_key("workload", "x")


def test_who_signs_for_another_workload_or_not_at_all_is_refused() -> None:
    assert refused_by(BOTH, service(workload_id="default/Deployment/other")) == "signature.identity-mismatch"
    assert refused_by(BOTH, service().replace(b"web-1", b"web-2")) == "signature.invalid"
    assert refused_by(BOTH, machine(timestamp=NOW + 31_000)) == "freshness.skew"
    assert refused_by(BOTH, bytes(16 * 1024 + 1)) == "dht.record-size"
    assert refused_by(BOTH, b"\xa0") == "message.malformed"


def test_a_kind_that_this_table_does_not_keep_is_refused() -> None:
    assert refused_by(Kinds([machine_kind()]), service()) == "message.unknown-type"


def test_who_may_not_have_such_a_record_is_refused_after_its_signature_was_checked() -> None:
    asked: list[MachineRecord] = []

    def admit(record: MachineRecord, wall_ms: int) -> None:
        asked.append(record)
        raise RemoteProtocolError("record.member", "not one of us")

    closed = Kinds([machine_kind(admit)])
    assert refused_by(closed, machine().replace(b"cseq\x07", b"cseq\x08")) == "signature.invalid"
    assert asked == []
    assert refused_by(closed, machine()) == "record.member"
