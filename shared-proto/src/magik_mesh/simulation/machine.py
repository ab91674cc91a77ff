"""A simulated machine: the daemon's state machines, and what its drivers do between them, without I/O."""

from __future__ import annotations

from collections import deque
from itertools import chain
from random import Random
from typing import Any, Protocol
from uuid import UUID

import attrs

from magik_mesh.simulation.linking import Knobs, Linking
from magik_mesh.simulation.says import Asked, Told, Word
from magik_mesh.simulation.trading import Trading
from magik_proto import dht_types as d
from magik_proto import gossip as g
from magik_proto.dht import Dht
from magik_proto.dht_types import Judged
from magik_proto.identity import PeerId
from magik_proto.kademlia import Contact, position
from magik_proto.messages import FABRIC_TOPIC, Tender
from magik_proto.testing.network import Send

SAMPLE = 32  # random machines that are remembered, as `magik_mesh.dht` does


class Surroundings(Protocol):
    """What machines of one fabric share, and where they leave what is measured."""

    rng: Random
    knobs: Knobs

    def judge(self, data: bytes, now: float, /) -> Judged:
        """What a record is, and whether to believe it."""
        ...

    def contact(self, peer: PeerId) -> Contact:
        """Where a peer is."""
        ...

    def verdict(self, payload: bytes) -> tuple[g.Verdict, Tender | None]:
        """What validation says of a gossiped message."""
        ...

    def frame_bytes(self, frame: dict[str, Any]) -> int:
        """The size of a gossip frame on the stream."""
        ...

    def tender_payload(self, tender_id: UUID, own: PeerId, number: int, sample: int) -> bytes:
        """The signed, encoded tender of a round."""
        ...

    def saw_tender(self, machine: Machine, tender: Tender, now: float) -> None:
        """A machine was delivered a tender."""
        ...

    def saw_dht(self, machine: Machine, output: d.DhtOutput, now: float) -> None:
        """A request to a machine's hash table has ended."""
        ...


class Gossiping(Protocol):
    """What a machine needs of gossip; liars have another than `magik_proto.gossip.Gossip`."""

    def receive(self, event: g.GossipEvent, now: float) -> list[g.GossipOutput]: ...

    def poll(self, now: float) -> list[g.GossipOutput]: ...

    def next_timeout(self) -> float | None: ...

    def mesh(self, topic: str) -> tuple[PeerId, ...]: ...


@attrs.define
class Trace:
    """One measured lookup: how many steps away from its own table each machine was."""

    key: bytes
    depth: dict[PeerId, int] = attrs.field(factory=dict)
    queries: dict[int, PeerId] = attrs.field(factory=dict)

    def asked(self, query: int, peer: PeerId) -> None:
        """A query goes out; who was not named by anybody was in the own table."""
        self.depth.setdefault(peer, 1)
        self.queries[query] = peer

    def told(self, query: int, answer: d.Answer) -> None:
        """Whoever is named is one step farther than who named it."""
        source = self.queries.get(query)
        if source is not None and isinstance(answer, d.Found):
            for contact in answer.peers:
                self.depth.setdefault(contact.peer, self.depth[source] + 1)


class Machine:
    """One machine of the fabric; an `Actor` of the simulated network."""

    __slots__ = (
        "_around",
        "_calls",
        "_key",
        "_tend_s",
        "bytes_sent",
        "contact",
        "dht",
        "frames_sent",
        "gossip",
        "linking",
        "queries_sent",
        "sampled",
        "tend_at",
        "trace",
        "trading",
    )

    def __init__(
        self,
        around: Surroundings,
        contact: Contact,
        known: tuple[PeerId, ...] = (),
        knobs: Knobs | None = None,
    ) -> None:
        own = contact.peer
        self._around = around
        self.contact = contact
        self.gossip: Gossiping = g.Gossip(own, around.rng)
        self.dht = Dht(contact, around.rng, around.judge)
        self.trading = Trading(own, send=self._send, publish=self._publish, tender=around.tender_payload)
        self.linking = Linking(
            own,
            knobs or around.knobs,
            around.rng,
            up=self._up,
            down=self._down,
            failed=self._failed,
            again=self.receive,
        )
        self._calls: dict[int, PeerId] = {}
        self._key = position(own)
        self._tend_s = around.knobs.timings.tend
        self.tend_at = self._tend_s * (1 + around.rng.random())
        self.sampled: deque[Contact] = deque(maxlen=SAMPLE)
        self.trace: Trace | None = None
        self.frames_sent = self.bytes_sent = self.queries_sent = 0
        for peer in known:
            self.linking.plan.want(peer, 0.0, permanent=True)

    @property
    def peer(self) -> PeerId:
        """Whose it is."""
        return self.contact.peer

    # -- the actor

    def start(self, now: float) -> list[Send]:
        """Take the topic, and dial whom it knows."""
        return self._gossip(g.Subscribe(FABRIC_TOPIC), now) + self.linking.poll(now)

    def receive(self, source: PeerId, message: Any, now: float) -> list[Send]:
        """Take a message in."""
        if isinstance(message, Word):
            return self.linking.receive(source, message, now)
        link = self.linking.links.get(source)
        if link is None and isinstance(message, Asked | Told):
            return self._on_call(source, message, now)  # over a brief connection
        if link is None and type(message) is not dict and not self.linking.is_greeting(source):
            # A call that crossed with the end of its connection: its sender says it again.
            return [*self.linking.stranger(source, message), *self.trading.receive(source, message, now)]
        if link is None:
            return self.linking.stranger(source, message)
        if type(message) is dict:
            return self._gossip(g.FrameReceived(source, message), now)
        link.last_used = now
        if isinstance(message, Asked | Told):
            return self._on_call(source, message, now)
        return self.trading.receive(source, message, now)

    def _on_call(self, source: PeerId, message: Asked | Told, now: float) -> list[Send]:
        if isinstance(message, Asked):
            return self._on_asked(source, message, now)
        return self._on_told(source, message, now)

    def poll(self, now: float) -> list[Send]:
        """Do what is due."""
        sends = self._gossip_outputs(self.gossip.poll(now), now)
        sends += self._dht_outputs(self.dht.poll(now), now)
        if (due := self.linking.due) is not None and due <= now:
            sends += self.linking.poll(now)
        if self.tend_at <= now:
            sends += self.tend(now)
        return sends + self.trading.poll(now)

    def next_timeout(self) -> float | None:
        """When to call `poll`."""
        least = self.gossip.next_timeout()
        for time in (self.dht.next_timeout(), self.linking.due, self.trading.next_timeout(), self.tend_at):
            if time is not None and (least is None or time < least):
                least = time
        return least

    def tend(self, now: float) -> list[Send]:
        """Think over whom to be connected with (`magik_mesh.tending`)."""
        self.tend_at = now + self._tend_s * (0.75 + self._around.rng.random() / 2)
        self.choose(now)
        return self.linking.let_go(now) + self.linking.poll(now)

    def choose(self, now: float) -> None:
        """Choose whom to be connected with."""
        table = self.dht.table
        near = table.closest(self._key, self.linking.neighbours.close)
        sample = (contact.peer for contact in chain(self.sampled, table.all()))
        self.linking.choose(len(table), [contact.peer for contact in near], sample, now)

    def place(self, tender_id: UUID, replicas: int, now: float) -> list[Send]:
        """Have so many replicas of something placed."""
        return self.trading.place(tender_id, replicas, now)

    # -- connections

    def _up(self, peer: PeerId, dialled: bool, now: float) -> list[Send]:
        contact = self._around.contact(peer)
        connected = g.PeerConnected(peer, outbound=dialled, address=contact.network)
        sends = self._gossip(connected, now)
        return sends + self.dht_event(d.PeerProved(contact), now)

    def _down(self, peer: PeerId, now: float) -> list[Send]:
        sends = self._gossip(g.PeerGone(peer), now)
        for query in [query for query, to in self._calls.items() if to == peer]:
            sends += self._unanswered(query, now)
        return sends

    def _failed(self, peer: PeerId, messages: list[Any], now: float) -> list[Send]:
        sends = self.dht_event(d.PeerFailed(peer), now)
        for message in messages:
            if isinstance(message, Asked):
                sends += self._unanswered(message.query, now)
            else:
                sends += self.trading.unreachable(peer, message, now)
        return sends

    def _send(self, to: PeerId, message: Any, now: float) -> list[Send]:
        if to == self.peer:
            return self.trading.receive(to, message, now)
        return self.linking.send(to, message, now)

    # -- gossip

    def _gossip(self, event: g.GossipEvent, now: float) -> list[Send]:
        return self._gossip_outputs(self.gossip.receive(event, now), now)

    def _gossip_outputs(self, outputs: list[g.GossipOutput], now: float) -> list[Send]:
        sends: list[Send] = []
        for output in outputs:
            match output:
                case g.SendFrame(peer, frame):
                    self.frames_sent += 1
                    self.bytes_sent += self._around.frame_bytes(frame)
                    sends.append(Send(peer, frame, True))
                case g.Validate(key, _, payload, _):
                    verdict, tender = self._around.verdict(payload)
                    origin = None if tender is None else tender.owner
                    sends += self._gossip(g.Validated(key, verdict, origin), now)
                case g.Deliver(_, payload, source):
                    if (link := self.linking.links.get(source)) is not None:
                        link.useful = True
                    sends += self._delivered(payload, now)
        return sends

    def _publish(self, payload: bytes, now: float) -> list[Send]:
        """To the fabric, and to ourselves: gossip does not deliver own messages."""
        return self._gossip(g.Publish(FABRIC_TOPIC, payload), now) + self._delivered(payload, now)

    def _delivered(self, payload: bytes, now: float) -> list[Send]:
        _, tender = self._around.verdict(payload)
        if tender is None:
            return []
        self._around.saw_tender(self, tender, now)
        return self.trading.tendered(tender, self.dht.size_estimate(), now)

    # -- the hash table

    def dht_event(self, event: d.DhtEvent, now: float) -> list[Send]:
        """Let the hash table take something in."""
        return self._dht_outputs(self.dht.receive(event, now), now)

    def _dht_outputs(self, outputs: list[d.DhtOutput], now: float) -> list[Send]:
        sends: list[Send] = []
        for output in outputs:
            match output:
                case d.Ask(query, to, request):
                    sends += self._ask(query, to, request, now)
                case d.Walked(peers):
                    self.sampled.extendleft(peers[:2])
                case _:
                    self._around.saw_dht(self, output, now)
        return sends

    def _ask(self, query: int, to: Contact, request: d.Request, now: float) -> list[Send]:
        self.queries_sent += 1
        self._calls[query] = to.peer
        if self.trace is not None and isinstance(request, d.Find) and request.key == self.trace.key:
            self.trace.asked(query, to.peer)
        return self.linking.ask(to.peer, Asked(query, request), now)

    def _on_asked(self, source: PeerId, message: Asked, now: float) -> list[Send]:
        event = d.RequestReceived(self._around.contact(source), message.query, message.request)
        sends: list[Send] = []
        for output in self.dht.receive(event, now):
            if isinstance(output, d.Reply):
                answer = self._answer(message.request, output.answer)
                sends.append(Send(source, Told(output.call, answer), True))
            else:
                sends += self._dht_outputs([output], now)
        return sends

    def _answer(self, request: d.Request, answer: d.Answer) -> d.Answer:
        """What is told; liars have something else to say."""
        return answer

    def _on_told(self, source: PeerId, message: Told, now: float) -> list[Send]:
        if self._calls.pop(message.query, None) is None:
            return []
        self.linking.answered(source)
        if self.trace is not None:
            self.trace.told(message.query, message.answer)
        return self.dht_event(d.Answered(message.query, message.answer), now)

    def _unanswered(self, query: int, now: float) -> list[Send]:
        self._calls.pop(query, None)
        return self.dht_event(d.Unanswered(query), now)
