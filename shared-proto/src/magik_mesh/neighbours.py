"""Whom a node wants to be connected with: a policy without I/O.

In a *small* fabric, of no more machines than a node may have connections, with everybody. In a *large* one with
the machines whose positions are nearest to its own (the hash table's neighbourhood: records and lookups in it
cost no handshake), and with as many chosen at random (gossip's mesh lives of those); whom it chose so it keeps
while the connection lasts. All other connections come of calls and of others' choices, and go again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence

from attrs import define, field, frozen

from magik_mesh.addresses import Address
from magik_proto.identity import PeerId


@define
class Neighbours:
    """`maximum` is `NodeConfig.max_connections`; `below(n)` gives a random number from 0 up to n - 1."""

    maximum: int
    below: Callable[[int], int]
    large: bool = False
    _picked: dict[PeerId, None] = field(factory=dict)

    @property
    def close(self) -> int:
        """How many of the nearest: with the random ones half of all, the rest is for calls and others."""
        return max(1, self.maximum // 4)

    @property
    def random(self) -> int:
        """How many others: as many, and two at least, or gossip would have no mesh."""
        return max(2, self.maximum // 4)

    def observe(self, known: int) -> bool:
        """So many other machines are known to be alive; whether that changed what the fabric is held for.

        Large above `maximum`, small again at three quarters of it, so that one machine more or less does not
        make it change all the time.
        """
        before = self.large
        self.large = known > (self.maximum * 3 // 4 if before else self.maximum)
        if not self.large:
            self._picked.clear()
        return self.large != before

    def choose(
        self, nearest: Sequence[PeerId], sample: Iterable[PeerId], connected: Collection[PeerId]
    ) -> frozenset[PeerId] | None:
        """Whom to be connected with now; None: with everybody.

        `nearest` are known peers, the nearest first; `sample` is where random ones come from, looked at
        only if one is lacking. A random one that is not connected by the next time is given up for another.
        """
        if not self.large:
            return None
        near = dict.fromkeys(nearest[: self.close])  # asked for each of the sample whether it is one of them
        self._picked = {peer: None for peer in self._picked if peer in connected and peer not in near}
        if len(self._picked) < self.random:
            self._pick(
                dict.fromkeys(peer for peer in sample if peer not in near and peer not in self._picked)
            )
        return frozenset((*near, *self._picked))

    def _pick(self, pool: Iterable[PeerId]) -> None:
        candidates = list(pool)
        while candidates and len(self._picked) < self.random:
            self._picked[candidates.pop(self.below(len(candidates)))] = None


@frozen
class _Lost:
    since: float
    addresses: tuple[Address, ...]


@define
class Attic:
    """Machines that were lost and given up, with where they were: the way back after a long partition.

    One is tried every `every` seconds, the longest not tried first; each is kept for `life` seconds, at most
    `limit` of them, of which the longest lost goes.
    """

    every: float
    life: float = 24 * 3600.0  # a guess: what is away for longer comes back by its own bootstrap peers
    limit: int = 64  # a guess: as many as a small fabric has
    _lost: OrderedDict[PeerId, _Lost] = field(factory=OrderedDict)  # the next to be tried first
    _next_at: float = 0.0

    def __len__(self) -> int:
        return len(self._lost)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._lost

    def put(self, peer: PeerId, addresses: tuple[Address, ...], now: float) -> None:
        """`peer` was given up; if it is here already, it keeps its time."""
        if peer not in self._lost and len(self._lost) >= self.limit:
            del self._lost[min(self._lost, key=lambda p: (self._lost[p].since, p))]
        self._lost.setdefault(peer, _Lost(now, addresses))

    def remove(self, peer: PeerId) -> None:
        """`peer` is back."""
        self._lost.pop(peer, None)

    def take_due(self, now: float) -> tuple[PeerId, tuple[Address, ...]] | None:
        """Whom to try now, and where, if it is time."""
        for peer in [p for p, lost in self._lost.items() if now - lost.since >= self.life]:
            del self._lost[peer]
        if not self._lost or now < self._next_at:
            return None
        self._next_at = now + self.every
        peer = next(iter(self._lost))
        self._lost.move_to_end(peer)
        return peer, self._lost[peer].addresses
