"""Whom a machine has in its meshes: grafts, prunes and their back-off, after GossipSub v1.1.

The peers of a topic's mesh get its messages at once.  Who has a bad score is put out, better ones are let in,
and some of them are peers that we dialled, for nobody can make us dial (`degree_out`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from magik_proto.gossip_frames import MAX_BACKOFF_S, Frame, to_value
from magik_proto.gossip_peers import Peers
from magik_proto.gossip_score import PeerScores
from magik_proto.gossip_types import GossipConfig, GossipOutput, SendFrame
from magik_proto.identity import PeerId
from magik_proto.machine import RandomSource, shuffled


class Meshes:
    """The meshes of all own topics.  Topics and peers are checked by the caller."""

    def __init__(self, rng: RandomSource, config: GossipConfig, peers: Peers) -> None:
        self._rng = rng
        self._config = config
        self._peers = peers
        self._since: dict[str, dict[PeerId, float]] = {}  # for each own topic: since when who is in its mesh
        self._backoff: dict[tuple[str, PeerId], float] = {}
        self._pruned_at: dict[tuple[str, PeerId], float] = {}
        self.scores = PeerScores(config.score, self._since)

    def __contains__(self, topic: str) -> bool:
        return topic in self._since

    @property
    def topics(self) -> tuple[str, ...]:
        """Own topics, in the order in which they were taken."""
        return tuple(self._since)

    def of(self, topic: str) -> Mapping[PeerId, float]:
        """The topic's mesh: each peer with the time since when it is in it.  Empty for topics of others."""
        return self._since.get(topic) or {}

    # -- own topics --------------------------------------------------------------------------------

    def join(self, topic: str, now: float) -> list[GossipOutput]:
        """Take a topic, and graft at once."""
        self._since[topic] = {}
        return self._graft(topic, self._candidates(topic, now), self._config.degree, now)

    def leave(self, topic: str) -> Mapping[PeerId, float]:
        """Take it no longer; its mesh as it was."""
        self.scores.left(topic)
        return self._since.pop(topic)

    # -- what peers do -----------------------------------------------------------------------------

    def drop(self, peer: PeerId, now: float) -> None:
        """A peer is gone."""
        for topic in self._since:
            self.leaves(topic, peer, now)

    def leaves(self, topic: str, peer: PeerId, now: float) -> None:
        """A peer is in the topic's mesh no longer; what it owed is not forgiven."""
        if self.of(topic) and self._since[topic].pop(peer, None) is not None:
            self.scores.pruned(peer, topic, now)

    def welcome(self, topic: str, peer: PeerId, now: float) -> bool:
        """Take a new taker of a topic in, while the mesh is not full; whether it is."""
        mesh = self._since.get(topic)
        if mesh is None or len(mesh) >= self._config.degree or not self._may_graft(topic, peer, now):
            return False
        mesh.setdefault(peer, now)
        return True

    def on_graft(self, topic: str, peer: PeerId, now: float) -> list[GossipOutput]:
        """A peer took us into its mesh: do the same, or tell it off."""
        mesh = self._since.get(topic)
        if mesh is None or peer in mesh:
            return []
        if now < self._backoff.get((topic, peer), now):
            early = now - self._pruned_at.get((topic, peer), now) < self._config.graft_flood_s
            self.scores.offended(peer, now, 2.0 if early else 1.0)
            return [self._prune(topic, peer, now)]
        full = len(mesh) >= self._config.degree_high and not self._peers.is_outbound(peer)
        if full or self.scores.is_negative(peer, now):
            return [self._prune(topic, peer, now)]
        mesh[peer] = now
        return []

    def on_prune(self, topic: str, peer: PeerId, seconds: int, now: float) -> None:
        """A peer put us out of its mesh."""
        if topic in self._since:
            self.leaves(topic, peer, now)
            self._back_off(topic, peer, now + min(seconds, MAX_BACKOFF_S))

    def take_in(self, topic: str, peer: PeerId, now: float) -> list[GossipOutput]:
        """Graft one that has been of use, even into a full mesh: who is of less goes at the heartbeat."""
        mesh = self.of(topic)
        room = len(mesh) <= self._config.degree_high
        if not room or peer in mesh or peer not in self._peers.takers(topic):
            return []
        return self._graft(topic, [peer], 1, now) if self._may_graft(topic, peer, now) else []

    # -- the heartbeat -----------------------------------------------------------------------------

    def mend(self, topic: str, beat: int, now: float) -> list[GossipOutput]:
        """Put out who has a bad score, then see to the number, the dialled ones, and now and then the quality."""
        config, mesh = self._config, self._since[topic]
        bad = [peer for peer in mesh if self.scores.is_negative(peer, now)]
        outputs: list[GossipOutput] = [self._prune(topic, peer, now) for peer in bad]
        if len(mesh) < config.degree_low:
            outputs += self._graft(topic, self._candidates(topic, now), config.degree - len(mesh), now)
        elif len(mesh) > config.degree_high:
            outputs += [self._prune(topic, peer, now) for peer in self._surplus(mesh, now)]
        lacking = config.degree_out - sum(map(self._peers.is_outbound, mesh))
        if lacking > 0 and len(mesh) >= config.degree_low:
            outputs += self._graft(topic, self._candidates(topic, now, dialled=True), lacking, now)
        if beat % config.opportunistic_beats == 0:
            outputs += self._better(topic, now)
        return outputs

    def expire(self, now: float) -> None:
        """Forget back-offs that are over."""
        # One heartbeat more than was said: the other side counts from when it sent (v1.1, slack).
        over = [k for k, until in self._backoff.items() if now >= until + self._config.heartbeat_s]
        for key in over:
            del self._backoff[key]
            self._pruned_at.pop(key, None)

    def _surplus(self, mesh: Mapping[PeerId, float], now: float) -> list[PeerId]:
        """Who goes of a mesh that is too large: the best stay, then chance decides, but dialled ones are kept."""
        config = self._config
        order = shuffled(self._rng, mesh)
        order.sort(key=lambda peer: -self.scores.score(peer, now))
        order = order[: config.degree_score] + shuffled(self._rng, order[config.degree_score :])
        kept = order[: config.degree]
        lacking = config.degree_out - sum(map(self._peers.is_outbound, kept))
        if lacking > 0:
            dialled = [peer for peer in order[config.degree :] if self._peers.is_outbound(peer)][:lacking]
            kept = kept[: config.degree - len(dialled)] + dialled
        return [peer for peer in order if peer not in kept]

    def _better(self, topic: str, now: float) -> list[GossipOutput]:
        """Where half the mesh is of little use, graft some that are better (v1.1, opportunistic grafting)."""
        scores = sorted(self.scores.score(peer, now) for peer in self._since[topic])
        if (
            len(scores) < 2
            or (middle := scores[len(scores) // 2]) >= self._config.score.opportunistic_threshold
        ):
            return []
        better = [peer for peer in self._candidates(topic, now) if self.scores.score(peer, now) > middle]
        return self._graft(topic, better, self._config.opportunistic_peers, now)

    def _graft(self, topic: str, among: Iterable[PeerId], count: int, now: float) -> list[GossipOutput]:
        chosen = shuffled(self._rng, among)[:count]
        self._since[topic].update(dict.fromkeys(chosen, now))
        frame = to_value(Frame(graft=(topic,)))
        return [SendFrame(peer, frame) for peer in chosen]

    def _prune(self, topic: str, peer: PeerId, now: float) -> SendFrame:
        self.leaves(topic, peer, now)
        self._back_off(topic, peer, now + self._config.prune_backoff_s)
        self._pruned_at[topic, peer] = now
        return SendFrame(peer, to_value(Frame(prune=((topic, int(self._config.prune_backoff_s)),))))

    def _candidates(self, topic: str, now: float, *, dialled: bool = False) -> list[PeerId]:
        mesh, peers = self._since[topic], self._peers
        takers = [p for p in peers.takers(topic) if p not in mesh and (not dialled or peers.is_outbound(p))]
        return [peer for peer in takers if self._may_graft(topic, peer, now)]

    def _may_graft(self, topic: str, peer: PeerId, now: float) -> bool:
        # What is still remembered counts, with its slack: to graft a moment early would be an offence.
        return (topic, peer) not in self._backoff and not self.scores.is_negative(peer, now)

    def _back_off(self, topic: str, peer: PeerId, until: float) -> None:
        key = (topic, peer)
        until = max(until, self._backoff.pop(key, until))
        while len(self._backoff) >= self._config.max_backoffs:
            del self._backoff[(oldest := next(iter(self._backoff)))]
            self._pruned_at.pop(oldest, None)
        self._backoff[key] = until
