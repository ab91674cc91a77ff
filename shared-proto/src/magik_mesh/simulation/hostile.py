"""Machines that are members and wish the fabric ill."""

from __future__ import annotations

from collections.abc import Container
from uuid import UUID

from attrs import evolve

from magik_mesh.simulation.fabric import Fabric
from magik_mesh.simulation.machine import Machine
from magik_mesh.simulation.nearest import Nearest
from magik_mesh.simulation.says import Declined
from magik_proto import dht_types as d
from magik_proto import gossip as g
from magik_proto.gossip_frames import message_id
from magik_proto.identity import PeerId
from magik_proto.kademlia import Contact, K
from magik_proto.messages import FABRIC_TOPIC
from magik_proto.testing.network import Send

_CALLS = 30  # honest machines that a sybil forces itself upon: for each of those, 120 sybils


class RoutingLiar(Machine):
    """Answers searches with its accomplices nearest to what is sought, has no records, and keeps none that it
    takes. All liars know each other. In everything else it does as others do."""

    __slots__ = ("_accomplices",)

    def __init__(self, around: Fabric, contact: Contact, known: tuple[PeerId, ...], others: Nearest) -> None:
        super().__init__(around, contact, known)
        self._accomplices = others

    def _answer(self, request: d.Request, answer: d.Answer) -> d.Answer:
        if isinstance(request, d.Store):
            return d.Stored(("",) * len(request.records))
        place = int.from_bytes(request.key, "big")
        return d.Found(tuple(self._accomplices.of(place, K)))


class SinkGossip:
    """Wants to be in everybody's mesh and passes nothing on. A `lure` tells everyone that it has what it heard
    of, and does not send it."""

    def __init__(self, honest: Container[PeerId], *, lure: bool) -> None:
        self._honest = honest
        self._lure = lure
        self._peers: dict[PeerId, None] = {}
        self._told: dict[bytes, None] = {}

    def receive(self, event: g.GossipEvent, now: float) -> list[g.GossipOutput]:
        """See `Gossip`."""
        match event:
            case g.PeerConnected(peer) if peer in self._honest:
                self._peers[peer] = None
                topics = {"subscribe": [[FABRIC_TOPIC, True]], "graft": [FABRIC_TOPIC]}
                return [g.SendFrame(peer, topics)]
            case g.PeerGone(peer):
                self._peers.pop(peer, None)
            case g.FrameReceived(_, frame) if self._lure:
                keys = [message_id(topic, payload) for topic, payload in frame.get("publish", ())]
                fresh = [key for key in keys if key not in self._told]
                self._told |= dict.fromkeys(fresh)
                return self._tell(fresh) if fresh else []
        return []

    def _tell(self, keys: list[bytes]) -> list[g.GossipOutput]:
        frame = {"ihave": [[FABRIC_TOPIC, keys]]}
        return [g.SendFrame(peer, frame) for peer in self._peers]

    def poll(self, now: float) -> list[g.GossipOutput]:
        """See `Gossip`."""
        return []

    def next_timeout(self) -> float | None:
        """See `Gossip`."""
        return None

    def mesh(self, topic: str) -> tuple[PeerId, ...]:
        """See `Gossip`."""
        return ()


class Sybil(Machine):
    """One of many identities that crowd into a topic to cut others off from it. It bids for nothing."""

    __slots__ = ()

    def __init__(
        self,
        around: Fabric,
        contact: Contact,
        known: tuple[PeerId, ...],
        honest: Container[PeerId],
        *,
        lure: bool,
    ) -> None:
        super().__init__(around, contact, known, evolve(around.knobs, max_connections=2 * _CALLS))
        self.gossip = SinkGossip(honest, lure=lure)

    def force(self, upon: list[PeerId], now: float) -> list[Send]:
        """Connect, saying that there is a call to make: then others have to go."""
        sends: list[Send] = []
        for peer in upon:
            sends += self.linking.send(peer, Declined(UUID(int=0)), now)
        return sends

    def _delivered(self, payload: bytes, now: float) -> list[Send]:
        return []


def attack(fabric: Fabric, sybils: list[Machine], honest: list[Machine]) -> None:
    """Each sybil forces itself upon some honest machines, within the next seconds."""
    peers = [machine.peer for machine in honest]
    for sybil in sybils:
        assert isinstance(sybil, Sybil)
        chosen = fabric.rng.sample(peers, min(_CALLS, len(peers)))
        fabric.later(fabric.network.now + 5 * fabric.rng.random(), _forcing(fabric, sybil.peer, chosen))


def _forcing(fabric: Fabric, peer: PeerId, chosen: list[PeerId]):  # type: ignore[no-untyped-def]
    def force() -> None:
        fabric.network.act(peer, lambda machine, now: machine.force(chosen, now))  # type: ignore[attr-defined]

    return force
