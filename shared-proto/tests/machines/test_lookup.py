"""One lookup."""

import pytest

from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId
from magik_proto.kademlia import Contact, RoutingTable, key_of
from magik_proto.lookup import MAX_BLAME, PATHS, Done, Lookup
from magik_proto.machine import shuffled
from magik_proto.testing.builders import peer
from magik_proto.testing.seeded import SeededRandom

KEY = key_of(b"default/Deployment/web")
TARGET = int.from_bytes(KEY, "big")


def contacts(first: int, count: int) -> list[Contact]:
    """Contacts, nearest to the key first."""
    return sorted((Contact(peer(n)) for n in range(first, first + count)), key=lambda c: c.place ^ TARGET)


def test_a_lookup_asks_the_nearest_alpha_at_a_time() -> None:
    seeds = contacts(0, 10)
    lookup = Lookup(KEY, reversed(seeds), k=4, alpha=3)
    assert lookup.next(0.0) == seeds[:3]
    assert lookup.next(0.0) == []
    lookup.on_success(seeds[0].peer, [], 0.1)
    assert lookup.next(0.1) == [seeds[3]]
    for asked in seeds[1:4]:
        lookup.on_success(asked.peer, [], 0.2)
    assert lookup.next(0.2) == Done(tuple(seeds[:4]))


def test_failed_and_silent_peers_are_passed_over_and_late_answers_count() -> None:
    seeds = contacts(0, 4)
    lookup = Lookup(KEY, seeds, k=2, alpha=2, patience_s=5.0)
    assert lookup.next(0.0) == seeds[:2]
    lookup.on_failure(seeds[0].peer, 0.1)
    assert lookup.next(0.1) == [seeds[2]]
    assert lookup.next_timeout() == 5.0
    assert lookup.next(5.0) == [seeds[3]]
    lookup.on_success(seeds[2].peer, [], 5.05)
    lookup.on_success(seeds[1].peer, [], 5.1)
    lookup.on_failure(seeds[1].peer, 5.2)
    assert lookup.next(5.2) == Done((seeds[1], seeds[2]))


def test_without_anyone_a_lookup_is_done() -> None:
    assert Lookup(KEY, []).next(0.0) == Done(())
    (only,) = contacts(1, 1)
    lookup = Lookup(KEY, [only])
    lookup.next(0.0)
    lookup.on_failure(only.peer, 1.0)
    assert (lookup.next(1.0), lookup.next_timeout()) == (Done(()), None)


def test_who_was_not_asked_has_no_answer() -> None:
    lookup = Lookup(KEY, contacts(0, 5), k=5)
    lookup.next(0.0)
    for stranger in (peer(999), contacts(0, 5)[4].peer):
        with pytest.raises(LocalProtocolError, match="was not queried"):
            lookup.on_success(stranger, [], 0.2)


def test_what_one_answer_names_beyond_k_is_left_out() -> None:
    (only,) = contacts(0, 1)
    lookup = Lookup(KEY, [only], k=5, alpha=100)
    lookup.next(0.0)
    lookup.on_success(only.peer, list(reversed(contacts(1, 1000))), 0.1)
    step = lookup.next(0.1)
    assert isinstance(step, list)
    assert len(step) <= 5


def test_paths_share_the_seeds_and_what_a_peer_says_serves_one_path_only() -> None:
    near, seeds = contacts(0, 100)[:30], contacts(200, 6)
    lookup = Lookup(KEY, seeds, k=6, alpha=3, paths=3)
    assert lookup.next(0.0) == seeds[:3]
    lookup.on_success(seeds[0].peer, near[:6], 0.1)
    assert lookup.next(0.1) == [near[0]], "its path has a free query again, the others wait"
    lookup.on_success(seeds[1].peer, [near[0], near[7]], 0.2)
    assert lookup.next(0.2) == [near[7]], "the other path heard of the same peer and leaves it to the first"


def test_a_liar_whose_contacts_are_not_there_is_not_believed_any_more() -> None:
    liar, *honest = contacts(0, 8)
    lies = sorted((Contact(peer(n)) for n in range(1000, 1500)), key=lambda c: c.place ^ TARGET)[:20]
    lookup = Lookup(KEY, [liar, *honest], k=20, alpha=1)
    asked: list[Contact] = []
    while not isinstance(step := lookup.next(0.0), Done):
        for one in step:
            asked.append(one)
            if one in lies:
                lookup.on_failure(one.peer, 0.0)
            else:
                lookup.on_success(one.peer, lies if one is liar else [], 0.0)
    assert step == Done((liar, *honest))
    assert sum(one in lies for one in asked) == MAX_BLAME


def test_addresses_that_several_tell_are_tried_together_and_a_liar_takes_none_away() -> None:
    first, second, *_ = contacts(0, 2)
    hidden = peer(500)
    lookup = Lookup(KEY, [first, second], k=5, alpha=2)
    lookup.next(0.0)
    lookup.on_success(first.peer, [Contact(hidden, ("192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"))], 0.0)
    lookup.on_success(second.peer, [Contact(hidden, ("10.0.0.1:4001",))], 0.0)
    step = lookup.next(0.0)
    assert isinstance(step, list)
    assert [c.addrs for c in step if c.peer == hidden] == [("192.0.2.1:1", "192.0.2.1:2", "10.0.0.1:4001")]


@pytest.mark.parametrize("paths", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_lookup_finds_the_closest_of_a_fabric(seed: int, paths: int) -> None:
    rng = SeededRandom(seed)
    fabric = [Contact(PeerId(rng.getrandbits(256).to_bytes(32, "big"))) for _ in range(300)]
    tables = {own.peer: RoutingTable(own.peer) for own in fabric}
    for own, table in tables.items():
        for other in fabric:
            if other.peer != own:
                table.seen(other)
    target = key_of(seed.to_bytes(4, "big"))
    start = tables[fabric[0].peer]
    lookup, queries = Lookup(target, start.closest(target), paths=paths), 0
    while not isinstance(step := lookup.next(0.0), Done):
        for asked in step:
            queries += 1
            lookup.on_success(asked.peer, tables[asked.peer].closest(target), 0.0)
    number = int.from_bytes(target, "big")
    assert list(step.closest) == sorted(fabric, key=lambda c: c.place ^ number)[:20], f"seed {seed}"
    assert queries < 60


class Hostile:
    """Every fifth peer names only the nearest of its kind, all of whom it knows; honest ones know `known` others."""

    def __init__(self, size: int, known: int, seed: int) -> None:
        self.known = known
        self.rng = SeededRandom(seed)
        self.all = [Contact(PeerId(self.rng.getrandbits(256).to_bytes(32, "big"))) for _ in range(size)]
        self.liars, self.honest = self.all[::5], [c for n, c in enumerate(self.all) if n % 5]
        self.lying = {c.peer for c in self.liars}
        self.tables: dict[PeerId, RoutingTable] = {}

    def table(self, own: Contact) -> RoutingTable:
        if own.peer not in self.tables:
            table = self.tables[own.peer] = RoutingTable(own.peer)
            for other in shuffled(self.rng, self.all)[: self.known]:
                if other is not own:
                    table.seen(other)
        return self.tables[own.peer]

    def answer(self, asked: Contact, key: bytes) -> list[Contact]:
        target = int.from_bytes(key, "big")
        if asked.peer in self.lying:
            return sorted(self.liars, key=lambda c: c.place ^ target)[:20]
        return self.table(asked).closest(key)

    def look_up(self, number: int, paths: int) -> bool:
        """Whether the nearest honest peer to some key is found."""
        key = key_of(number.to_bytes(4, "big"))
        target = int.from_bytes(key, "big")
        start = self.honest[number % len(self.honest)]
        lookup = Lookup(key, self.table(start).closest(key), paths=paths)
        while not isinstance(step := lookup.next(0.0), Done):
            for asked in step:
                named = [c for c in self.answer(asked, key) if c is not start]
                lookup.on_success(asked.peer, named, 0.0)
        nearest = min((c for c in self.honest if c is not start), key=lambda c: c.place ^ target)
        return nearest in step.closest


def test_against_a_fifth_of_liars_one_path_is_too_few_and_those_of_a_lookup_that_matters_are_enough() -> None:
    hostile = Hostile(600, known=60, seed=1)  # a tenth each: as thin as tables ever are
    right = {paths: sum(hostile.look_up(number, paths) for number in range(100)) for paths in (1, PATHS)}
    assert right[1] < 90
    assert right[PATHS] >= 98
    hostile = Hostile(600, known=150, seed=1)
    assert sum(hostile.look_up(number, PATHS) for number in range(100)) == 100
