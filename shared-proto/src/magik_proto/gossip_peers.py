"""The connected peers of a gossip machine: which topics they take, and what they asked for lately."""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping
from types import MappingProxyType
from typing import Final

import attrs

from magik_proto.identity import PeerId

_NOBODY: Final[Mapping[PeerId, None]] = MappingProxyType({})


@attrs.define
class Peer:
    """One connected peer."""

    outbound: bool  # we dialled it
    number: int  # of its connection, counted by us
    topics: dict[str, None] = attrs.field(factory=dict)  # an ordered set
    beat: int = -1  # the heartbeat that the next two count in
    asked: int = 0  # ids asked of it
    ihaves: int = 0  # frames with ids from it
    unwanted: dict[bytes, int] | None = None  # ids that it has -> the heartbeat at which to forget that

    def count_from(self, beat: int) -> None:
        """Begin to count anew with a new heartbeat."""
        if self.beat != beat:
            self.beat, self.asked, self.ihaves = beat, 0, 0

    def refuse(self, key: bytes, beat: int, life: int, limit: int) -> None:
        """Remember that it has a message, for `life` heartbeats; at `limit` of them it is not remembered."""
        if self.unwanted is None:
            self.unwanted = {}
        while self.unwanted and self.unwanted[(oldest := next(iter(self.unwanted)))] <= beat:
            del self.unwanted[oldest]
        if len(self.unwanted) < limit:
            self.unwanted.setdefault(key, beat + life)

    def refuses(self, key: bytes, beat: int) -> bool:
        """Whether it has said to have a message."""
        return self.unwanted is not None and self.unwanted.get(key, beat) > beat


class Peers:
    """Connected peers, by id and by topic, both in the order in which they came."""

    def __init__(self) -> None:
        self._peers: dict[PeerId, Peer] = {}
        self._takers: dict[str, dict[PeerId, None]] = {}
        self._count = 0

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._peers)

    def get(self, peer: PeerId) -> Peer | None:
        """What is known of a connected peer."""
        return self._peers.get(peer)

    def add(self, peer: PeerId, *, outbound: bool) -> None:
        """A peer is connected, and has no topics yet."""
        self._count += 1
        self._peers[peer] = Peer(outbound, self._count)

    def remove(self, peer: PeerId) -> None:
        """A peer is not connected any more."""
        known = self._peers.pop(peer, None)
        for topic in known.topics if known is not None else ():
            self._drop_taker(topic, peer)

    def takers(self, topic: str) -> KeysView[PeerId]:
        """Who takes a topic."""
        return self._takers.get(topic, _NOBODY).keys()

    def is_outbound(self, peer: PeerId) -> bool:
        """Whether we dialled it: nobody can make us dial, so such peers are harder to plant."""
        known = self._peers.get(peer)
        return known is not None and known.outbound

    def has_turn(self, peer: PeerId, beat: int, rounds: int) -> bool:
        """Whether it is the peer's turn: once in so many beats, whoever else comes and goes."""
        return self._peers[peer].number % rounds == beat % rounds

    def takes(self, peer: PeerId, known: Peer, topic: str) -> None:
        """A peer takes a topic from now on."""
        known.topics[topic] = None
        self._takers.setdefault(topic, {})[peer] = None

    def leaves(self, peer: PeerId, known: Peer, topic: str) -> None:
        """A peer takes a topic no longer."""
        if topic in known.topics:
            del known.topics[topic]
            self._drop_taker(topic, peer)

    def _drop_taker(self, topic: str, peer: PeerId) -> None:
        takers = self._takers[topic]
        del takers[peer]
        if not takers:
            del self._takers[topic]
