"""Fabrics of hash tables on the simulated network: honest ones, hostile ones, dying ones, parted ones."""

from collections.abc import Callable

import pytest

from magik_proto.dht_types import DhtEvent, DhtOutput, FindPeer, LookedUp, LookUp, PeerFound, PeerProved
from magik_proto.identity import PeerId
from magik_proto.kademlia import Contact, key_of
from magik_proto.testing.network import Conditions, Network, Send
from magik_proto.testing.seeded import SeededRandom
from magik_proto.testing.tables import LyingActor, TableActor


class Fabric:
    """Tables on the simulated network: each honest one joins by an honest one that is there already."""

    def __init__(self, size: int, *, liars: int = 0, colluding: bool = True, seed: int = 1) -> None:
        self.network: Network[TableActor | LyingActor] = Network(seed, Conditions(latency_s=0.005))
        self.rng = SeededRandom(seed)
        keys = (self.rng.getrandbits(256).to_bytes(32, "big") for _ in range(size))
        contacts = [Contact(PeerId(key), (f"10.0.{n >> 8}.{n & 255}:4001",)) for n, key in enumerate(keys)]
        self.contacts = {c.peer: c for c in contacts}
        self.liars, self.honest = contacts[:liars], contacts[liars:]
        for liar in self.liars:
            told = self.liars if colluding else []
            self.network.add(liar.peer, lambda told=told: LyingActor(told))  # type: ignore[misc]
        for number, own in enumerate(self.honest):
            self.join(own, [self.pick(self.honest[:number])] if number else [])
            self.network.run(self.network.now + 0.02)

    def join(self, own: Contact, seeds: list[Contact]) -> None:
        rng = SeededRandom(self.rng.getrandbits(64))
        self.network.add(own.peer, lambda: TableActor(own, seeds, self.contacts.__getitem__, rng))
        for seed in seeds:
            self.network.act(seed.peer, lambda actor, now: actor.step(PeerProved(own), now))  # type: ignore[union-attr]

    def pick(self, among: list[Contact]) -> Contact:
        return among[self.rng.getrandbits(32) % len(among)]

    def actor(self, who: Contact) -> TableActor:
        actor = self.network.actor(who.peer)
        assert isinstance(actor, TableActor)
        return actor

    def ask(self, who: Contact, make: Callable[[int], DhtEvent], seconds: float = 10.0) -> DhtOutput:
        """Have one peer search, and wait for what it finds."""
        numbers: list[int] = []

        def act(actor: TableActor | LyingActor, now: float) -> list[Send]:
            assert isinstance(actor, TableActor)
            number, sends = actor.request(make, now)
            numbers.append(number)
            return sends

        self.network.act(who.peer, act)
        ends = self.network.now + seconds
        while self.network.now < ends:
            told = self.actor(who).told
            if told and getattr(told[-1][1], "id", None) == numbers[0]:
                return told[-1][1]
            self.network.run(self.network.now + 0.05)
        raise AssertionError(f"nothing found within {seconds} s, seed {self.network.seed}")

    def nearest(self, key: bytes, count: int) -> list[PeerId]:
        target = int.from_bytes(key, "big")
        return [c.peer for c in sorted(self.honest, key=lambda c: c.place ^ target)[:count]]


@pytest.mark.parametrize("seed", range(3))
def test_everybody_finds_everybody_and_every_nearest(seed: int) -> None:
    fabric = Fabric(100, seed=seed)
    fabric.network.run(fabric.network.now + 5.0)
    for number in range(20):
        who, whom = fabric.pick(fabric.honest), fabric.pick(fabric.honest)
        found = fabric.ask(who, lambda id, whom=whom: FindPeer(id, whom.peer))  # type: ignore[misc]
        assert isinstance(found, PeerFound)
        assert found.record is not None or found.contact is not None
        key = key_of(bytes([number]))
        looked = fabric.ask(who, lambda id, key=key: LookUp(id, key))  # type: ignore[misc]
        assert isinstance(looked, LookedUp)
        assert [c.peer for c in looked.closest][:8] == [p for p in fabric.nearest(key, 9) if p != who.peer][
            :8
        ]


def find_all(fabric: Fabric, count: int) -> tuple[int, int]:
    """How many of so many machines are found by others, and how many lookups find the nearest honest."""
    found = nearest = 0
    for number in range(count):
        who, whom = fabric.pick(fabric.honest), fabric.pick(fabric.honest)
        result = fabric.ask(who, lambda id, whom=whom: FindPeer(id, whom.peer), 20.0)  # type: ignore[misc]
        found += isinstance(result, PeerFound) and (result.record or result.contact) is not None
        key = key_of(number.to_bytes(4, "big"))
        looked = fabric.ask(who, lambda id, key=key: LookUp(id, key), 20.0)  # type: ignore[misc]
        assert isinstance(looked, LookedUp)
        expected = next(p for p in fabric.nearest(key, 2) if p != who.peer)
        nearest += expected in [c.peer for c in looked.closest]
    return found, nearest


@pytest.mark.parametrize("colluding", [True, False])
def test_a_fifth_of_liars_hides_nobody(colluding: bool) -> None:
    fabric = Fabric(130, liars=26, colluding=colluding, seed=4)
    fabric.network.run(fabric.network.now + 70.0)
    assert find_all(fabric, 60) == (60, 60)


def test_when_a_third_dies_at_once_the_others_are_found() -> None:
    fabric = Fabric(90, seed=5)
    fabric.network.run(fabric.network.now + 5.0)
    for dead in fabric.honest[::3]:
        fabric.network.crash(dead.peer)
    fabric.honest = [c for number, c in enumerate(fabric.honest) if number % 3]
    assert find_all(fabric, 40) == (40, 40)


def test_a_partition_that_lasts_heals_by_itself() -> None:
    fabric = Fabric(40, seed=6)
    half = [c.peer for c in fabric.honest[:20]]
    fabric.network.run(fabric.network.now + 5.0)
    fabric.network.partition(half)
    fabric.network.run(fabric.network.now + 600.0)
    actor = fabric.actor(fabric.honest[0])
    assert len(actor.dht.table) <= 19, "the others are known to be gone"
    fabric.network.heal()
    fabric.network.run(fabric.network.now + 300.0)
    for number in range(10):
        whom = fabric.honest[20 + number]
        result = fabric.ask(fabric.honest[number], lambda id, whom=whom: FindPeer(id, whom.peer))  # type: ignore[misc]
        assert isinstance(result, PeerFound)
        assert result.record is not None or result.contact is not None


def test_a_large_fabric_knows_its_size_and_holds_few_of_it() -> None:
    fabric = Fabric(150, seed=7)
    fabric.network.run(fabric.network.now + 200.0)
    sizes = sorted(fabric.actor(c).dht.size_estimate() for c in fabric.honest)
    assert sizes[15] > 100
    assert sizes[-15] < 220
    assert max(len(fabric.actor(c).dht.table) for c in fabric.honest) < 100
