"""The routing table and lookups."""

import pytest

from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId
from magik_proto.kademlia import (
    Done,
    Lookup,
    PeerFailed,
    PeerSeen,
    Ping,
    PingAnswered,
    RoutingTable,
    closest,
    distance,
    key_of,
    position,
)
from magik_proto.testing.builders import peer
from magik_proto.testing.seeded import SeededRandom

KEY = key_of(b"default/Deployment/web")


def far_peers(table: RoutingTable, count: int) -> list[PeerId]:
    """Peers of the farthest half of the space, which share one bucket."""
    return [p for p in map(peer, range(1, 20 * count)) if table.bucket_of(p) == 0][:count]


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


def test_a_full_bucket_pings_its_oldest_and_keeps_it_if_it_answers() -> None:
    table = RoutingTable(peer(0), k=3)
    *first, late, later = far_peers(table, 5)
    for known in first:
        assert table.receive(PeerSeen(known), 0.0) == []
    assert table.receive(PeerSeen(late), 1.0) == [Ping(first[0])]
    assert table.receive(PeerSeen(later), 1.5) == [], "one ping at a time"
    assert table.next_timeout() == 6.0
    table.receive(PingAnswered(first[0]), 2.0)
    assert (first[0] in table, late in table, table.next_timeout()) == (True, False, None)
    assert table.receive(PeerSeen(late), 3.0) == [Ping(first[1])], "who answered is the newest now"


@pytest.mark.parametrize("silent", [True, False])
def test_a_dead_oldest_makes_room(silent: bool) -> None:
    table = RoutingTable(peer(0), k=3)
    *first, late = far_peers(table, 4)
    for known in [*first, late]:
        table.receive(PeerSeen(known), 0.0)
    if silent:
        assert table.poll(4.9) == []
        assert late not in table
        table.poll(5.0)
    else:
        table.receive(PeerFailed(first[0]), 1.0)
    assert (first[0] in table, late in table, len(table)) == (False, True, 3)


def test_a_waiting_peer_that_fails_takes_no_place() -> None:
    table = RoutingTable(peer(0), k=3)
    *first, late = far_peers(table, 4)
    for known in [*first, late]:
        table.receive(PeerSeen(known), 0.0)
    table.receive(PeerFailed(late), 1.0)
    table.poll(5.0)
    assert (late in table, len(table)) == (False, 2)


def test_the_table_gives_its_closest() -> None:
    table = RoutingTable(peer(0))
    peers = [peer(n) for n in range(1, 60)]
    for known in peers:
        table.receive(PeerSeen(known), 0.0)
    held = [p for p in peers if p in table]
    assert len(held) == len(table)
    assert table.closest(KEY, 4) == closest(held, KEY, 4)
    assert len(table.closest(KEY)) == 20


def test_the_own_id_is_no_peer() -> None:
    with pytest.raises(LocalProtocolError):
        RoutingTable(peer(0)).receive(PeerSeen(peer(0)), 0.0)


def test_a_lookup_asks_the_nearest_alpha_at_a_time() -> None:
    seeds = closest([peer(n) for n in range(10)], KEY, 10)
    lookup = Lookup(KEY, seeds, k=4, alpha=3)
    assert lookup.next(0.0) == seeds[:3]
    assert lookup.next(0.0) == []
    lookup.on_success(seeds[0], [], 0.1)
    assert lookup.next(0.1) == [seeds[3]]
    for asked in seeds[1:4]:
        lookup.on_success(asked, [], 0.2)
    assert lookup.next(0.2) == Done(tuple(seeds[:4]))


def test_failed_and_silent_peers_are_passed_over_and_late_answers_count() -> None:
    seeds = closest([peer(n) for n in range(4)], KEY, 4)
    lookup = Lookup(KEY, seeds, k=2, alpha=2)
    assert lookup.next(0.0) == seeds[:2]
    lookup.on_failure(seeds[0], 0.1)
    assert lookup.next(0.1) == [seeds[2]]
    assert lookup.next_timeout() == 5.0
    assert lookup.next(5.0) == [seeds[3]]
    lookup.on_success(seeds[2], [], 5.05)
    lookup.on_success(seeds[1], [], 5.1)
    lookup.on_failure(seeds[1], 5.2)
    assert lookup.next(5.2) == Done((seeds[1], seeds[2]))


def test_without_anyone_a_lookup_is_done() -> None:
    assert Lookup(KEY, []).next(0.0) == Done(())
    lookup = Lookup(KEY, [peer(1)])
    lookup.next(0.0)
    lookup.on_failure(peer(1), 1.0)
    assert lookup.next(1.0) == Done(())


def test_answers_are_bounded() -> None:
    lookup = Lookup(KEY, [peer(0)], k=5, max_candidates=4)
    lookup.next(0.0)
    flood = [peer(n) for n in range(1, 1000)]
    lookup.on_success(peer(0), flood, 0.1)
    assert len(lookup._known) == 4
    with pytest.raises(LocalProtocolError, match="was not queried"):
        lookup.on_success(peer(999), [], 0.2)


@pytest.mark.parametrize("seed", range(5))
def test_a_lookup_finds_the_closest_of_a_fabric(seed: int) -> None:
    rng = SeededRandom(seed)
    peers = [PeerId(rng.getrandbits(256).to_bytes(32, "big")) for _ in range(300)]
    tables = {own: RoutingTable(own) for own in peers}
    for own, table in tables.items():
        for other in peers:
            if other != own:
                table.receive(PeerSeen(other), 0.0)
    target = key_of(seed.to_bytes(4, "big"))
    lookup, queries = Lookup(target, tables[peers[0]].closest(target, 3)), 0
    while not isinstance(step := lookup.next(0.0), Done):
        for asked in step:
            queries += 1
            lookup.on_success(asked, tables[asked].closest(target), 0.0)
    assert list(step.closest) == closest(list(peers), target, 20), f"seed {seed}"
    assert queries < 60
