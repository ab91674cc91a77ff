"""What keeps a hash table good while nobody asks anything: which part of the space to walk next, and when;
and what the walks tell of the fabric's size.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from magik_proto.kademlia import BITS, Contact, RoutingTable, estimate_size, sample_of
from magik_proto.machine import RandomSource, below

SAMPLES: Final = 8
"""Walks whose findings are the estimate of the fabric's size: an error of about 8 %."""


class Upkeep:
    """The plan of one table. `every_s` is the interval of its walks."""

    def __init__(self, own: Contact, rng: RandomSource, k: int, every_s: float) -> None:
        self._own = own
        self._rng = rng
        self._k = k
        self._every_s = every_s
        self._walked: dict[int, None] = {}  # buckets, the longest not walked first; -1: the own place
        self._samples: deque[tuple[int, int]] = deque(maxlen=SAMPLES)
        self.due: float | None = None

    def plan(self, now: float) -> None:
        """The next walk: up to a quarter early or late, so that who started together does not walk
        together.
        """
        self.due = now + self._every_s * (below(self._rng, 1024) / 2048 + 0.75)

    def next_target(self, table: RoutingTable) -> bytes | None:
        """Where to walk: a random position in the part of the space that was not walked for longest; None:
        to the own place.
        """
        depth = table.depth
        index = next((i for i in range(-1, depth + 1) if i not in self._walked), None)
        if index is None:
            index = next(i for i in self._walked if i <= depth)
        self._walked.pop(index, None)
        self._walked[index] = None
        return None if index < 0 else self._random_key(index)

    def sample(self, target: bytes, closest: tuple[Contact, ...]) -> None:
        """A walk ended; what it found counts if it is as much as a full fabric gives."""
        places = (contact.place for contact in closest)
        sample = sample_of(places, int.from_bytes(target, "big"), self._k)
        if sample is not None and sample[0] == self._k:
            self._samples.append(sample)

    def size(self, table: RoutingTable, key: bytes) -> int:
        """How many peers there are, this one included: see `Dht.size_estimate`."""
        held = len(table)
        if held < self._k:
            return held + 1
        own = sample_of((c.place for c in table.closest(key)), self._own.place, self._k)
        return max(held, estimate_size([*self._samples, *([own] if own else [])])) + 1

    def _random_key(self, index: int) -> bytes:
        """A random position in a bucket's part of the space."""
        bit = BITS - 1 - index
        place = (self._own.place >> bit ^ 1) << bit
        return (place | (self._rng.getrandbits(bit) if bit else 0)).to_bytes(32, "big")
