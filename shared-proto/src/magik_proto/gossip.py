"""Gossip: every message reaches every subscriber, at a cost for each machine that does not grow with the
fabric.

After GossipSub v1.1 (libp2p specs): a mesh of about D peers for each topic gets messages at once, some
others hear at every heartbeat which ids there are and ask for what they lack.  Departures, on purpose:

- a peer that subscribes is grafted at once while the mesh is not full, and told the ids of recent messages,
so that
  nothing waits for the first heartbeat and what was published before a peer's subscription arrived is not
  lost;
- a machine's own messages go to all connected subscribers (flood publishing);
- ids are hashes of the content, and frames carry no origin (`magik_proto.gossip_frames`); messages are
signed inside;
- no peer exchange: the mesh node finds peers in other ways.  Scoring is not here yet: `Misbehaved` is where
it starts,
  `_candidates` where it will choose.

A machine's own messages are not delivered to itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from magik_proto.errors import LocalProtocolError
from magik_proto.gossip_cache import MessageCache, SeenCache
from magik_proto.gossip_frames import (
    MAX_BACKOFF_S,
    MAX_IDS,
    MAX_PAYLOAD,
    MAX_TOPICS,
    Frame,
    message_id,
    parse_frame,
    to_value,
)
from magik_proto.gossip_types import (
    Deliver,
    FrameReceived,
    GossipConfig,
    GossipEvent,
    GossipOutput,
    Misbehaved,
    PeerConnected,
    PeerGone,
    Publish,
    SendFrame,
    Subscribe,
    Unsubscribe,
    Validate,
    Validated,
    Verdict,
)
from magik_proto.identity import PeerId
from magik_proto.machine import RandomSource, shuffled

__all__ = [
    "Deliver",
    "FrameReceived",
    "Gossip",
    "GossipConfig",
    "GossipEvent",
    "GossipOutput",
    "Misbehaved",
    "PeerConnected",
    "PeerGone",
    "Publish",
    "SendFrame",
    "Subscribe",
    "Unsubscribe",
    "Validate",
    "Validated",
    "Verdict",
]


@attrs.define
class _Peer:
    topics: dict[str, None] = attrs.field(factory=dict)  # an ordered set
    asked: int = 0  # ids since the last heartbeat


@attrs.define
class _Pending:
    topic: str
    payload: bytes
    source: PeerId
    others: dict[PeerId, None] = attrs.field(factory=dict)  # who else sent it: they need no copy


class Gossip:
    """One machine's gossip, over all its topics.

    `receive` raises LocalProtocolError for a payload or topic of ours over the limits, and
    RemoteProtocolError for a malformed frame; neither changes anything.
    """

    def __init__(self, own: PeerId, rng: RandomSource, config: GossipConfig | None = None) -> None:
        self._own = own
        self._rng = rng
        self._config = config or GossipConfig()
        self._peers: dict[PeerId, _Peer] = {}
        self._mesh: dict[str, dict[PeerId, None]] = {}  # for each own topic, an ordered set
        self._backoff: dict[tuple[str, PeerId], float] = {}
        self._asked: dict[bytes, float] = {}  # id -> when to ask another, in that order
        self._pending: dict[bytes, _Pending] = {}
        self._seen = SeenCache(self._config.seen_life_s, self._config.max_seen)
        self._cache = MessageCache(self._config.history, self._config.max_cache_bytes)
        self._heartbeat: float | None = None

    def mesh(self, topic: str) -> tuple[PeerId, ...]:
        """The peers that get messages of a topic at once, in order of id."""
        return tuple(sorted(self._mesh.get(topic, ())))

    def subscribers(self, topic: str) -> tuple[PeerId, ...]:
        """Connected peers that are known to take a topic, in order of id."""
        return tuple(sorted(peer for peer, known in self._peers.items() if topic in known.topics))

    def next_timeout(self) -> float | None:
        """The next heartbeat; None before the first event."""
        return self._heartbeat

    def receive(self, event: GossipEvent, now: float) -> list[GossipOutput]:
        """Take one event in; see the class for errors."""
        outputs = self._handle(event, now)
        if self._heartbeat is None:
            self._heartbeat = now + self._config.heartbeat_s
        return outputs

    def _handle(self, event: GossipEvent, now: float) -> list[GossipOutput]:
        match event:
            case PeerConnected(peer):
                return self._on_connected(peer)
            case PeerGone(peer):
                return self._on_gone(peer)
            case FrameReceived(peer, value):
                return self._on_frame(peer, parse_frame(value), now)
            case Publish(topic, payload):
                return self._on_publish(topic, payload, now)
            case Subscribe(topic):
                return self._on_subscribe(topic, now)
            case Unsubscribe(topic):
                return self._on_unsubscribe(topic)
            case Validated(key, verdict):
                return self._on_validated(key, verdict)
        raise LocalProtocolError(f"not an event of gossip: {event!r}")

    def poll(self, now: float) -> list[GossipOutput]:
        """Beat, if it is time: mend the mesh, tell ids, forget what is old."""
        if self._heartbeat is None or now < self._heartbeat:
            return []
        self._heartbeat = now + self._config.heartbeat_s
        self._forget(now)
        outputs: list[GossipOutput] = []
        for topic in self._mesh:
            outputs += self._mend_mesh(topic, now)
            outputs += self._tell_ids(topic)
        self._cache.shift()
        return outputs

    # -- peers and topics --------------------------------------------------------------------------

    def _on_connected(self, peer: PeerId) -> list[GossipOutput]:
        if peer == self._own:
            raise LocalProtocolError("a machine is no peer of itself")
        self._on_gone(peer)  # a new connection: the peer has forgotten what we told it
        self._peers[peer] = _Peer()
        topics = tuple((topic, True) for topic in self._mesh)
        return [_send(peer, Frame(subscribe=topics))] if topics else []

    def _on_gone(self, peer: PeerId) -> list[GossipOutput]:
        self._peers.pop(peer, None)
        for mesh in self._mesh.values():
            mesh.pop(peer, None)
        return []

    def _on_subscribe(self, topic: str, now: float) -> list[GossipOutput]:
        parse_own_topic(topic)
        if topic in self._mesh:
            return []
        if len(self._mesh) >= MAX_TOPICS:
            raise LocalProtocolError(f"{MAX_TOPICS} topics are subscribed already")
        self._mesh[topic] = {}
        told = [_send(peer, Frame(subscribe=((topic, True),))) for peer in self._peers]
        return [*told, *self._graft(topic, self._config.degree, now)]

    def _on_unsubscribe(self, topic: str) -> list[GossipOutput]:
        mesh = self._mesh.pop(topic, None)
        if mesh is None:
            return []
        pruned = ((topic, int(self._config.unsubscribe_backoff_s)),)
        return [
            _send(peer, Frame(subscribe=((topic, False),), prune=pruned if peer in mesh else ()))
            for peer in self._peers
        ]

    # -- messages ----------------------------------------------------------------------------------

    def _on_publish(self, topic: str, payload: bytes, now: float) -> list[GossipOutput]:
        parse_own_topic(topic)
        if len(payload) > MAX_PAYLOAD:
            raise LocalProtocolError(f"a payload is at most {MAX_PAYLOAD} bytes, not {len(payload)}")
        key = message_id(topic, payload)
        if not self._seen.add(key, now):
            return []
        self._cache.put(key, topic, payload)
        targets = dict.fromkeys([*self._mesh.get(topic, ()), *self.subscribers(topic)])
        return _forward(targets, topic, payload)

    def _on_message(self, peer: PeerId, topic: str, payload: bytes, now: float) -> list[GossipOutput]:
        if topic not in self._mesh:
            return []
        key = message_id(topic, payload)
        self._asked.pop(key, None)
        if key in self._pending:
            self._pending[key].others[peer] = None
        if key in self._seen or len(self._pending) >= self._config.max_pending:
            return []
        self._seen.add(key, now)
        self._pending[key] = _Pending(topic, payload, peer)
        return [Validate(key, topic, payload, peer)]

    def _on_validated(self, key: bytes, verdict: Verdict) -> list[GossipOutput]:
        message = self._pending.pop(key, None)
        if message is None:
            return []
        if verdict is Verdict.REJECT:
            return [Misbehaved(peer, "invalid message") for peer in (message.source, *message.others)]
        if verdict is Verdict.IGNORE:
            return []
        self._cache.put(key, message.topic, message.payload)
        known = (message.source, *message.others)
        targets = [peer for peer in self._mesh.get(message.topic, ()) if peer not in known]
        delivered = Deliver(message.topic, message.payload, message.source)
        return [delivered, *_forward(targets, message.topic, message.payload)]

    # -- frames ------------------------------------------------------------------------------------

    def _on_frame(self, peer: PeerId, frame: Frame, now: float) -> list[GossipOutput]:
        known = self._peers.get(peer)
        if known is None:
            return []
        outputs: list[GossipOutput] = []
        for topic, wanted in frame.subscribe:
            outputs += self._on_peer_topic(peer, known, topic, wanted, now)
        for topic in frame.graft:
            outputs += self._on_graft(peer, topic, now)
        for topic, seconds in frame.prune:
            self._on_prune(peer, topic, seconds, now)
        for topic, payload in frame.publish:
            outputs += self._on_message(peer, topic, payload, now)
        outputs += self._on_ihave(peer, known, frame.ihave, now)
        outputs += self._on_iwant(peer, frame.iwant)
        return outputs

    def _on_peer_topic(
        self, peer: PeerId, known: _Peer, topic: str, wanted: bool, now: float
    ) -> list[GossipOutput]:
        if not wanted:
            known.topics.pop(topic, None)
            self._mesh.get(topic, {}).pop(peer, None)
            return []
        if topic in known.topics:
            return []
        if len(known.topics) >= MAX_TOPICS:
            return [Misbehaved(peer, f"subscribed to more than {MAX_TOPICS} topics")]
        known.topics[topic] = None
        ids = self._cache.ids(topic, self._config.history)[:MAX_IDS]
        may_graft = self._in_reach(topic, peer, now) and len(self._mesh[topic]) < self._config.degree
        if may_graft:
            self._mesh[topic][peer] = None
        frame = Frame(ihave=((topic, tuple(ids)),) if ids else (), graft=(topic,) if may_graft else ())
        return [_send(peer, frame)] if frame != Frame() else []

    def _on_graft(self, peer: PeerId, topic: str, now: float) -> list[GossipOutput]:
        mesh = self._mesh.get(topic)
        if mesh is None or peer in mesh:
            return []
        if len(mesh) < self._config.degree_high and not self._is_backed_off(topic, peer, now):
            mesh[peer] = None
            return []
        return [self._prune(topic, peer, now)]

    def _on_prune(self, peer: PeerId, topic: str, seconds: int, now: float) -> None:
        mesh = self._mesh.get(topic)
        if mesh is not None:
            mesh.pop(peer, None)
            self._back_off(topic, peer, now + min(seconds, MAX_BACKOFF_S))

    def _on_ihave(
        self, peer: PeerId, known: _Peer, told: tuple[tuple[str, tuple[bytes, ...]], ...], now: float
    ) -> list[GossipOutput]:
        keys = dict.fromkeys(key for topic, ids in told if topic in self._mesh for key in ids)
        lacking = [key for key in keys if key not in self._seen and now >= self._asked.get(key, now)]
        lacking = lacking[: min(MAX_IDS, self._config.max_asked - known.asked)]
        for key in lacking:
            self._asked.pop(key, None)
            self._asked[key] = now + self._config.ask_again_s
        known.asked += len(lacking)
        return [_send(peer, Frame(iwant=tuple(lacking)))] if lacking else []

    def _on_iwant(self, peer: PeerId, keys: tuple[bytes, ...]) -> list[GossipOutput]:
        found = [self._cache.take(key, peer, self._config.max_served) for key in keys]
        return [_send(peer, Frame(publish=(message,))) for message in found if message is not None]

    # -- the mesh ----------------------------------------------------------------------------------

    def _mend_mesh(self, topic: str, now: float) -> list[GossipOutput]:
        held = len(self._mesh[topic])
        return self._graft(topic, self._config.degree - held, now) if held < self._config.degree_low else []

    def _graft(self, topic: str, count: int, now: float) -> list[GossipOutput]:
        chosen = shuffled(self._rng, self._candidates(topic, now))[:count]
        self._mesh[topic].update(dict.fromkeys(chosen))
        return [_send(peer, Frame(graft=(topic,))) for peer in chosen]

    def _prune(self, topic: str, peer: PeerId, now: float) -> SendFrame:
        self._mesh[topic].pop(peer, None)
        self._back_off(topic, peer, now + self._config.prune_backoff_s)
        return _send(peer, Frame(prune=((topic, int(self._config.prune_backoff_s)),)))

    def _candidates(self, topic: str, now: float) -> list[PeerId]:
        mesh = self._mesh[topic]
        peers = self.subscribers(topic)
        return [peer for peer in peers if peer not in mesh and self._in_reach(topic, peer, now)]

    def _in_reach(self, topic: str, peer: PeerId, now: float) -> bool:
        return topic in self._mesh and not self._is_backed_off(topic, peer, now)

    def _is_backed_off(self, topic: str, peer: PeerId, now: float) -> bool:
        return now < self._backoff.get((topic, peer), now)

    def _back_off(self, topic: str, peer: PeerId, until: float) -> None:
        self._backoff[topic, peer] = max(until, self._backoff.get((topic, peer), until))

    # -- the heartbeat's rest ----------------------------------------------------------------------

    def _tell_ids(self, topic: str) -> list[GossipOutput]:
        ids = self._cache.ids(topic, self._config.history_told)[:MAX_IDS]
        others = [peer for peer in self.subscribers(topic) if peer not in self._mesh[topic]]
        count = max(self._config.degree_lazy, len(others) // self._config.lazy_share)
        chosen = shuffled(self._rng, others)[:count] if ids else []
        return [_send(peer, Frame(ihave=((topic, tuple(ids)),))) for peer in chosen]

    def _forget(self, now: float) -> None:
        self._seen.expire(now)
        self._backoff = {key: until for key, until in self._backoff.items() if now < until}
        while self._asked and now >= self._asked[(oldest := next(iter(self._asked)))]:
            del self._asked[oldest]
        for known in self._peers.values():
            known.asked = 0


def parse_own_topic(topic: str) -> None:
    """LocalProtocolError for a topic that no peer would take."""
    if not 1 <= len(topic) <= 128 or not topic.isprintable():
        raise LocalProtocolError(f"a topic is 1 to 128 printable characters, not {topic!r}")


def _send(peer: PeerId, frame: Frame) -> SendFrame:
    return SendFrame(peer, to_value(frame))


def _forward(peers: Iterable[PeerId], topic: str, payload: bytes) -> list[GossipOutput]:
    return [_send(peer, Frame(publish=((topic, payload),))) for peer in peers]
