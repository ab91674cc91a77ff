"""What a machine thinks of its gossip peers, as one number each: GossipSub v1.1's score.

The parts are those of the libp2p specification `gossipsub-v1.1.md`, "Peer Scoring"; P1 … P7 are its names:

- P1 time in our mesh, P2 first deliveries, P3 duty to deliver while in our mesh, P3b duty left undone at the
  end of it, P4 invalid messages: for each topic;
- P5 what the application thinks, P6 how many peers share an address, P7 behaviour: for each peer.

Departures, with their reasons:

- *P3 is a share, not a rate.* Magik's topics are silent for minutes and busy for seconds, so there is no rate
  to expect.  A peer of the mesh owes a share of what its topic carries, and the deficit is between 0 and 1.
  Of one origin one message in a while counts: who is behind us as seen from a single busy origin can never be
  first with its messages, and is not to blame.
- *P6 is bounded*: a site behind one address may lose its place in the mesh, but is never silenced for that.
- *P7 sets kept promises off against broken ones*, so that a bad line is not taken for a lie.

Counters fade by themselves: what is stored is a value and when it was true.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from magik_proto.identity import PeerId


@attrs.frozen
class ScoreConfig:
    """Weights in points, times in seconds.  "spec" is gossipsub-v1.1.md; a value without it is a guess that the
    simulator's sybils have tried.
    """

    gossip_threshold: float = -10.0  # below: no ids to or from the peer; spec, "Score Thresholds": negative
    publish_threshold: float = -50.0  # below: own messages do not go to it; spec: <= gossip threshold
    graylist_threshold: float = -80.0  # below: what it sends is dropped unread; spec: < publish threshold
    opportunistic_threshold: float = (
        1.0  # median of a mesh below: better peers are grafted; spec: small, positive
    )

    fade_s: float = 600.0  # a counter falls to `zero` of its value in so long; spec: "decay"
    fade_invalid_s: float = 3600.0  # the same for invalid messages
    zero: float = 0.01  # a counter below is none; spec: DecayToZero, "recommended value 0.01"
    refresh_s: float = 1.0  # a score is reckoned anew after so long; spec: DecayInterval, at most a heartbeat

    topics_cap: float = 20.0  # the most that all topics together can earn; spec: TopicScoreCap
    mesh_time_weight: float = 1 / 300  # P1, per second
    mesh_time_cap_s: float = 300.0  # spec: "should be small", lest sitting still outweighs bad conduct
    first_weight: float = 0.5  # P2
    first_cap: float = 20.0
    duty_weight: float = (
        -2.0
    )  # P3, at nothing delivered; above P1's most, below what an honest leaf earns with P2
    duty_share: float = 0.2  # of the messages that count; honest peers of a random mesh deliver about half
    duty_least: float = 5.0  # messages that count before anything is owed
    activation_s: float = 30.0  # in the mesh, before a message counts; spec: MeshMessageDeliveriesActivation
    window_s: float = 0.25  # a copy this late still counts; spec: MeshMessageDeliveriesWindow, "small"
    origin_pause_s: float = 10.0  # so long an origin's further messages do not count
    origin_life_s: float = 60.0  # an origin is one of a topic's for so long; presence comes each 60 s
    least_origins: int = 5  # with fewer, nothing is owed: it depends on where they are who hears first
    max_origins: int = 64  # remembered, for each topic; at it: further origins do not count
    failure_weight: float = -2.0  # P3b; as P3
    invalid_weight: float = -20.0  # P4, times the square: one ends gossip, two nearly graylist

    colocation_weight: float = -1.0  # P6, times the square of the surplus
    colocation_free: int = 16  # peers at one address that are nothing strange: a site behind NAT
    colocation_most: float = 9.0  # points: less than the gossip threshold takes
    behaviour_weight: float = -10.0  # P7, times the square of the surplus
    behaviour_free: float = 6.0  # offences that are forgiven; as go-libp2p's users set it

    retain_s: float = 3600.0  # a bad score is kept after the connection; spec: RetainScore
    max_retained: int = 1024  # at it: the one to be forgotten next goes


@attrs.define
class _Topic:
    """A peer's counters for one topic, true at `at`."""

    at: float
    first: float = 0.0
    owed: float = 0.0
    done: float = 0.0
    failure: float = 0.0
    invalid: float = 0.0

    def fade(self, config: ScoreConfig, now: float) -> None:
        passed = now - self.at
        if passed < config.refresh_s:
            return
        self.at = now
        kept = config.zero ** (passed / config.fade_s)
        self.first = _faded(self.first, kept, config.zero)
        self.owed = _faded(self.owed, kept, config.zero)
        self.done = _faded(self.done, kept, config.zero)
        self.failure = _faded(self.failure, kept, config.zero)
        if self.invalid:
            kept = config.zero ** (passed / config.fade_invalid_s)
            self.invalid = _faded(self.invalid, kept, config.zero)

    def deficit(self, config: ScoreConfig) -> float:
        """0 where duty is done or little is owed, 1 where nothing was delivered."""
        if self.owed < config.duty_least:
            return 0.0
        return max(0.0, 1.0 - self.done / (config.duty_share * self.owed))


def _faded(value: float, kept: float, zero: float) -> float:
    value *= kept
    return value if value >= zero else 0.0


@attrs.define
class _Peer:
    topics: dict[str, _Topic] = attrs.field(factory=dict)
    address: str | None = None
    application: float = 0.0
    at: float = 0.0  # when the two below were true
    offences: float = 0.0
    broken: float = 0.0
    forget_at: float | None = None  # only of one that is gone
    score: float = 0.0
    scored_at: float = float("-inf")


@attrs.define
class _Recent:
    """A message that counts, and who of the mesh still owes it."""

    topic: str
    until: float
    owing: dict[PeerId, None]


class PeerScores:
    """Scores of connected peers, and of some that are gone.  `meshes` gives, for each own topic, since when each
    peer is in its mesh; it is only read.

    All calls take the time; none raises.  Memory: a few counters for each connected peer and topic, and
    `max_retained` peers that are gone.
    """

    def __init__(self, config: ScoreConfig, meshes: Mapping[str, Mapping[PeerId, float]]) -> None:
        self._config = config
        self._meshes = meshes
        self._peers: dict[PeerId, _Peer] = {}
        self._gone: dict[PeerId, None] = {}  # in the order in which they are forgotten
        self._at_address: dict[str, int] = {}
        self._origins: dict[str, dict[PeerId, float]] = {}  # by topic: when one counted last, oldest first
        self._recent: dict[bytes, _Recent] = {}

    # -- what is asked -----------------------------------------------------------------------------

    def score(self, peer: PeerId, now: float) -> float:
        """The peer's score, at most `refresh_s` old; 0 for one of whom nothing is known."""
        known = self._peers.get(peer)
        if known is not None and now < known.scored_at + self._config.refresh_s:
            return known.score
        topics = self._topics_score(peer, known, now)
        if known is None:
            return topics
        self._fade(known, now)
        known.score, known.scored_at = topics + self._peer_score(known), now
        return known.score

    def use(self, peer: PeerId, now: float) -> float:
        """How many good messages the peer sent first, less those that it said to have and did not send."""
        known = self._peers.get(peer)
        if known is None:
            return 0.0
        self._fade(known, now)
        for topic in known.topics.values():
            topic.fade(self._config, now)
        return sum(topic.first for topic in known.topics.values()) - known.broken

    def is_negative(self, peer: PeerId, now: float) -> bool:
        """Whether the score is below 0; cheap where nothing bad is known."""
        known = self._peers.get(peer)
        return known is not None and self._may_be_negative(known) and self.score(peer, now) < 0

    def _may_be_negative(self, known: _Peer) -> bool:
        if known.offences or known.broken or known.application < 0 or self._surplus(known):
            return True
        for topic in known.topics.values():  # noqa: SIM110 - a generator costs more than what it looks at
            if topic.owed or topic.failure or topic.invalid:
                return True
        return False

    def _topics_score(self, peer: PeerId, known: _Peer | None, now: float) -> float:
        config, total = self._config, 0.0
        for name, mesh in self._meshes.items():
            since = mesh.get(peer)
            if since is not None:
                total += config.mesh_time_weight * min(now - since, config.mesh_time_cap_s)
            topic = known.topics.get(name) if known is not None else None
            if topic is not None:
                topic.fade(config, now)
                total += self._topic_score(topic, in_mesh=since is not None)
        return min(total, config.topics_cap)

    def _topic_score(self, topic: _Topic, *, in_mesh: bool) -> float:
        config = self._config
        total = config.first_weight * min(topic.first, config.first_cap)
        if in_mesh and topic.owed:
            total += config.duty_weight * topic.deficit(config) ** 2
        return total + config.failure_weight * topic.failure + config.invalid_weight * topic.invalid**2

    def _peer_score(self, known: _Peer) -> float:
        config, total = self._config, known.application
        if surplus := self._surplus(known):
            total += max(config.colocation_weight * surplus**2, -config.colocation_most)
        offences = known.offences + known.broken - config.behaviour_free
        if offences > 0:
            total += config.behaviour_weight * offences**2
        return total

    def _surplus(self, known: _Peer) -> int:
        free = self._config.colocation_free
        if known.address is None or (crowd := self._at_address.get(known.address, 0)) <= free:
            return 0
        return crowd - free

    # -- who is there ------------------------------------------------------------------------------

    def connected(self, peer: PeerId, address: str | None) -> None:
        """A peer is connected; `address` is its host, None where that says nothing (loopback)."""
        self._gone.pop(peer, None)
        known = self._peers.get(peer)
        if known is not None:
            self._leave_address(known)
            known.forget_at = None
        if address is None:
            return
        known = self._of(peer)
        known.address = address
        self._at_address[address] = self._at_address.get(address, 0) + 1

    def gone(self, peer: PeerId, now: float) -> None:
        """A peer is not connected any more: a bad score stays for `retain_s`, a good one does not (spec)."""
        known = self._peers.get(peer)
        if known is None:
            return
        known.scored_at = float("-inf")
        bad = self.score(peer, now) < 0
        self._leave_address(known)
        if not bad:
            del self._peers[peer]
            return
        while len(self._gone) >= self._config.max_retained:
            self._forget(next(iter(self._gone)))
        known.forget_at = now + self._config.retain_s
        self._gone[peer] = None

    def expire(self, now: float) -> None:
        """Forget what is over; once in a heartbeat."""
        while self._recent and now >= self._recent[(oldest := next(iter(self._recent)))].until:
            del self._recent[oldest]
        while self._gone and now >= (self._peers[(first := next(iter(self._gone)))].forget_at or 0.0):
            self._forget(first)

    def left(self, topic: str) -> None:
        """We do not take the topic any more."""
        self._origins.pop(topic, None)
        for known in self._peers.values():
            known.topics.pop(topic, None)

    def _forget(self, peer: PeerId) -> None:
        del self._gone[peer]
        del self._peers[peer]

    def _leave_address(self, known: _Peer) -> None:
        if known.address is None:
            return
        self._at_address[known.address] -= 1
        if not self._at_address[known.address]:
            del self._at_address[known.address]
        known.address = None

    # -- what they do ------------------------------------------------------------------------------

    def accepted(
        self,
        key: bytes,
        topic: str,
        origin: PeerId | None,
        senders: Collection[PeerId],
        mesh: Mapping[PeerId, float],
        now: float,
    ) -> None:
        """A message was found good: the first of `senders` had it first, the others while it was validated.

        With an `origin` it is one that the mesh owes, unless one of that origin was not long ago.
        """
        self._touched(next(iter(senders)), topic, now).first += 1
        if origin is None or not self._counts(topic, origin, now):
            return
        config = self._config
        owing = [
            peer for peer, since in mesh.items() if now - since >= config.activation_s and peer != origin
        ]
        for peer in owing:
            counters = self._touched(peer, topic, now)
            counters.owed += 1
            counters.done += peer in senders
        left = dict.fromkeys(peer for peer in owing if peer not in senders)
        self._recent[key] = _Recent(topic, now + config.window_s, left)

    def came_again(self, key: bytes, peer: PeerId, now: float) -> None:
        """A peer sent what we have: its duty is done if it is not late."""
        recent = self._recent.get(key)
        if recent is None or now > recent.until or recent.owing.pop(peer, self) is self:
            return
        self._touched(peer, recent.topic, now).done += 1

    def pruned(self, peer: PeerId, topic: str, now: float) -> None:
        """A peer leaves our mesh; duty that it left undone stays with it (P3b)."""
        known = self._peers.get(peer)
        counters = known.topics.get(topic) if known is not None else None
        if counters is not None:
            counters.fade(self._config, now)
            counters.failure += counters.deficit(self._config) ** 2
            counters.owed = counters.done = 0.0

    def invalid(self, peer: PeerId, topic: str, now: float) -> None:
        """A peer sent a message that no honest machine would pass on."""
        self._touched(peer, topic, now).invalid += 1
        self._peers[peer].scored_at = float("-inf")

    def offended(self, peer: PeerId, now: float, count: float = 1.0) -> None:
        """A peer did what the protocol forbids."""
        known = self._of(peer)
        self._fade(known, now)
        known.offences += count
        known.scored_at = float("-inf")

    def promise(self, peer: PeerId, now: float, *, kept: bool) -> None:
        """A peer that said to have a message sent it, or did not."""
        known = self._of(peer)
        self._fade(known, now)
        known.broken = max(0.0, known.broken - 1) if kept else known.broken + 1
        known.scored_at = float("-inf")

    def appraise(self, peer: PeerId, value: float) -> None:
        """What the application thinks of a peer, in points (P5); it stays until said otherwise."""
        known = self._of(peer)
        known.application = value
        known.scored_at = float("-inf")

    def _counts(self, topic: str, origin: PeerId, now: float) -> bool:
        config, origins = self._config, self._origins.setdefault(topic, {})
        while origins and now >= origins[(oldest := next(iter(origins)))] + config.origin_life_s:
            del origins[oldest]
        last = origins.get(origin)
        if len(origins) >= config.max_origins if last is None else now < last + config.origin_pause_s:
            return False
        origins.pop(origin, None)
        origins[origin] = now
        return len(origins) >= config.least_origins

    def _of(self, peer: PeerId) -> _Peer:
        known = self._peers.get(peer)
        if known is None:
            known = self._peers[peer] = _Peer()
        return known

    def _touched(self, peer: PeerId, topic: str, now: float) -> _Topic:
        topics = self._of(peer).topics
        counters = topics.get(topic)
        if counters is None:
            counters = topics[topic] = _Topic(now)
        else:
            counters.fade(self._config, now)
        return counters

    def _fade(self, known: _Peer, now: float) -> None:
        if known.offences or known.broken:
            kept = self._config.zero ** (max(0.0, now - known.at) / self._config.fade_s)
            known.offences = _faded(known.offences, kept, self._config.zero)
            known.broken = _faded(known.broken, kept, self._config.zero)
        known.at = now
