"""What gossip remembers: ids seen, and messages that it can send again.  Both are bounded."""

from __future__ import annotations

import attrs

from magik_proto.identity import PeerId


class SeenCache:
    """Ids seen within `life_s` seconds.  At `capacity` the oldest is forgotten: its message may come once
    more, and whoever must not take it twice (the replay filter behind validation) still does not.
    """

    def __init__(self, life_s: float, capacity: int) -> None:
        self._life_s = life_s
        self._capacity = capacity
        self._seen: dict[bytes, float] = {}  # id -> when to forget, in that order

    def __len__(self) -> int:
        return len(self._seen)

    def __contains__(self, key: bytes) -> bool:
        return key in self._seen

    def add(self, key: bytes, now: float) -> bool:
        """Remember an id; whether it is new."""
        if key in self._seen:
            return False
        if len(self._seen) >= self._capacity:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = now + self._life_s
        return True

    def discard(self, key: bytes) -> None:
        self._seen.pop(key, None)

    def expire(self, now: float) -> None:
        while self._seen and now >= self._seen[(oldest := next(iter(self._seen)))]:
            del self._seen[oldest]


@attrs.define
class _Kept:
    topic: str
    payload: bytes
    heartbeat: int
    served: dict[PeerId, int] = attrs.field(factory=dict)


class MessageCache:
    """Messages of the last `history` heartbeats, at most `max_bytes` of payload: the oldest go first."""

    def __init__(self, history: int, max_bytes: int) -> None:
        self._history = history
        self._max_bytes = max_bytes
        self._bytes = 0
        self._beat = 0
        self._kept: dict[bytes, _Kept] = {}  # in the order of arrival

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: bytes, topic: str, payload: bytes) -> None:
        if key not in self._kept:
            self._kept[key] = _Kept(topic, payload, self._beat)
            self._bytes += len(payload)
        while self._bytes > self._max_bytes:
            self._drop_oldest()

    def take(self, key: bytes, peer: PeerId, limit: int) -> tuple[str, bytes] | None:
        """Topic and payload for a peer that asks, at most `limit` times; None if it is not here or asked
        too often.
        """
        kept = self._kept.get(key)
        if kept is None or kept.served.get(peer, 0) >= limit:
            return None
        kept.served[peer] = kept.served.get(peer, 0) + 1
        return kept.topic, kept.payload

    def ids(self, topic: str, beats: int) -> list[bytes]:
        """Ids of a topic's messages of the last `beats` heartbeats, newest first."""
        first = self._beat - beats
        kept = reversed(self._kept.items())
        return [key for key, message in kept if message.topic == topic and message.heartbeat > first]

    def topics(self) -> tuple[str, ...]:
        """The topics of all messages kept, oldest first."""
        return tuple(dict.fromkeys(message.topic for message in self._kept.values()))

    def shift(self) -> None:
        """A heartbeat: what is older than the history goes."""
        self._beat += 1
        while self._kept and next(iter(self._kept.values())).heartbeat <= self._beat - self._history:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        kept = self._kept.pop(next(iter(self._kept)))
        self._bytes -= len(kept.payload)
