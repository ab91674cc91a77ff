"""The records that one peer keeps for others: bounded in every direction, each limit with its answer.

All of a record's rights follow from its signature and its own key; who hands it over only pays for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

import attrs

from magik_proto.dht_frames import MAX_ANSWER, MAX_RECORDS
from magik_proto.dht_types import Judge, Judged
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId

MAX_RATES: Final = 1024
"""Peers whose rates are remembered; the one that came first goes, and begins anew with a full burst."""


@attrs.frozen
class StoreLimits:
    """Caps of one peer's store, each with what happens at it. All are guesses that the simulator can
    settle.
    """

    records: int = 10_000  # a record nearer to us takes the place of the farthest, others: dht.full
    bytes: int = 32 << 20  # likewise
    per_signer: int = 64  # records of one signer, of all keys: dht.signer-quota
    per_giver: int = 1000  # records that one peer handed over and others signed: dht.giver-quota
    per_key: int = 1000  # protocol.md: 1,000 peers of a workload: dht.key-full
    burst: int = 128  # records that a peer may hand over at once: dht.rate, before any is looked at
    per_second: float = 16.0  # and how many more from then on


@attrs.define(eq=False)
class _Held:
    data: bytes
    judged: Judged
    giver: PeerId
    ends: float


class RecordStore:
    """Keeps one record for each (key, kind, signer): the one that outranks the others.

    `own` is the position of the peer, as a number; `is_near(key)` says whether it is for this peer to keep
    what lies there. Times are monotonic seconds.
    """

    def __init__(
        self, own: int, judge: Judge, is_near: Callable[[bytes], bool], limits: StoreLimits | None = None
    ) -> None:
        self._own = own
        self._judge = judge
        self._is_near = is_near
        self._limits = limits or StoreLimits()
        self._keys: dict[bytes, dict[tuple[str, PeerId], _Held]] = {}
        self._same: dict[bytes, _Held] = {}  # by the record's bytes
        self._signers: dict[PeerId, int] = {}
        self._givers: dict[PeerId, int] = {}
        self._rates: dict[PeerId, tuple[float, float]] = {}
        self._ends: list[tuple[float, int, bytes, tuple[str, PeerId]]] = []
        self._count = self._bytes = self._pushed = 0

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return self._bytes

    def next_timeout(self) -> float | None:
        """When a record ends."""
        return self._ends[0][0] if self._ends else None

    def take(self, data: bytes, giver: PeerId, now: float) -> Judged:
        """Keep a record that `giver` handed over; what was made of it.

        Raises `RemoteProtocolError` with the reason for which it is not kept: ``dht.older`` (a better one
        is held), ``dht.not-near``, a limit of `StoreLimits`, or what the judge says of it. The very record that is held is
        taken again without a look.
        """
        held = self._same.get(data)
        if held is not None:
            return held.judged
        self._pay(giver, now)
        judged = self._judge(data, now)
        if not self._is_near(judged.key):
            raise RemoteProtocolError("dht.not-near", "others are nearer to the record's key")
        slot = (judged.kind, judged.signer)
        before = self._keys.get(judged.key, {}).get(slot)
        if before is not None and before.judged.precedence >= judged.precedence:
            raise RemoteProtocolError("dht.older", "a record that outranks this one is held")
        if before is None:
            self._check_quotas(judged, giver)
        self._make_room(judged, len(data) - (0 if before is None else len(before.data)), before is None)
        self._put(_Held(data, judged, giver if before is None else before.giver, now + judged.life_s))
        return judged

    def find(
        self, key: bytes, kind: str, now: float, after: PeerId | None = None
    ) -> tuple[tuple[bytes, ...], bool]:
        """The living records of a kind under a key, by signer, as many as go into one answer; whether
        there are more.
        """
        held = [h for (k, _), h in self._keys.get(key, {}).items() if k == kind and h.ends > now]
        held = [h for h in held if after is None or h.judged.signer > after]
        held.sort(key=lambda h: h.judged.signer)
        size, count = 0, 0
        for count, one in enumerate(held[:MAX_RECORDS], 1):
            size += len(one.data)
            if size > MAX_ANSWER and count > 1:
                count -= 1
                break
        return tuple(h.data for h in held[:count]), count < len(held)

    def nearer_to(self, place: int, most: int) -> list[tuple[bytes, bytes]]:
        """At most `most` (key, record) that a position is nearer to than we are, nearest to it first."""
        found = []
        for key, slots in self._keys.items():
            number = int.from_bytes(key, "big")
            if place ^ number < self._own ^ number:
                found += [(place ^ number, key, held.data) for held in slots.values()]
        return [(key, data) for _, key, data in heapq.nsmallest(most, found)]

    def expire(self, now: float) -> None:
        """Forget records whose life is over."""
        while self._ends and self._ends[0][0] <= now:
            _, _, key, slot = heapq.heappop(self._ends)
            held = self._keys.get(key, {}).get(slot)
            if held is not None and held.ends <= now:
                self._drop(key, slot)

    # -- inside ------------------------------------------------------------------------------------

    def _pay(self, giver: PeerId, now: float) -> None:
        limits = self._limits
        left, at = self._rates.get(giver, (float(limits.burst), now))
        left = min(float(limits.burst), left + (now - at) * limits.per_second)
        if left < 1:
            raise RemoteProtocolError("dht.rate", f"more than {limits.per_second:g} records a second")
        if giver not in self._rates and len(self._rates) >= MAX_RATES:
            del self._rates[next(iter(self._rates))]
        self._rates[giver] = (left - 1, now)

    def _check_quotas(self, judged: Judged, giver: PeerId) -> None:
        limits = self._limits
        if self._signers.get(judged.signer, 0) >= limits.per_signer:
            raise RemoteProtocolError("dht.signer-quota", f"{limits.per_signer} records of this signer")
        if giver != judged.signer and self._givers.get(giver, 0) >= limits.per_giver:
            raise RemoteProtocolError("dht.giver-quota", f"{limits.per_giver} records from this peer")
        if len(self._keys.get(judged.key, {})) >= limits.per_key:
            raise RemoteProtocolError("dht.key-full", f"{limits.per_key} records under this key")

    def _make_room(self, judged: Judged, more: int, is_new: bool) -> None:
        limits = self._limits
        while self._count + is_new > limits.records or self._bytes + more > limits.bytes:
            farthest = max(self._keys, key=lambda key: int.from_bytes(key, "big") ^ self._own)
            if self._distance(farthest) <= self._distance(judged.key):
                raise RemoteProtocolError("dht.full", "full of records that are nearer")
            self._drop(farthest, next(iter(self._keys[farthest])))

    def _distance(self, key: bytes) -> int:
        return int.from_bytes(key, "big") ^ self._own

    def _put(self, held: _Held) -> None:
        slot = (held.judged.kind, held.judged.signer)
        if slot in self._keys.get(held.judged.key, {}):
            self._drop(held.judged.key, slot)
        self._keys.setdefault(held.judged.key, {})[slot] = held
        self._same[held.data] = held
        self._count_in(held, 1)
        self._pushed += 1
        heapq.heappush(self._ends, (held.ends, self._pushed, held.judged.key, slot))

    def _drop(self, key: bytes, slot: tuple[str, PeerId]) -> None:
        held = self._keys[key].pop(slot)
        if not self._keys[key]:
            del self._keys[key]
        self._same.pop(held.data, None)
        self._count_in(held, -1)

    def _count_in(self, held: _Held, amount: int) -> None:
        self._count += amount
        self._bytes += amount * len(held.data)
        _add(self._signers, held.judged.signer, amount)
        if held.giver != held.judged.signer:
            _add(self._givers, held.giver, amount)


def _add(counts: dict[Any, int], key: Any, amount: int) -> None:
    counts[key] = counts.get(key, 0) + amount
    if not counts[key]:
        del counts[key]
