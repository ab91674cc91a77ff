"""Four hostile members for each honest one: they crowd into the meshes of a topic and pass nothing on.

Honest machines know each other through some links only, and cannot tell who is who.  A larger run of the same is
`nox -s simulate`'s.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from magik_proto import gossip as g
from magik_proto.gossip_frames import message_id
from magik_proto.identity import PeerId
from magik_proto.testing.builders import peer
from magik_proto.testing.network import Conditions, Network, Send
from magik_proto.testing.seeded import SeededRandom

T = "magik-fabric"
HONEST, SYBILS = 16, 64
HONEST_LINKS, SYBIL_LINKS = 3, 14  # that each honest machine makes; it is dialled by about as many
GENUINE = b"genuine"


@attrs.define
class Machine:
    """What a daemon does around its gossip: validates, and remembers when it got what."""

    own: PeerId
    links: dict[PeerId, bool]  # and whether it dialled them
    rng: SeededRandom
    gossip: g.Gossip = attrs.field(init=False)
    got: dict[bytes, float] = attrs.field(factory=dict)
    copies: int = 0

    def __attrs_post_init__(self) -> None:
        self.gossip = g.Gossip(self.own, self.rng)

    def start(self, now: float) -> list[Send]:
        return self._take(g.Subscribe(T), now)

    def connect(self, now: float) -> list[Send]:
        sends: list[Send] = []
        for link, dialled in self.links.items():
            sends += self._take(g.PeerConnected(link, dialled, str(link)), now)
        return sends

    def next_timeout(self) -> float | None:
        return self.gossip.next_timeout()

    def poll(self, now: float) -> list[Send]:
        return self._carry_out(self.gossip.poll(now), now)

    def receive(self, source: PeerId, message: object, now: float) -> list[Send]:
        return self._take(g.FrameReceived(source, message), now)

    def publish(self, payload: bytes, now: float) -> list[Send]:
        self.got[payload] = now
        return self._take(g.Publish(T, payload), now)

    def _take(self, event: g.GossipEvent, now: float) -> list[Send]:
        return self._carry_out(self.gossip.receive(event, now), now)

    def _carry_out(self, outputs: list[g.GossipOutput], now: float) -> list[Send]:
        sends: list[Send] = []
        for output in outputs:
            match output:
                case g.SendFrame(to, frame):
                    sends.append(Send(to, frame, reliable=True))
                case g.Validate(key, _, payload, _):
                    good = payload.startswith(GENUINE)
                    verdict = g.Verdict.ACCEPT if good else g.Verdict.REJECT
                    origin = PeerId(payload[-32:]) if good else None
                    sends += self._take(g.Validated(key, verdict, origin), now)
                case g.Deliver(_, payload, _):
                    assert payload not in self.got, "delivered twice"
                    self.got[payload] = now
        return sends


@attrs.define
class Sybil:
    """Takes the topic, grafts whom it can again and again, passes nothing on, says to have what it does not give,
    and, if it is loud, sends garbage."""

    own: PeerId
    links: dict[PeerId, bool]
    rng: SeededRandom
    loud: bool
    beat: float = 0.0
    seen: list[bytes] = attrs.field(factory=list)

    def start(self, now: float) -> list[Send]:
        return []

    def connect(self, now: float) -> list[Send]:
        return [Send(link, {"subscribe": [[T, True]], "graft": [T]}, reliable=True) for link in self.links]

    def next_timeout(self) -> float | None:
        return self.beat + 1.0

    def poll(self, now: float) -> list[Send]:
        self.beat = now
        sends: list[Send] = []
        for link in self.links:
            frame: dict[str, object] = {"ihave": [[T, self.seen[-20:]]]}
            if int(now) % 61 == 0:
                frame["graft"] = [T]
            if self.loud:
                frame["publish"] = [[T, self.rng.getrandbits(64).to_bytes(8, "big")]]
            sends.append(Send(link, frame, reliable=True))
        return sends

    def receive(self, source: PeerId, message: object, now: float) -> list[Send]:
        if isinstance(message, dict):
            self.seen += [message_id(topic, payload) for topic, payload in message.get("publish", ())]
        return []


Fabric = Network[Machine | Sybil]


def fabric(seed: int, sybils: int) -> Fabric:
    network: Fabric = Network(seed, Conditions(latency_s=0.02, jitter_s=0.02))
    links: list[dict[PeerId, bool]] = [{} for _ in range(HONEST + sybils)]
    for n in range(HONEST):
        others = [(n + 1) % HONEST, *(network.rng.getrandbits(20) % HONEST for _ in range(HONEST_LINKS - 1))]
        if sybils:
            others += [HONEST + network.rng.getrandbits(20) % sybils for _ in range(SYBIL_LINKS)]
        for other in others:
            if other != n and peer(1 + other) not in links[n]:
                dialled = other < HONEST or network.rng.getrandbits(1) == 0
                links[n][peer(1 + other)], links[other][peer(1 + n)] = dialled, not dialled
    for n, known in enumerate(links):
        network.add(peer(1 + n), _factory(n, known, seed))
    for own in network.peers:
        network.act(own, lambda actor, now: actor.connect(now))
    return network


def _factory(n: int, links: dict[PeerId, bool], seed: int) -> Callable[[], Machine | Sybil]:
    rng = SeededRandom(seed * 1000 + n)
    if n < HONEST:
        return lambda: Machine(peer(1 + n), links, rng)
    return lambda: Sybil(peer(1 + n), links, rng, loud=n % 4 == 0)


def honest(network: Fabric) -> list[Machine]:
    return [actor for n in range(HONEST) if isinstance(actor := network.actor(peer(1 + n)), Machine)]


def publishing(payload: bytes) -> Callable[[Machine | Sybil, float], list[Send]]:
    def act(actor: Machine | Sybil, now: float) -> list[Send]:
        assert isinstance(actor, Machine)
        return actor.publish(payload, now)

    return act


def publish(network: Fabric, number: int, by: int) -> bytes:
    payload = GENUINE + number.to_bytes(4, "big") + peer(1 + by).raw
    network.act(peer(1 + by), publishing(payload))
    return payload


def run(seed: int, sybils: int, messages: int) -> tuple[float, list[float], Fabric]:
    """The share of deliveries to honest machines, how long each took, sorted, and the fabric after it."""
    network = fabric(seed, sybils)
    sent: dict[bytes, float] = {}
    network.run(0.01)  # links are made, subscriptions are on their way: early messages are not lost
    for number in range(messages):
        sent[publish(network, number, network.rng.getrandbits(20) % HONEST)] = network.now
        network.run(network.now + 0.5)
    network.run(network.now + 15.0)
    took = [actor.got[p] - at for actor in honest(network) for p, at in sent.items() if p in actor.got]
    return len(took) / (HONEST * messages), sorted(took), network


@pytest.mark.parametrize("seed", range(3))
def test_honest_machines_hear_each_other_through_a_crowd_of_sybils(seed: int) -> None:
    share, took, network = run(seed, SYBILS, messages=120)
    assert share >= 0.999, f"seed {seed}: {share}"
    late = took[int(0.99 * len(took))]
    assert late < 4.0, f"seed {seed}: 99 % took {late} s"
    meshes = [p for machine in honest(network) for p in machine.gossip.mesh(T)]
    loud = [p for p in meshes if p > peer(HONEST) and (int.from_bytes(p.raw, "big") - 1) % 4 == 0]
    assert not loud, f"seed {seed}: senders of garbage are put out"


@pytest.mark.parametrize("seed", range(3))
def test_among_honest_machines_nothing_waits_for_a_heartbeat_and_nobody_is_blamed(seed: int) -> None:
    share, took, network = run(seed, 0, messages=120)
    assert share == 1.0
    assert took[-1] < 1.0 or took[int(0.98 * len(took))] < 0.5, f"seed {seed}: {took[-20:]}"
    for machine in honest(network):
        for link in machine.links:
            assert machine.gossip.score(link, network.now) >= 0, f"seed {seed}"


def test_a_burst_of_200_messages_arrives_whole() -> None:
    network = fabric(5, SYBILS)
    network.run(2.0)
    payloads = [publish(network, number, by=3) for number in range(200)]
    network.run(network.now + 15.0)
    lost = sum(p not in machine.got for machine in honest(network) for p in payloads)
    assert lost == 0


def test_one_busy_origin_blames_nobody() -> None:
    network = fabric(6, 0)
    network.run(2.0)
    for number in range(200):
        publish(network, number, by=0)
        network.run(network.now + 0.5)
    for machine in honest(network):
        for link in machine.links:
            assert machine.gossip.score(link, network.now) >= 0
