"""The parts of relaying that decide: frames, side datagrams, quotas, verdicts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magik_mesh import CallRefused, Reach, RelayLimits, codes
from magik_mesh.reach import ProbeResult, judge
from magik_mesh.relay_circuit import MAX_CANDIDATES, candidates
from magik_mesh.relay_desk import Bucket, Desk
from magik_mesh.relay_wire import MAX_DATAGRAM, PunchKey, Unpacker, pack, parse_ping, probe, probed_nonce
from magik_mesh.testing import identity_of
from magik_proto.errors import RemoteProtocolError

ME, A, B, C, D = (identity_of(seed).peer_id for seed in range(1, 6))

_datagrams = st.lists(st.binary(min_size=1, max_size=MAX_DATAGRAM), max_size=8)


@given(_datagrams, st.lists(st.integers(0, 5000), max_size=20))
def test_datagrams_come_out_however_the_bytes_are_cut(datagrams: list[bytes], cuts: list[int]) -> None:
    data = pack(datagrams)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    unpacker = Unpacker()
    found = [d for a, b in itertools.pairwise(places) for d in unpacker.feed(data[a:b])]
    assert found == datagrams


@pytest.mark.parametrize("size", [0, MAX_DATAGRAM + 1, 65535])
def test_a_length_that_cannot_be_is_refused_before_its_bytes_are_there(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=r"relay\.frame"):
        Unpacker().feed(size.to_bytes(2, "big"))


@given(st.binary(max_size=80))
def test_side_datagrams_of_any_form_are_read(data: bytes) -> None:
    assert probed_nonce(probe(bytes(16))) == bytes(16)
    for candidate in (data, b"\x00magik" + data):
        nonce = probed_nonce(candidate)
        assert nonce is None or probe(nonce) == candidate
        if len(candidate) > 6:
            parse_ping(candidate)


@given(st.binary(min_size=8, max_size=8), st.integers(0, 38), st.integers(0, 7))
def test_a_changed_ping_proves_nothing(nonce: bytes, place: int, bit: int) -> None:
    sender, receiver = PunchKey(b"k" * 32, asked=True), PunchKey(b"k" * 32, asked=False)
    good = sender.ping(nonce)
    parsed = parse_ping(good)
    assert parsed is not None and receiver.proves(parsed)
    changed = bytearray(good)
    changed[place] ^= 1 << bit
    ping = parse_ping(bytes(changed))
    assert ping is None or bytes(changed[:6]) != good[:6] or ping.id != parsed.id or not receiver.proves(ping)


def refusal(desk: Desk, *ends: object) -> str:
    with pytest.raises(CallRefused) as caught:
        desk.open(*ends, 0.0)  # type: ignore[arg-type]
    return caught.value.code


def test_circuits_need_a_reservation_and_two_others() -> None:
    desk = Desk(ME, RelayLimits())
    desk.reserve(A)
    assert refusal(desk, A, B) == codes.RELAY_TARGET
    assert refusal(desk, A, A) == codes.RELAY_TARGET
    assert refusal(desk, A, ME) == codes.RELAY_TARGET
    circuit = desk.open(B, A, 0.0)
    assert desk.circuits == (circuit,)
    desk.close(circuit)
    desk.give_back(A)
    assert refusal(desk, B, A) == codes.RELAY_TARGET


def test_a_second_reservation_outlives_the_first() -> None:
    desk = Desk(ME, RelayLimits(reservations=1))
    desk.reserve(A)
    desk.reserve(A)
    desk.give_back(A)
    assert desk.open(B, A, 0.0)
    with pytest.raises(CallRefused, match=codes.RELAY_FULL):
        desk.reserve(B)
    desk.give_back(A)
    desk.reserve(B)
    assert desk.reservations == 1


def test_circuits_are_counted_for_each_end_and_in_total() -> None:
    desk = Desk(ME, RelayLimits(circuits=3, circuits_per_peer=2))
    for peer in (A, B, C, D):
        desk.reserve(peer)
    first = desk.open(A, B, 0.0)
    desk.open(B, A, 0.0)
    assert refusal(desk, A, C) == codes.RELAY_QUOTA
    assert refusal(desk, C, B) == codes.RELAY_QUOTA
    desk.open(C, D, 0.0)
    assert refusal(desk, D, C) == codes.RELAY_FULL
    desk.close(first)
    assert desk.open(C, A, 0.0)


def test_two_have_a_few_circuits_between_them() -> None:
    desk = Desk(ME, RelayLimits(circuits_per_pair=2))
    desk.reserve(A)
    desk.reserve(B)
    desk.open(A, B, 0.0)
    desk.open(B, A, 0.0)
    assert refusal(desk, A, B) == refusal(desk, B, A) == codes.RELAY_QUOTA
    assert desk.open(C, A, 0.0)


def test_a_circuit_ends_by_bytes_by_silence_and_by_age() -> None:
    limits = RelayLimits(circuit_bytes=1000, circuit_idle=30, circuit_life=100, burst=1e9, rate=1e9)
    desk = Desk(ME, limits)
    desk.reserve(B)
    circuit = desk.open(A, B, 0.0)
    assert circuit.ends_at == 30
    assert circuit.carry(600, 20.0) == 0.0
    assert circuit.ends_at == 50
    assert circuit.carry(1, 90.0) == 0.0
    assert circuit.ends_at == 100
    assert circuit.carry(400, 91.0) is None


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50_000)), max_size=50))
def test_a_bucket_lets_no_more_through_than_its_rate(steps: list[tuple[float, int]]) -> None:
    """Who waits as it says has, at any time, taken at most the burst, the rate since the start, and one more piece."""
    bucket = Bucket(rate=10_000, burst=20_000)
    now, total = 0.0, 0
    for pause, size in steps:
        now += pause
        assert total <= 20_000 + 10_000 * now + 1
        total += size
        now += bucket.take(size, now)


def test_the_verdict() -> None:
    def seen(host: str, *arrived: bool) -> list[ProbeResult]:
        return [ProbeResult((host, 4001), each) for each in arrived]

    assert judge([]) is Reach.UNKNOWN
    assert judge(seen("192.0.2.1", True)) is Reach.OPEN
    assert judge(seen("192.0.2.1", False)) is Reach.CLOSED
    assert judge(seen("192.0.2.1", True, True, False)) is Reach.OPEN
    assert judge(seen("192.0.2.1", True, False)) is Reach.CLOSED
    # A neighbour on the same private network reaches us, the world does not.
    assert judge([*seen("10.0.0.5", True, True), *seen("192.0.2.1", False)]) is Reach.CLOSED


def test_candidates_leave_out_what_no_other_machine_should_be_asked_to_send_to() -> None:
    bad = ["127.0.0.1:1", "[::1]:1", "0.0.0.0:4001", "224.0.0.1:5", "[100::1]:1", "host:1", "", 7, None]
    assert candidates([*bad, "192.0.2.1:4001", "192.0.2.1:4001", "[2001:db8::1]:4001"]) == [
        ("192.0.2.1", 4001),
        ("2001:db8::1", 4001),
    ]
    assert len(candidates(f"192.0.2.{n}:1" for n in range(50))) == MAX_CANDIDATES
