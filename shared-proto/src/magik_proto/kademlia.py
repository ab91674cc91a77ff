"""Kademlia: who is near what, and how to find out (Maymounkov and Mazières, 2002).

A peer's position is the SHA-256 of its id, so that a key, which is a hash of a name, and a peer are points
of the same space; the distance of two positions is their XOR.  All here is decided from peer ids, answers
and the time.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable

import attrs

from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId

BITS = 256
K = 20  # protocol.md "DHT refresh": bucket size, and how many peers a lookup ends with
ALPHA = 3  # likewise: queries under way at once


def key_of(name: bytes) -> bytes:
    """The 32-byte position of a name."""
    return hashlib.sha256(name).digest()


def position(peer: PeerId) -> bytes:
    """The 32-byte position of a peer."""
    return key_of(peer.raw)


def distance(left: bytes, right: bytes) -> int:
    """How far two positions are apart."""
    return int.from_bytes(left, "big") ^ int.from_bytes(right, "big")


def closest(peers: Iterable[PeerId], key: bytes, n: int) -> list[PeerId]:
    """The `n` peers nearest to a position, nearest first; the same for any order of `peers`."""
    return sorted(set(peers), key=lambda peer: distance(position(peer), key))[:n]


# -- the routing table -----------------------------------------------------------------------------


@attrs.frozen
class PeerSeen:
    """A peer said something of its own accord, or was heard of by someone who is believed."""

    peer: PeerId


@attrs.frozen
class PingAnswered:
    peer: PeerId


@attrs.frozen
class PeerFailed:
    """A peer did not answer, or left."""

    peer: PeerId


TableEvent = PeerSeen | PingAnswered | PeerFailed


@attrs.frozen
class Ping:
    """Ask whether the peer is there, then say `PingAnswered` or `PeerFailed`; silence counts as failure."""

    peer: PeerId


@attrs.define
class _Bucket:
    peers: dict[PeerId, None] = attrs.field(factory=dict)  # least recently seen first
    waiting: PeerId | None = None  # takes the place of `pinged` if that is gone
    pinged: PeerId | None = None
    deadline: float = 0.0


class RoutingTable:
    """At most `k` peers for each of 256 distances; the longest known live ones stay.

    A new peer for a full bucket waits until the least recently seen one has been pinged: if that answers,
    the new one is dropped.  While one waits, further new ones are dropped.
    """

    def __init__(self, own: PeerId, k: int = K, *, ping_timeout_s: float = 5.0) -> None:
        self._own = own
        self._place = position(own)
        self._k = k
        self._ping_timeout_s = ping_timeout_s
        self._buckets: dict[int, _Bucket] = {}

    def __len__(self) -> int:
        return sum(len(bucket.peers) for bucket in self._buckets.values())

    def __contains__(self, peer: PeerId) -> bool:
        bucket = self._buckets.get(self.bucket_of(peer))
        return bucket is not None and peer in bucket.peers

    def bucket_of(self, peer: PeerId) -> int:
        """0 for the half of the space that is farthest, up to 255; -1 for the own id."""
        return BITS - distance(self._place, position(peer)).bit_length() if peer != self._own else -1

    def closest(self, key: bytes, n: int | None = None) -> list[PeerId]:
        """The known peers nearest to a position, at most `n` (k)."""
        known = (peer for bucket in self._buckets.values() for peer in bucket.peers)
        return closest(known, key, self._k if n is None else n)

    def next_timeout(self) -> float | None:
        """When a ping is given up; None: none is under way."""
        deadlines = [bucket.deadline for bucket in self._buckets.values() if bucket.pinged is not None]
        return min(deadlines, default=None)

    def receive(self, event: TableEvent, now: float) -> list[Ping]:
        """Take one event in; the own id is a LocalProtocolError."""
        if event.peer == self._own:
            raise LocalProtocolError("a machine does not hold itself in its table")
        index = self.bucket_of(event.peer)
        match event:
            case PeerSeen(peer) | PingAnswered(peer):
                return self._on_alive(self._buckets.setdefault(index, _Bucket()), peer, now)
            case PeerFailed(peer):
                self._on_failed(self._buckets.get(index, _Bucket()), peer)
        return []

    def poll(self, now: float) -> list[Ping]:
        """Give up peers whose ping was not answered in time."""
        for bucket in self._buckets.values():
            if bucket.pinged is not None and now >= bucket.deadline:
                self._on_failed(bucket, bucket.pinged)
        return []

    def _on_alive(self, bucket: _Bucket, peer: PeerId, now: float) -> list[Ping]:
        if peer == bucket.pinged:
            bucket.pinged = bucket.waiting = None
        if peer in bucket.peers or len(bucket.peers) < self._k:
            bucket.peers.pop(peer, None)
            bucket.peers[peer] = None
            return []
        if bucket.pinged is not None:
            return []
        bucket.pinged, bucket.waiting = next(iter(bucket.peers)), peer
        bucket.deadline = now + self._ping_timeout_s
        return [Ping(bucket.pinged)]

    def _on_failed(self, bucket: _Bucket, peer: PeerId) -> None:
        bucket.peers.pop(peer, None)
        if peer == bucket.waiting:
            bucket.waiting = None
        if peer == bucket.pinged:
            waiting, bucket.pinged, bucket.waiting = bucket.waiting, None, None
            if waiting is not None and len(bucket.peers) < self._k:
                bucket.peers[waiting] = None


# -- one lookup ------------------------------------------------------------------------------------


class _Asked(enum.Enum):
    NOT_YET = enum.auto()
    WAITING = enum.auto()
    ANSWERED = enum.auto()
    FAILED = enum.auto()


@attrs.define
class _Candidate:
    peer: PeerId
    distance: int
    asked: _Asked = _Asked.NOT_YET
    deadline: float = 0.0


@attrs.frozen
class Done:
    """The peers nearest to the target that answered, nearest first."""

    closest: tuple[PeerId, ...]


class Lookup:
    """Finds the `k` peers nearest to a position: `alpha` queries at once, nearest first.

    It ends when the `k` nearest of all that it heard of, failed ones aside, have answered.  A peer's answer
    counts for `k` peers at most, and no more than `max_candidates` are kept, the nearest: a liar costs a
    bounded detour.
    """

    def __init__(
        self,
        target: bytes,
        seeds: Iterable[PeerId],
        k: int = K,
        alpha: int = ALPHA,
        *,
        query_timeout_s: float = 5.0,
        max_candidates: int = 1000,
    ) -> None:
        self._target = target
        self._k = k
        self._alpha = alpha
        self._query_timeout_s = query_timeout_s
        self._max_candidates = max_candidates
        self._known: dict[PeerId, _Candidate] = {}
        self._add(seeds)

    def on_success(self, peer: PeerId, closer: Iterable[PeerId], now: float) -> None:
        """A queried peer answered with the peers that it knows near the target; late answers count too."""
        self._queried(peer).asked = _Asked.ANSWERED
        self._add(list(closer)[: self._k])

    def on_failure(self, peer: PeerId, now: float) -> None:
        """A queried peer did not answer, or nonsense."""
        candidate = self._queried(peer)
        if candidate.asked is _Asked.WAITING:
            candidate.asked = _Asked.FAILED

    def next_timeout(self) -> float | None:
        """When to call `next` without an answer; None: no query is under way."""
        waiting = (c.deadline for c in self._known.values() if c.asked is _Asked.WAITING)
        return min(waiting, default=None)

    def next(self, now: float) -> list[PeerId] | Done:
        """Whom to query now (perhaps nobody: answers are awaited), or the end."""
        for candidate in self._known.values():
            if candidate.asked is _Asked.WAITING and now >= candidate.deadline:
                candidate.asked = _Asked.FAILED
        nearest = [c for c in self._by_distance() if c.asked is not _Asked.FAILED][: self._k]
        if all(c.asked is _Asked.ANSWERED for c in nearest):
            return Done(tuple(c.peer for c in nearest))
        waiting = sum(c.asked is _Asked.WAITING for c in self._known.values())
        chosen = [c for c in nearest if c.asked is _Asked.NOT_YET][: max(0, self._alpha - waiting)]
        for candidate in chosen:
            candidate.asked = _Asked.WAITING
            candidate.deadline = now + self._query_timeout_s
        return [c.peer for c in chosen]

    def _queried(self, peer: PeerId) -> _Candidate:
        candidate = self._known.get(peer)
        if candidate is None or candidate.asked is _Asked.NOT_YET:
            raise LocalProtocolError(f"{peer} was not queried")
        return candidate

    def _add(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            if peer not in self._known:
                self._known[peer] = _Candidate(peer, distance(position(peer), self._target))
        untried = [c for c in self._by_distance() if c.asked is _Asked.NOT_YET]
        for candidate in untried[max(0, self._max_candidates - (len(self._known) - len(untried))) :]:
            del self._known[candidate.peer]

    def _by_distance(self) -> list[_Candidate]:
        return sorted(self._known.values(), key=lambda candidate: candidate.distance)
