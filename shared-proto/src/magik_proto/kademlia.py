"""Kademlia's space and routing table: who is near what (Maymounkov and Mazières, 2002).

A peer's position is the SHA-256 of its id, so that a key, which is a hash of a name, and a peer are points
of the same space; the distance of two positions is their XOR.  All here is decided from peer ids, answers
and the time.  How to find out more is `magik_proto.lookup`; how it is used, `magik_proto.dht`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

import attrs

from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId

BITS = 256
SPACE = 1 << BITS
K = 20  # protocol.md "DHT refresh": bucket size, and how many peers a lookup ends with
ALPHA = 3  # likewise: queries under way at once
MAX_ADDRESSES = 4  # of one contact: two networks, each with IPv4 and IPv6 (guess)
CROWD = 2  # peers of one network whose places in a full bucket are not at a newcomer's disposal (guess)


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


@attrs.frozen(eq=False, repr=False)
class Contact:
    """A peer and where to reach it: at most `MAX_ADDRESSES` of ``ip:port``, the best first.

    Immutable and compared by identity, so that many tables can share one; `place` is the position as a
    number.
    """

    peer: PeerId
    addrs: tuple[str, ...] = ()
    place: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "place", int.from_bytes(position(self.peer), "big"))

    @property
    def network(self) -> str:
        """What a crowd of identities on one computer has in common: the IP address; empty if none is
        told."""
        return self.addrs[0].rpartition(":")[0] if self.addrs else ""

    def __repr__(self) -> str:
        return f"Contact({self.peer.short}, {', '.join(self.addrs)})"


class _Bucket:
    """At most k peers of one distance, the least recently seen first, and one that waits for a place."""

    __slots__ = ("peers", "pinged", "waiting")

    def __init__(self) -> None:
        self.peers: list[Contact] = []
        self.waiting: Contact | None = None  # takes the place of `pinged` if that does not answer
        self.pinged: PeerId | None = None

    def find(self, peer: PeerId) -> Contact | None:
        """The bucket's contact for a peer."""
        return next((contact for contact in self.peers if contact.peer == peer), None)


class RoutingTable:
    """At most `k` peers for each of 256 distances; the longest known live ones stay.

    Only peers that have proved themselves belong here; whether they have is the caller's to know.  A new
    peer for a full bucket waits until the least recently seen one has been asked: if that answers, the new
    one is dropped.  While one waits, further new ones are dropped.  A peer that failed is kept as *stale*
    as long as nobody wants its place: it is told to nobody, and serves to find the others again after a
    partition.  A full bucket that is crowded by one network gives a place of that network to a newcomer
    of another.
    """

    def __init__(self, own: PeerId, k: int = K) -> None:
        self._own = own
        self._place = Contact(own).place
        self._k = k
        self._buckets: dict[int, _Bucket] = {}
        self._stale: dict[PeerId, None] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many live peers are held."""
        return self._count - len(self._stale)

    def __contains__(self, peer: PeerId) -> bool:
        return self.get(peer) is not None

    def get(self, peer: PeerId) -> Contact | None:
        """The contact held for a peer, stale or not."""
        bucket = self._buckets.get(self.bucket_of(peer))
        return None if bucket is None else bucket.find(peer)

    def is_stale(self, peer: PeerId) -> bool:
        """Whether a peer is held though it failed."""
        return peer in self._stale

    def bucket_of(self, peer: PeerId) -> int:
        """0 for the half of the space that is farthest, up to 255; -1 for the own id."""
        return self._index(Contact(peer).place)

    @property
    def depth(self) -> int:
        """The index of the nearest bucket that holds anyone; -1 for an empty table."""
        return max((index for index, bucket in self._buckets.items() if bucket.peers), default=-1)

    def all(self) -> Iterator[Contact]:
        """All live peers, the farthest first."""
        for index in sorted(self._buckets):
            yield from (c for c in self._buckets[index].peers if c.peer not in self._stale)

    def stale(self) -> tuple[PeerId, ...]:
        """All stale peers, the longest stale first."""
        return tuple(self._stale)

    def closest(self, key: bytes, n: int | None = None) -> list[Contact]:
        """The live peers nearest to a position, at most `n` (k), nearest first.

        Buckets are walked outward from the key, so that few are looked into (see `_outward`).
        """
        target = int.from_bytes(key, "big")
        wanted = self._k if n is None else n
        found: list[Contact] = []
        for bucket in self._outward(target):
            live = [contact for contact in bucket.peers if contact.peer not in self._stale]
            live.sort(key=lambda contact: contact.place ^ target)
            found += live
            if len(found) >= wanted:
                break
        return found[:wanted]

    def has_room(self, peer: PeerId) -> bool:
        """Whether a peer that is not held would get a place at once."""
        bucket = self._buckets.get(self.bucket_of(peer))
        if bucket is None or len(bucket.peers) < self._k:
            return True
        return any(contact.peer in self._stale for contact in bucket.peers)

    def seen(self, contact: Contact) -> Contact | None:
        """A peer proved to be there: it is held if there is a place.

        Returns whom to ask whether it is still there, to be followed by `seen` or `failed` of that one.
        The own id is a LocalProtocolError.
        """
        if contact.peer == self._own:
            raise LocalProtocolError("a machine does not hold itself in its table")
        bucket = self._buckets.setdefault(self._index(contact.place), _Bucket())
        if contact.peer == bucket.pinged:
            bucket.pinged = bucket.waiting = None
        known = bucket.find(contact.peer)
        if known is not None:
            self._remove(bucket, known)
        elif len(bucket.peers) >= self._k and not self._make_room(bucket, contact):
            return self._ask_oldest(bucket, contact)
        bucket.peers.append(contact if contact.addrs or known is None else known)
        self._count += 1
        return None

    def failed(self, peer: PeerId) -> None:
        """A peer did not answer: stale from now on, or gone if another waits for its place."""
        bucket = self._buckets.get(self.bucket_of(peer))
        contact = None if bucket is None else bucket.find(peer)
        if bucket is None or contact is None:
            return
        if peer == bucket.pinged:
            waiting, bucket.pinged, bucket.waiting = bucket.waiting, None, None
            if waiting is not None:
                self._remove(bucket, contact)
                bucket.peers.append(waiting)
                self._count += 1
                return
        self._stale[peer] = None

    def _index(self, place: int) -> int:
        return BITS - (self._place ^ place).bit_length() if place != self._place else -1

    def _outward(self, target: int) -> Iterator[_Bucket]:
        """Buckets by their distance from a target; whoever is in an earlier one is nearer.

        Bucket i holds those who differ from us at bit i and not before.  Where the target differs from us
        at that bit too, they agree with it one bit longer than all nearer buckets do: such buckets come
        first, the farthest from us leading; those where it does not differ come after, nearest first.
        """
        apart = self._place ^ target
        indexes = sorted(self._buckets)
        for index in indexes:
            if apart >> (BITS - 1 - index) & 1:
                yield self._buckets[index]
        for index in reversed(indexes):
            if not apart >> (BITS - 1 - index) & 1:
                yield self._buckets[index]

    def _remove(self, bucket: _Bucket, contact: Contact) -> None:
        bucket.peers.remove(contact)
        self._stale.pop(contact.peer, None)
        self._count -= 1

    def _make_room(self, bucket: _Bucket, newcomer: Contact) -> bool:
        """Take a stale peer's place, or one of a network that crowds the bucket and is not the newcomer's."""
        spare = next((contact for contact in bucket.peers if contact.peer in self._stale), None)
        if spare is None:
            crowds = Counter(contact.network for contact in bucket.peers)
            crowds[newcomer.network] += 1
            largest = max(crowds.values())
            if largest > CROWD and crowds[newcomer.network] < largest:
                # The newest of the crowd: who has been there for longest is the likeliest to stay.
                spare = next(c for c in reversed(bucket.peers) if crowds[c.network] == largest)
        if spare is None:
            return False
        self._remove(bucket, spare)
        return True

    def _ask_oldest(self, bucket: _Bucket, newcomer: Contact) -> Contact | None:
        if bucket.pinged is not None:
            return None
        bucket.pinged, bucket.waiting = bucket.peers[0].peer, newcomer
        return bucket.peers[0]


# -- how many there are ----------------------------------------------------------------------------


def sample_of(places: Iterable[int], target: int, n: int = K) -> tuple[int, int] | None:
    """How dense the space is around a target: the `n` nearest places as (how many, distance of the last).

    None when they are fewer than two, which say nothing.
    """
    apart = sorted(place ^ target for place in places)[:n]
    return (len(apart), apart[-1]) if len(apart) > 1 and apart[-1] else None


def estimate_size(samples: Iterable[tuple[int, int]]) -> int:
    """How many peers there are by samples from different parts of the space; 0 without any.

    Positions are evenly spread, so with N peers the m-th nearest is about m/N of the space away;
    (m−1)/d is the unbiased estimate of a Poisson process, and samples add up.  With s samples of m the
    standard error is about 1/√(s·m).
    """
    counts, distances = 0, 0
    for count, far in samples:
        counts, distances = counts + count - 1, distances + far
    return max(1, counts * SPACE // distances) if distances else 0
