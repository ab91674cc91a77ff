"""What one peer keeps for others, and whom it refuses what."""

from collections.abc import Callable

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magik_proto.dht_frames import MAX_ANSWER, MAX_RECORDS
from magik_proto.dht_store import MAX_RATES, RecordStore, StoreLimits
from magik_proto.errors import RemoteProtocolError
from magik_proto.kademlia import key_of, position
from magik_proto.testing.builders import peer
from magik_proto.testing.tables import judge_toy, toy_record

KEY = key_of(b"web")
GIVER = peer(900)
PATIENT = StoreLimits(burst=100_000)


def store(limits: StoreLimits = PATIENT, *, near: Callable[[bytes], bool] = lambda _: True) -> RecordStore:
    return RecordStore(0, judge_toy, near, limits)


def service(number: int, seq: int = 1, ends: float = 100.0, key: bytes = KEY) -> bytes:
    return toy_record(peer(number), seq, ends, key, "service")


def refusal(kept: RecordStore, data: bytes, giver: int = 900, now: float = 0.0) -> str:
    """Why a record is not kept; empty if it is."""
    try:
        kept.take(data, peer(giver), now)
    except RemoteProtocolError as error:
        return error.rule
    return ""


def test_a_record_lies_under_its_own_key_and_kind_until_its_end() -> None:
    kept = store()
    assert refusal(kept, service(1, ends=10.0)) == ""
    assert kept.find(KEY, "service", 9.9) == ((service(1, ends=10.0),), False)
    assert kept.find(KEY, "machine", 0.0) == ((), False)
    assert kept.find(position(peer(1)), "service", 0.0) == ((), False)
    assert kept.find(KEY, "service", 10.0) == ((), False), "it is over, though nobody has tidied up"
    assert kept.next_timeout() == 10.0
    kept.expire(10.0)
    assert (len(kept), kept.size, kept.next_timeout()) == (0, 0, None)


def test_the_one_that_outranks_the_other_stays_whatever_comes_first() -> None:
    for order in ((1, 2), (2, 1)):
        kept = store()
        told = [refusal(kept, service(1, seq)) for seq in order]
        assert told == (["", ""] if order == (1, 2) else ["", "dht.older"])
        assert kept.find(KEY, "service", 0.0)[0] == (service(1, 2),)


def test_another_of_the_same_rank_is_refused_and_the_very_same_taken_without_a_look() -> None:
    looks: list[bytes] = []

    def judge(data: bytes, now: float):  # type: ignore[no-untyped-def]
        looks.append(data)
        return judge_toy(data, now)

    kept = RecordStore(0, judge, lambda _: True, StoreLimits(burst=2))
    assert [refusal(kept, service(1)) for _ in range(50)] == [""] * 50
    assert len(looks) == 1
    assert refusal(kept, service(1, ends=50.0)) == "dht.older"


def test_a_renewal_outlives_the_record_that_it_replaced() -> None:
    kept = store()
    refusal(kept, service(1, 1, ends=10.0))
    refusal(kept, service(1, 2, ends=20.0))
    kept.expire(10.0)
    assert kept.find(KEY, "service", 10.0)[0] == (service(1, 2, ends=20.0),)
    kept.expire(20.0)
    assert len(kept) == 0


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (service(1, ends=0.0), "dht.expired"),
        (toy_record(peer(1), 1, 9.0, KEY, "machine"), "toy.key"),
    ],
)
def test_what_the_judge_refuses_is_refused(data: bytes, rule: str) -> None:
    kept = store()
    assert refusal(kept, data) == rule
    assert len(kept) == 0


def test_what_is_for_others_to_keep_is_refused() -> None:
    kept = store(near=lambda key: key != KEY)
    assert refusal(kept, service(1)) == "dht.not-near"
    assert refusal(kept, toy_record(peer(1), 1, 9.0)) == ""


def test_a_signer_uses_up_its_own_share() -> None:
    kept = store(attrs.evolve(PATIENT, per_signer=3))
    told = [refusal(kept, service(1, key=key_of(bytes([n])))) for n in range(5)]
    assert told == ["", "", "", "dht.signer-quota", "dht.signer-quota"]
    assert refusal(kept, service(1, 2, key=key_of(bytes([0])))) == "", "a renewal needs no new place"
    assert refusal(kept, service(2)) == ""


def test_a_giver_uses_up_its_own_share_and_never_that_of_its_own_records() -> None:
    kept = store(attrs.evolve(PATIENT, per_giver=3))
    assert [refusal(kept, service(n)) for n in range(1, 6)] == [
        "",
        "",
        "",
        "dht.giver-quota",
        "dht.giver-quota",
    ]
    assert refusal(kept, service(900)) == "", "its own"
    assert refusal(kept, service(4), giver=901) == ""
    kept.expire(100.0)
    assert refusal(kept, service(5, ends=200.0), now=100.0) == "", "what has ended counts no more"


def test_a_key_is_full_for_newcomers_and_not_for_renewals() -> None:
    kept = store(attrs.evolve(PATIENT, per_key=2))
    assert [refusal(kept, service(n)) for n in (1, 2, 3)] == ["", "", "dht.key-full"]
    assert refusal(kept, service(2, 2)) == ""


def test_who_hands_over_too_fast_is_refused_before_anything_is_looked_at() -> None:
    looks = 0

    def judge(data: bytes, now: float):  # type: ignore[no-untyped-def]
        nonlocal looks
        looks += 1
        return judge_toy(data, now)

    kept = RecordStore(0, judge, lambda _: True, StoreLimits(burst=10, per_second=2.0))
    flood = [refusal(kept, service(n), giver=7) for n in range(1, 101)]
    assert (flood.count(""), flood.count("dht.rate"), looks) == (10, 90, 10)
    assert refusal(kept, service(200), giver=8) == "", "it costs the flooder alone"
    later = [refusal(kept, service(n), giver=7, now=3.0) for n in range(301, 321)]
    assert later.count("") == 6


def test_rates_of_no_more_than_so_many_peers_are_remembered() -> None:
    kept = store(StoreLimits(burst=1))
    for number in range(1, MAX_RATES + 50):
        refusal(kept, service(number), giver=number)
    assert len(kept._rates) == MAX_RATES


@pytest.mark.parametrize(
    "limits", [StoreLimits(records=5, burst=1000), StoreLimits(bytes=5 * 87, burst=1000)]
)
def test_when_full_the_farthest_goes_for_a_nearer_one_and_others_are_refused(limits: StoreLimits) -> None:
    kept = store(limits)  # its own position is 0
    keys = [bytes([n]) + bytes(31) for n in (9, 7, 5, 3, 8)]
    assert len(service(1)) == 87
    for number, key in enumerate(keys, 1):
        assert refusal(kept, service(number, key=key)) == ""
    assert refusal(kept, service(10, key=bytes([200]) + bytes(31))) == "dht.full"
    assert refusal(kept, service(11, key=bytes([1]) + bytes(31))) == ""
    assert len(kept) == 5
    assert kept.find(keys[0], "service", 0.0) == ((), False), "the farthest has gone"
    assert kept.find(keys[4], "service", 0.0)[0] != ()


def test_a_long_list_comes_in_parts_and_none_is_missing() -> None:
    kept = store()
    numbers = range(1, 2 * MAX_RECORDS + 10)
    for number in numbers:
        refusal(kept, service(number))
    seen: list[bytes] = []
    after, more = None, True
    while more:
        part, more = kept.find(KEY, "service", 0.0, after)
        assert 0 < len(part) <= MAX_RECORDS
        seen += part
        after = judge_toy(part[-1], 0.0).signer
    assert seen == [service(number) for number in numbers]


def test_large_records_come_in_parts_by_their_bytes() -> None:
    def judge(data: bytes, now: float):  # type: ignore[no-untyped-def]
        return judge_toy(data[:87], now)

    kept = RecordStore(0, judge, lambda _: True, PATIENT)
    for number in range(1, 20):
        refusal(kept, service(number) + bytes(16_000))
    part, more = kept.find(KEY, "service", 0.0)
    assert (len(part), more) == (MAX_ANSWER // 16_087, True)


def test_what_a_newcomer_is_nearer_to_the_nearest_first() -> None:
    kept = RecordStore(0b1000 << 252, judge_toy, lambda _: True, PATIENT)
    for number, head in enumerate((0x01, 0x21, 0x40, 0x81, 0xF0), 1):
        refusal(kept, service(number, key=bytes([head]) + bytes(31)))
    found = kept.nearer_to(0, 2)
    assert [key[0] for key, _ in found] == [0x01, 0x21]
    assert [key[0] for key, _ in kept.nearer_to(0, 9)] == [0x01, 0x21, 0x40]


LIMITS = StoreLimits(
    records=12, bytes=12 * 87, per_signer=4, per_giver=6, per_key=5, burst=30, per_second=3.0
)
steps = st.lists(
    st.tuples(
        st.integers(1, 8),  # signer
        st.integers(0, 5),  # key
        st.integers(0, 4),  # seq
        st.integers(1, 8),  # giver
        st.integers(1, 20),  # life
        st.floats(0, 3),  # time that passes
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(steps)
def test_whatever_comes_all_limits_hold_and_the_best_of_each_signer_is_kept(
    steps: list[tuple[int, ...]],
) -> None:
    kept, now = store(LIMITS), 0.0
    best: dict[tuple[bytes, int], int] = {}
    for signer, key, seq, giver, life, passes in steps:
        now += passes
        kept.expire(now)
        place = key_of(bytes([key]))
        if refusal(kept, service(signer, seq, now + life, place), giver, now) == "":
            best[place, signer] = seq
        held = [data for n in range(6) for data in kept.find(key_of(bytes([n])), "service", now)[0]]
        judged = [judge_toy(data, now) for data in held]
        assert len(kept) == len(held) <= LIMITS.records
        assert kept.size == sum(map(len, held)) <= LIMITS.bytes
        assert all(j.precedence == best[j.key, int.from_bytes(j.signer.raw, "big")] for j in judged)
        for number in range(1, 9):
            assert sum(j.signer == peer(number) for j in judged) <= LIMITS.per_signer
        assert sum(kept._givers.values()) <= 8 * LIMITS.per_giver
        assert len(kept._ends) <= len(steps)
