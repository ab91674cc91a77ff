"""Publish and subscribe: drives `magik_proto.gossip` over one long-lived stream per direction and peer.

A node's frames to a peer wait in an `Outbox` while the peer's stream takes no more. At its limit the oldest
frame that only carries messages or their ids goes, and is counted: the peer is told the ids at the next
heartbeat, and asks for what it lacks.
Frames that tell subscriptions and mesh membership are never dropped, as nothing repeats them; a peer that
lets a whole box of those pile up is given up.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from random import Random
from typing import Any

import trio
from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh.addresses import Address, is_dialable, plain_host
from magik_mesh.clock import Clock
from magik_mesh.config import MeshLimits, NodeConfig
from magik_mesh.rpc_server import Call
from magik_mesh.stats import Stats
from magik_proto import codec
from magik_proto.errors import RemoteProtocolError
from magik_proto.gossip import Gossip
from magik_proto.gossip_types import (
    Accept,
    Deliver,
    FrameReceived,
    FramesDropped,
    GossipEvent,
    GossipOutput,
    Judgement,
    Malformed,
    Misbehaved,
    PeerConnected,
    PeerGone,
    Publish,
    SendFrame,
    Subscribe,
    Validate,
    Validated,
    Verdict,
)
from magik_proto.identity import PeerId
from magik_proto.rpc import encode_frame

Validator = Callable[[PeerId, bytes], Awaitable[Judgement]]

# A frame of ours carries one message of at most 64 KiB, or at most a few lists of ids; twice a large one.
MAX_GOSSIP_FRAME = 512 << 10
_DROPPABLE = frozenset({"publish", "ihave", "iwant", "idontwant"})


@define(eq=False)
class Outbox:
    """Frames that wait for one peer's stream."""

    limits: MeshLimits
    stats: Stats
    overflowed: bool = False  # nothing more could be dropped: give the peer up
    dropped: bool = False  # frames were, since the gossip machine was told so
    useful: bool = False  # the peer was the first to bring us a good message
    _frames: deque[tuple[bytes, bool]] = field(factory=deque)
    _bytes: int = 0
    _news: trio.Event = field(factory=trio.Event)

    def put(self, data: bytes, *, droppable: bool) -> None:
        """Queue an encoded frame, making room as the module says."""
        self._frames.append((data, droppable))
        self._bytes += len(data)
        while len(self._frames) > self.limits.gossip_frames or self._bytes > self.limits.gossip_bytes:
            if not self._drop_oldest():
                self.overflowed = True
                break
        self._news.set()

    async def take(self) -> bytes:
        """All that waits, as one piece of at most some 64 KiB more than one frame; waits for the first."""
        while not self._frames:
            self._news = trio.Event()
            await self._news.wait()
        batch = bytearray()
        while self._frames and len(batch) < 64 << 10:
            data, _ = self._frames.popleft()
            self._bytes -= len(data)
            batch += data
        return bytes(batch)

    def _drop_oldest(self) -> bool:
        for index, (data, droppable) in enumerate(self._frames):
            if droppable:
                del self._frames[index]
                self._bytes -= len(data)
                self.stats.gossip_dropped += 1
                self.dropped = True
                return True
        return False


class PubSub:
    """The gossip machine of one node with its timer, its validators and its peers' outboxes."""

    def __init__(
        self, own: PeerId, clock: Clock, config: NodeConfig, stats: Stats, log: FilteringBoundLogger
    ) -> None:
        self._clock = clock
        self._limits = config.limits
        self._stats = stats
        self._log = log
        self._gossip = Gossip(own, Random(int.from_bytes(clock.random(16), "big")), config.gossip)
        self._outboxes: dict[PeerId, Outbox] = {}
        self._topics: dict[str, trio.MemorySendChannel[Validate]] = {}
        self._waiting: list[tuple[Validator, trio.MemoryReceiveChannel[Validate]]] = []
        self._new_topic = trio.Event()
        self._nap = trio.CancelScope()  # ends when the gossip machine is to be polled

    def subscribe(self, topic: str, validate: Validator) -> None:
        """Take `topic`. Its messages are judged one after the other, in the order of their arrival."""
        if topic in self._topics:
            raise ValueError(f"topic {topic} has a subscriber already")
        self._step(Subscribe(topic))
        sender, receiver = trio.open_memory_channel[Validate](self._limits.validations)
        self._topics[topic] = sender
        self._waiting.append((validate, receiver))
        self._new_topic.set()

    def publish(self, topic: str, payload: bytes) -> None:
        """Hand `payload` to every connected subscriber's outbox; own subscribers do not get it."""
        self._step(Publish(topic, payload))

    def attach(self, peer: PeerId, outbound: bool, address: Address | None) -> Outbox:
        """A new connection with `peer`: frames for it go to the outbox that is returned.

        `outbound`: this side dialled it. `address` is where the peer is seen.
        """
        outbox = self._outboxes[peer] = Outbox(self._limits, self._stats)
        self._step(PeerConnected(peer, outbound, None if address is None else site_of(address)))
        return outbox

    def score(self, peer: PeerId) -> float:
        """What gossip thinks of a peer, in points."""
        return self._gossip.score(peer, self._clock.now())

    def detach(self, peer: PeerId, outbox: Outbox) -> None:
        """The connection of `outbox` is gone; without effect if `peer` has a newer one."""
        if self._outboxes.get(peer) is outbox:
            del self._outboxes[peer]
            self._step(PeerGone(peer))

    async def read_frames(self, call: Call) -> None:
        """The handler of a peer's gossip stream."""
        await call.reply()
        while (payload := await call.frames.read_frame(MAX_GOSSIP_FRAME)) is not None:
            try:
                self._step(FrameReceived(call.peer, codec.decode(payload)))
            except RemoteProtocolError:
                self._stats.gossip_rejected += 1
                self._step(Malformed(call.peer))
                raise

    async def run(self) -> None:
        """The timer and the validators, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            while True:
                while self._waiting:
                    nursery.start_soon(self._judge, *self._waiting.pop())
                self._new_topic = trio.Event()
                await self._new_topic.wait()

    async def _beat(self) -> None:
        while True:
            with trio.CancelScope() as self._nap:
                due = self._gossip.next_timeout()
                self._nap.deadline = inf if due is None else due
                await trio.sleep_forever()
            self._carry_out(self._gossip.poll(self._clock.now()))

    async def _judge(self, validate: Validator, messages: trio.MemoryReceiveChannel[Validate]) -> None:
        async for message in messages:
            judgement: Judgement | Verdict = Verdict.IGNORE
            try:
                judgement = await validate(message.source, message.payload)
            # A validator that fails on one message must not end the topic; a cancellation beside it goes on.
            except* Exception as errors:  # noqa: BLE001 - it is logged, and the message ignored
                self._log.error("validator failed", topic=message.topic, exc_info=errors)
            self._step(self._validated(message, judgement))

    def _validated(self, message: Validate, judgement: Judgement | Verdict) -> Validated:
        match judgement:
            case Accept(origin):
                return Validated(message.id, Verdict.ACCEPT, origin)
            case Verdict.REJECT | Verdict.IGNORE:
                return Validated(message.id, judgement)
        self._log.error("validator names no origin", topic=message.topic, said=repr(judgement))
        return Validated(message.id, Verdict.IGNORE)

    def _step(self, event: GossipEvent) -> None:
        self._carry_out(self._gossip.receive(event, self._clock.now()))
        due = self._gossip.next_timeout()
        if due is not None and due < self._nap.deadline:
            self._nap.deadline = due

    def _carry_out(self, outputs: list[GossipOutput]) -> None:
        value: dict[str, Any] | None = None
        data, droppable = b"", False
        for output in outputs:
            match output:
                case SendFrame(peer, frame):
                    if frame is not value:  # one message goes to many as one value
                        value, data, droppable = frame, encode_frame(frame), frame.keys() <= _DROPPABLE
                    self._post(peer, data, droppable)
                case Validate():
                    self._queue(output)
                case Deliver(source=peer):
                    if (outbox := self._outboxes.get(peer)) is not None:
                        outbox.useful = True
                case Misbehaved(peer, reason):
                    self._stats.gossip_rejected += 1
                    self._log.warning("peer misbehaves in gossip", peer=str(peer), reason=reason)

    def _post(self, peer: PeerId, data: bytes, droppable: bool) -> None:
        outbox = self._outboxes.get(peer)
        if outbox is None:
            return
        outbox.put(data, droppable=droppable)
        if outbox.dropped:
            outbox.dropped = False
            self._step(FramesDropped(peer))

    def _queue(self, message: Validate) -> None:
        try:
            self._topics[message.topic].send_nowait(message)
        except trio.WouldBlock:
            self._stats.validations_dropped += 1
            self._step(Validated(message.id, Verdict.LATER))


def site_of(address: Address) -> str | None:
    """What peers of one site share: an IPv4 address or an IPv6 network of 64 bits (RFC 6177), as far as we see.

    None for loopback, where all machines of a test are, and for who comes through a relay.
    """
    host = plain_host(address[0])
    ip = ipaddress.ip_address(host)
    if ip.is_loopback or not is_dialable((host, address[1])):
        return None
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))
