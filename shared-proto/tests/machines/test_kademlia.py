"""The routing table, and estimates of how many peers there are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId
from magik_proto.kademlia import (
    SPACE,
    Contact,
    RoutingTable,
    closest,
    distance,
    estimate_size,
    key_of,
    position,
    sample_of,
)
from magik_proto.testing.builders import peer
from magik_proto.testing.seeded import SeededRandom

KEY = key_of(b"default/Deployment/web")


def contact(number: int, address: str = "") -> Contact:
    return Contact(peer(number), (address,) if address else ())


def far_contacts(table: RoutingTable, count: int, network: str = "10.0.0.1") -> list[Contact]:
    """Contacts of the farthest half of the space, which share one bucket."""
    numbers = [n for n in range(1, 20 * count) if table.bucket_of(peer(n)) == 0][:count]
    return [contact(n, f"{network}:{n}") for n in numbers]


def test_closest_is_by_distance_and_independent_of_order() -> None:
    peers = [peer(n) for n in range(50)]
    near = closest(peers, KEY, 5)
    assert near == closest(reversed(peers), KEY, 5)
    distances = [distance(position(p), KEY) for p in near]
    assert distances == sorted(distances)
    assert max(distances) < min(distance(position(p), KEY) for p in peers if p not in near)


def test_buckets_halve_the_space() -> None:
    table = RoutingTable(peer(0))
    shares = [table.bucket_of(peer(n)) for n in range(1, 2001)]
    assert 900 < shares.count(0) < 1100
    assert 400 < shares.count(1) < 600
    assert table.bucket_of(peer(0)) == -1


def test_a_full_bucket_has_its_oldest_asked_and_keeps_it_if_it_answers() -> None:
    table = RoutingTable(peer(0), k=3)
    *first, late, later = far_contacts(table, 5)
    for known in first:
        assert table.seen(known) is None
    assert table.seen(late) is first[0]
    assert table.seen(later) is None, "one is asked at a time"
    table.seen(first[0])
    assert (first[0].peer in table, late.peer in table) == (True, False)
    assert table.seen(late) is first[1], "who answered is the newest now"


def test_a_dead_oldest_makes_room_for_who_waits() -> None:
    table = RoutingTable(peer(0), k=3)
    *first, late = far_contacts(table, 4)
    for known in [*first, late]:
        table.seen(known)
    table.failed(first[0].peer)
    assert (first[0].peer in table, late.peer in table, len(table)) == (False, True, 3)


def test_who_failed_is_told_to_nobody_but_kept_until_a_newcomer_wants_its_place() -> None:
    table = RoutingTable(peer(0), k=3)
    *first, late = far_contacts(table, 4)
    for known in first:
        table.seen(known)
    table.failed(first[1].peer)
    assert table.stale() == (first[1].peer,)
    assert first[1] not in table.closest(KEY)
    assert first[1] not in table.all()
    assert (first[1].peer in table, len(table), table.has_room(late.peer)) == (True, 2, True)
    assert table.seen(late) is None
    assert (first[1].peer in table, len(table), table.stale()) == (False, 3, ())


def test_who_comes_back_is_live_again() -> None:
    table = RoutingTable(peer(0), k=3)
    (known,) = far_contacts(table, 1)
    table.seen(known)
    table.failed(known.peer)
    assert len(table) == 0
    table.seen(Contact(known.peer))
    assert (len(table), table.stale()) == (1, ())
    assert table.get(known.peer) is known, "an address that is known stays known"


def test_one_computer_with_many_identities_gives_place_to_others() -> None:
    table = RoutingTable(peer(0), k=6)
    sybils, honest = far_contacts(table, 40)[:20], far_contacts(table, 40, "10.0.0.2")[20:]
    for known in sybils:
        table.seen(known)
    for known in honest[:5]:
        table.seen(known)
    held = [c for c in honest if c.peer in table]
    assert held == honest[:3], "as many as the crowd has, by itself"
    assert sybils[0].peer in table, "who has been there for longest stays"


def test_on_one_network_nobody_is_pushed_out() -> None:
    table = RoutingTable(peer(0), k=6)
    contacts = far_contacts(table, 20)
    for known in contacts:
        table.seen(known)
    assert [c for c in contacts if c.peer in table] == contacts[:6]


@given(st.integers(1, 400), st.integers(0, 1 << 64), st.integers(1, 30))
def test_the_table_gives_its_closest(count: int, seed: int, n: int) -> None:
    rng = SeededRandom(seed)
    table = RoutingTable(peer(0))
    contacts = [Contact(PeerId(rng.getrandbits(256).to_bytes(32, "big"))) for _ in range(count)]
    for known in contacts:
        table.seen(known)
    for known in contacts[::7]:
        table.failed(known.peer)
    held = list(table.all())
    assert len(held) == len(table)
    for key in (KEY, position(peer(0)), rng.getrandbits(256).to_bytes(32, "big")):
        assert [c.peer for c in table.closest(key, n)] == closest([c.peer for c in held], key, n)


def test_the_own_id_is_no_peer() -> None:
    with pytest.raises(LocalProtocolError):
        RoutingTable(peer(0)).seen(contact(0))


@pytest.mark.parametrize("size", [100, 1000, 10_000])
def test_the_size_of_a_fabric_is_estimated_by_its_density(size: int) -> None:
    rng = SeededRandom(size)
    places = [rng.getrandbits(256) for _ in range(size)]
    samples = [sample_of(places, rng.getrandbits(256)) for _ in range(40)]
    assert 0.85 * size < estimate_size([s for s in samples if s is not None]) < 1.15 * size


def test_nobody_is_no_sample() -> None:
    assert sample_of([], 5) is None
    assert sample_of([7], 5) is None
    assert estimate_size([]) == 0
    assert estimate_size([(2, SPACE - 1)]) == 1
