"""The hash table of one peer, told event by event, and a fabric of them on the simulated network."""

from collections.abc import Callable

import pytest

from magik_proto.dht import Dht, DhtConfig
from magik_proto.dht_types import (
    Answered,
    Ask,
    DhtEvent,
    DhtOutput,
    Find,
    FindPeer,
    Found,
    Joined,
    LookedUp,
    LookUp,
    PeerFound,
    PeerProved,
    Reply,
    RequestReceived,
    Unanswered,
)
from magik_proto.identity import PeerId
from magik_proto.kademlia import Contact, key_of, position
from magik_proto.testing.builders import peer
from magik_proto.testing.network import Conditions, Network, Send
from magik_proto.testing.seeded import SeededRandom
from magik_proto.testing.tables import LyingActor, TableActor, judge_toy

KEY = key_of(b"a key")
OWN = Contact(peer(0), ("10.0.0.1:4001",))


def contact(number: int) -> Contact:
    return Contact(peer(number), (f"10.0.{number >> 8}.{number & 255}:4001",))


def table(config: DhtConfig | None = None) -> Dht:
    return Dht(OWN, SeededRandom(1), judge_toy, config)


def asks(outputs: list[DhtOutput]) -> list[Ask]:
    return [output for output in outputs if isinstance(output, Ask)]


def joined(dht: Dht, *numbers: int) -> None:
    """Peers prove themselves, and know nobody."""
    waiting: list[DhtOutput] = []
    for number in numbers:
        waiting += dht.receive(PeerProved(contact(number)), 0.0)
    while asked := asks(waiting):
        waiting = [out for ask in asked for out in dht.receive(Answered(ask.query, Found()), 0.0)]


class TestOnePeer:
    def test_the_first_peer_starts_a_lookup_of_the_own_position_and_then_it_has_joined(self) -> None:
        dht = table()
        (ask,) = asks(dht.receive(PeerProved(contact(1)), 0.0))
        assert (ask.to.peer, ask.request) == (peer(1), Find(position(OWN.peer)))
        (output,) = dht.receive(Answered(ask.query, Found()), 0.1)
        assert isinstance(output, Joined)
        assert [c.peer for c in output.closest] == [peer(1)]
        assert (len(dht.table), dht.size_estimate()) == (1, 2)

    def test_a_stranger_that_asks_is_called_back_before_it_is_named_to_others(self) -> None:
        dht = table()
        joined(dht, 1)
        outputs = dht.receive(RequestReceived(contact(2), 7, Find(KEY)), 1.0)
        reply, ask = outputs
        assert isinstance(reply, Reply)
        assert (reply.call, [c.peer for c in reply.answer.peers]) == (7, [peer(1)])  # type: ignore[union-attr]
        assert isinstance(ask, Ask)
        assert (ask.to.peer, peer(2) in dht.table) == (peer(2), False)
        dht.receive(Answered(ask.query, Found()), 1.1)
        assert peer(2) in dht.table

    def test_a_stranger_that_cannot_be_called_back_is_named_to_nobody(self) -> None:
        dht = table()
        joined(dht, 1)
        (_, ask) = dht.receive(RequestReceived(contact(2), 7, Find(KEY)), 1.0)
        assert isinstance(ask, Ask)
        dht.receive(Unanswered(ask.query), 1.1)
        assert peer(2) not in dht.table
        assert asks(dht.receive(RequestReceived(Contact(peer(3)), 8, Find(KEY)), 1.2)) == []


# -- fabrics ---------------------------------------------------------------------------------------


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
