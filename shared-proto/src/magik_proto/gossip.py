"""Gossip: every message reaches every subscriber, at a cost for each machine that does not grow with the
fabric.

After GossipSub v1.1 with scores, and IDONTWANT of v1.2 (libp2p specs): a mesh of about D peers for each topic
gets messages at once, some others hear at every heartbeat which ids there are and ask for what they lack.
Departures, on purpose:

- a peer that subscribes is grafted at once while the mesh is not full, and told the ids of recent messages, so
  that nothing waits for the first heartbeat and what was published before a peer's subscription arrived is not
  lost;
- a machine's own messages go to all connected subscribers (flood publishing);
- peers outside the mesh hear ids in turn, so that each hears of each message, however many of them are hostile;
- who says to have a message that was asked of another is asked next, should the other not send it;
- where the mesh does not echo a message, all others hear of it at once, and who had to be asked for it is grafted;
- ids are hashes of the content, and frames carry no origin (`magik_proto.gossip_frames`); messages are signed
  inside, and whoever validates them names the signer;
- no peer exchange: the mesh node finds peers in other ways;
- the scores' own departures are told in `magik_proto.gossip_score`.

The parts: `gossip_mesh` (whom we have in our meshes), `gossip_score` (what we think of peers), `gossip_wants`
(what we asked of whom), `gossip_cache`, `gossip_frames`; here is what happens with messages.

A machine's own messages are not delivered to itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from magik_proto.errors import LocalProtocolError
from magik_proto.gossip_cache import MessageCache, SeenCache
from magik_proto.gossip_echo import Alone, Echoes
from magik_proto.gossip_frames import (
    MAX_IDS,
    MAX_PAYLOAD,
    MAX_TOPICS,
    Frame,
    message_id,
    parse_frame,
    to_value,
)
from magik_proto.gossip_mesh import Meshes
from magik_proto.gossip_peers import Peer, Peers
from magik_proto.gossip_types import (
    Appraise,
    Deliver,
    FrameReceived,
    FramesDropped,
    GossipConfig,
    GossipEvent,
    GossipOutput,
    Malformed,
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
from magik_proto.gossip_wants import NO_WORTH, Wants, Worth
from magik_proto.identity import PeerId
from magik_proto.machine import RandomSource

__all__ = [
    "Appraise",
    "Deliver",
    "FrameReceived",
    "FramesDropped",
    "Gossip",
    "GossipConfig",
    "GossipEvent",
    "GossipOutput",
    "Malformed",
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
class _Pending:
    topic: str
    payload: bytes
    senders: dict[PeerId, None]  # in the order in which they sent it; they need no copy
    asked: bool  # the first sent it because we asked


class Gossip:
    """One machine's gossip, over all its topics.

    `receive` raises LocalProtocolError for a payload or topic of ours over the limits, and
    RemoteProtocolError for a malformed frame; neither changes anything.
    """

    def __init__(self, own: PeerId, rng: RandomSource, config: GossipConfig | None = None) -> None:
        self._own = own
        self._config = config = config or GossipConfig()
        self._limits = config.score
        self._peers = Peers()
        self._meshes = Meshes(rng, config, self._peers)
        self._scores = self._meshes.scores
        kept_s = (config.history - config.history_told - 1) * config.heartbeat_s
        self._wants = Wants(config.ask_again_s, config.promise_s, kept_s, config.max_open)
        self._echoes = Echoes(config.alone_s, config.echoes, config.max_pending)
        self._pending: dict[bytes, _Pending] = {}
        self._seen = SeenCache(config.seen_life_s, config.max_seen)
        self._rejected = SeenCache(config.seen_life_s, config.max_rejected)
        self._cache = MessageCache(config.history, config.max_cache_bytes)
        self._behind: dict[PeerId, None] = {}  # for whom frames were dropped since the last heartbeat
        self._heartbeat: float | None = None
        self._beat, self._beat_at = 0, 0.0

    def mesh(self, topic: str) -> tuple[PeerId, ...]:
        """The peers that get messages of a topic at once, in order of id."""
        return tuple(sorted(self._meshes.of(topic)))

    def subscribers(self, topic: str) -> tuple[PeerId, ...]:
        """Connected peers that are known to take a topic, in order of id."""
        return tuple(sorted(self._peers.takers(topic)))

    def score(self, peer: PeerId, now: float) -> float:
        """What this machine thinks of a peer, in points; 0 for a stranger."""
        return self._scores.score(peer, now)

    def next_timeout(self) -> float | None:
        """The next heartbeat, or what is due before; None before the first event."""
        least = self._heartbeat
        for due in (self._wants.next_timeout(), self._echoes.next_timeout()):
            if due is not None and (least is None or due < least):
                least = due
        return least

    def receive(self, event: GossipEvent, now: float) -> list[GossipOutput]:
        """Take one event in; see the class for errors."""
        outputs = self._handle(event, now)
        if self._heartbeat is None:
            self._beat_at, self._heartbeat = now, now + self._config.heartbeat_s
        return outputs

    def _handle(self, event: GossipEvent, now: float) -> list[GossipOutput]:
        match event:
            case FrameReceived(peer, value):
                return self._on_frame(peer, parse_frame(value), now)
            case Validated(key, verdict, origin):
                return self._on_validated(key, verdict, origin, now)
            case Publish(topic, payload):
                return self._on_publish(topic, payload, now)
            case PeerConnected():
                return self._on_connected(event, now)
            case PeerGone(peer):
                return self._on_gone(peer, now)
            case Subscribe(topic):
                return self._on_subscribe(topic, now)
            case Unsubscribe(topic):
                return self._on_unsubscribe(topic)
            case Appraise() | Malformed() | FramesDropped():
                self._on_remark(event, now)
                return []
        raise LocalProtocolError(f"not an event of gossip: {event!r}")

    def poll(self, now: float) -> list[GossipOutput]:
        """Ask anew and tell ids where it is time; beat, if it is: mend the mesh, tell ids, forget what is old."""
        outputs = self._ask_anew(now) + self._tell_alone(now)
        if self._heartbeat is not None and now >= self._heartbeat:
            outputs += self._on_heartbeat(now)
        return outputs

    def _on_heartbeat(self, now: float) -> list[GossipOutput]:
        self._heartbeat = now + self._config.heartbeat_s
        self._beat += 1
        self._forget(now)
        outputs: list[GossipOutput] = []
        for topic in self._meshes.topics:
            outputs += self._meshes.mend(topic, self._beat, now)
            outputs += self._tell_ids(topic, now)
        for topic in self._cache.topics() if self._behind else ():
            if topic not in self._meshes:  # we publish there without taking it
                outputs += self._tell_ids(topic, now)
        self._behind.clear()
        self._cache.shift()
        self._beat_at = now
        return outputs

    # -- peers and topics --------------------------------------------------------------------------

    def _on_connected(self, event: PeerConnected, now: float) -> list[GossipOutput]:
        peer = event.peer
        if peer == self._own:
            raise LocalProtocolError("a machine is no peer of itself")
        self._on_gone(peer, now)  # a new connection: the peer has forgotten what we told it
        self._peers.add(peer, outbound=event.outbound)
        self._scores.connected(peer, event.address)
        topics = tuple((topic, True) for topic in self._meshes.topics)
        return [_send(peer, Frame(subscribe=topics))] if topics else []

    def _on_gone(self, peer: PeerId, now: float) -> list[GossipOutput]:
        if self._peers.get(peer) is not None:
            self._meshes.drop(peer, now)
            self._peers.remove(peer)
            self._wants.gone(peer, now)
            self._scores.gone(peer, now)
        return []

    def _on_remark(self, event: Appraise | Malformed | FramesDropped, now: float) -> None:
        if self._peers.get(event.peer) is None:
            return
        match event:
            case Appraise(peer, score):
                self._scores.appraise(peer, score)
            case Malformed(peer):
                self._scores.offended(peer, now)
            case FramesDropped(peer):
                self._behind[peer] = None

    def _on_subscribe(self, topic: str, now: float) -> list[GossipOutput]:
        parse_own_topic(topic)
        if topic in self._meshes:
            return []
        if len(self._meshes.topics) >= MAX_TOPICS:
            raise LocalProtocolError(f"{MAX_TOPICS} topics are subscribed already")
        frame = to_value(Frame(subscribe=((topic, True),)))
        told: list[GossipOutput] = [SendFrame(peer, frame) for peer in self._peers]
        return told + self._meshes.join(topic, now)

    def _on_unsubscribe(self, topic: str) -> list[GossipOutput]:
        if topic not in self._meshes:
            return []
        mesh = self._meshes.leave(topic)
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
        least, score = self._limits.publish_threshold, self._scores.score
        targets = [peer for peer in self._peers.takers(topic) if score(peer, now) >= least]
        return _forward(targets, topic, payload)

    def _on_message(self, peer: PeerId, topic: str, payload: bytes, now: float) -> list[GossipOutput]:
        if topic not in self._meshes:
            return []
        key = message_id(topic, payload)
        if asked := self._wants.came(key, peer):
            self._scores.promise(peer, now, kept=True)
        if key in self._seen:
            return self._on_duplicate(key, peer, topic, now)
        if len(self._pending) >= self._config.max_pending:
            return []
        self._seen.add(key, now)
        self._pending[key] = _Pending(topic, payload, {peer: None}, asked)
        return [Validate(key, topic, payload, peer), *self._refuse_copies(key, peer, topic, len(payload))]

    def _on_duplicate(self, key: bytes, peer: PeerId, topic: str, now: float) -> list[GossipOutput]:
        pending = self._pending.get(key)
        if pending is not None:
            pending.senders[peer] = None
        elif key in self._rejected:
            return [self._blame(peer, topic, now)]
        else:
            self._scores.came_again(key, peer, now)
            self._echoes.heard(key, peer)
        return []

    def _refuse_copies(self, key: bytes, source: PeerId, topic: str, size: int) -> list[GossipOutput]:
        """A large message is here, be it good or not: nobody need send it once more."""
        if size < self._config.large:
            return []
        frame = to_value(Frame(idontwant=(key,)))
        return [SendFrame(peer, frame) for peer in self._meshes.of(topic) if peer != source]

    def _on_validated(
        self, key: bytes, verdict: Verdict, origin: PeerId | None, now: float
    ) -> list[GossipOutput]:
        message = self._pending.pop(key, None)
        if message is None:
            return []
        match verdict:
            case Verdict.REJECT:
                self._rejected.add(key, now)
                return [self._blame(peer, message.topic, now) for peer in message.senders]
            case Verdict.LATER:
                self._seen.discard(key)
            case Verdict.ACCEPT:
                return self._accept(key, message, origin, now)
        return []

    def _accept(self, key: bytes, message: _Pending, origin: PeerId | None, now: float) -> list[GossipOutput]:
        topic, senders, mesh = message.topic, message.senders, self._meshes.of(message.topic)
        self._cache.put(key, topic, message.payload)
        # Of a large message others were told that it is here: they owe no copy.
        measure = origin if len(message.payload) < self._config.large else None
        self._scores.accepted(key, topic, measure, senders, mesh, now)
        first = next(iter(senders))
        self._echoes.passed(Alone(key, topic, first if message.asked else None), senders, mesh, now)
        targets = [peer for peer in mesh if peer not in senders and not self._has(peer, key)]
        return [Deliver(topic, message.payload, first), *_forward(targets, topic, message.payload)]

    def _has(self, peer: PeerId, key: bytes) -> bool:
        known = self._peers.get(peer)
        return known is not None and known.refuses(key, self._beat)

    def _blame(self, peer: PeerId, topic: str, now: float) -> Misbehaved:
        self._scores.invalid(peer, topic, now)
        return Misbehaved(peer, "invalid message")

    # -- frames ------------------------------------------------------------------------------------

    def _on_frame(self, peer: PeerId, frame: Frame, now: float) -> list[GossipOutput]:
        known = self._peers.get(peer)
        if known is None:
            return []
        outputs: list[GossipOutput] = []
        for topic, wanted in frame.subscribe:
            outputs += self._on_peer_topic(peer, known, topic, wanted, now)
        for topic, seconds in frame.prune:
            self._meshes.on_prune(topic, peer, seconds, now)
        # Subscriptions and prunes are told once, so they count even from one that is graylisted.
        score = self._scores.score(peer, now)
        if score < self._limits.graylist_threshold:
            return outputs
        for topic in frame.graft:
            outputs += self._meshes.on_graft(topic, peer, now)
        for topic, payload in frame.publish:
            outputs += self._on_message(peer, topic, payload, now)
        for key in frame.idontwant:
            self._echoes.heard(key, peer)
            known.refuse(key, self._beat, self._config.unwanted_beats, self._config.max_unwanted)
        if score >= self._limits.gossip_threshold:
            outputs += self._on_ihave(peer, known, frame.ihave, now)
            outputs += self._on_iwant(peer, frame.iwant)
        return outputs

    def _on_peer_topic(
        self, peer: PeerId, known: Peer, topic: str, wanted: bool, now: float
    ) -> list[GossipOutput]:
        if not wanted:
            self._meshes.leaves(topic, peer, now)
            self._peers.leaves(peer, known, topic)
            return []
        if topic in known.topics:
            return []
        if len(known.topics) >= MAX_TOPICS:
            self._scores.offended(peer, now)
            return [Misbehaved(peer, f"subscribed to more than {MAX_TOPICS} topics")]
        self._peers.takes(peer, known, topic)
        ids = self._cache.ids(topic, self._config.history)[:MAX_IDS] if self._may_gossip(peer, now) else ()
        grafted = self._meshes.welcome(topic, peer, now)
        frame = Frame(ihave=((topic, tuple(ids)),) if ids else (), graft=(topic,) if grafted else ())
        return [_send(peer, frame)] if ids or grafted else []

    def _may_gossip(self, peer: PeerId, now: float) -> bool:
        return self._scores.score(peer, now) >= self._limits.gossip_threshold

    def _on_ihave(
        self, peer: PeerId, known: Peer, told: tuple[tuple[str, tuple[bytes, ...]], ...], now: float
    ) -> list[GossipOutput]:
        if not told:
            return []
        known.count_from(self._beat)
        known.ihaves += 1
        if known.ihaves > self._config.max_ihaves:
            return []
        keys = dict.fromkeys(key for topic, ids in told if topic in self._meshes for key in ids)
        room = min(MAX_IDS, self._config.max_asked - known.asked)
        unseen = [key for key in keys if key not in self._seen]
        worth = self._worth(peer, now) if unseen else NO_WORTH
        lacking: list[bytes] = []
        for key in unseen:
            if len(lacking) >= room:
                break
            if self._wants.told(key, peer, now, worth):
                lacking.append(key)
        known.asked += len(lacking)
        return [_send(peer, Frame(iwant=tuple(lacking)))] if lacking else []

    def _on_iwant(self, peer: PeerId, keys: tuple[bytes, ...]) -> list[GossipOutput]:
        found = [self._cache.take(key, peer, self._config.max_served) for key in keys]
        return [_send(peer, Frame(publish=(message,))) for message in found if message is not None]

    # -- what time brings --------------------------------------------------------------------------

    def _ask_anew(self, now: float) -> list[GossipOutput]:
        """Messages that did not come are asked of the next who has them."""
        ask = self._wants.tick(now, lambda peer: self._worth(peer, now))
        return [
            _send(peer, Frame(iwant=tuple(keys[at : at + MAX_IDS])))
            for peer, keys in ask.items()
            for at in range(0, len(keys), MAX_IDS)
        ]

    def _worth(self, peer: PeerId, now: float) -> Worth:
        return self._scores.use(peer, now), self._scores.score(peer, now)

    def _tell_alone(self, now: float) -> list[GossipOutput]:
        """Messages that our mesh did not echo are told to everybody else at once; who sent one on being asked is
        better for the mesh than those in it."""
        outputs: list[GossipOutput] = []
        told: dict[str, list[bytes]] = {}
        for key, topic, saviour in self._echoes.alone(now):
            told.setdefault(topic, []).append(key)
            if saviour is not None:
                outputs += self._meshes.take_in(topic, saviour, now)
        for topic, keys in told.items():
            frame, mesh = to_value(Frame(ihave=((topic, tuple(keys[:MAX_IDS])),))), self._meshes.of(topic)
            others = [peer for peer in self._peers.takers(topic) if peer not in mesh]
            outputs += [SendFrame(peer, frame) for peer in others if self._may_gossip(peer, now)]
        return outputs

    def _tell_ids(self, topic: str, now: float) -> list[GossipOutput]:
        ids = self._cache.ids(topic, self._config.history_told)[:MAX_IDS]
        if not ids:
            return []
        mesh, behind = self._meshes.of(topic), self._behind
        told, others = [], []
        for peer in self._peers.takers(topic):
            # Who came into the mesh since the last beat did not get what came before.
            if peer in behind or mesh.get(peer, 0.0) > self._beat_at:
                told.append(peer)
            elif peer not in mesh:
                others.append(peer)
        told += [peer for peer in self._in_turn(others) if self._may_gossip(peer, now)]
        frame = to_value(Frame(ihave=((topic, tuple(ids)),)))
        return [SendFrame(peer, frame) for peer in told]

    def _in_turn(self, others: list[PeerId]) -> list[PeerId]:
        """Whose turn it is to hear ids: all, or where they are many, each once while a message is told of."""
        if len(others) <= self._config.degree_lazy:
            return others
        rounds = self._config.history_told
        return [peer for peer in others if self._peers.has_turn(peer, self._beat, rounds)]

    def _forget(self, now: float) -> None:
        for peer in self._wants.broken():
            self._scores.promise(peer, now, kept=False)
        self._seen.expire(now)
        self._rejected.expire(now)
        self._meshes.expire(now)
        self._scores.expire(now)


def parse_own_topic(topic: str) -> None:
    """LocalProtocolError for a topic that no peer would take."""
    if not 1 <= len(topic) <= 128 or not topic.isprintable():
        raise LocalProtocolError(f"a topic is 1 to 128 printable characters, not {topic!r}")


def _send(peer: PeerId, frame: Frame) -> SendFrame:
    return SendFrame(peer, to_value(frame))


def _forward(peers: Iterable[PeerId], topic: str, payload: bytes) -> list[GossipOutput]:
    frame = {"publish": [[topic, payload]]}
    return [SendFrame(peer, frame) for peer in peers]
