"""Which replica the next connection goes to. No I/O; time and chance are passed in.

The rule is said by annotations of the Service: ``magik.io/balance`` is ``round-robin`` (the default),
``least-connections`` or ``locality``, and ``magik.io/version-weights``, like ``v1=90,v2=10``, parts connections between
versions (``app_version`` of a replica's record) before that. A replica that could not be connected with is the last
choice for a while.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Final, TypeVar

from attrs import define, field, frozen

from magik_proto.identity import PeerId
from magik_proto.records import ServiceRecord
from workplane.services import Service

KIND: Final = "magik.io/balance"
WEIGHTS: Final = "magik.io/version-weights"
ROUND_ROBIN: Final = "round-robin"
LEAST: Final = "least-connections"
LOCALITY: Final = "locality"
KINDS: Final = (ROUND_ROBIN, LEAST, LOCALITY)

AVOID_S: Final = 5.0
"""A replica that failed is the last choice for so long; each failure more in a row doubles it. A guess."""
MAX_AVOID_S: Final = 60.0
"""At most. A guess: a replica that is gone is out of the catalog after 15 s."""
MAX_KEYS: Final = 1024
"""Services whose turn is remembered; at it the one not used for longest begins anew. A guess."""
MAX_FAILED: Final = 4096
"""Replicas whose failures are remembered; at it those of the one that failed least lately are forgotten. A guess."""

K = TypeVar("K")
V = TypeVar("V")


@frozen
class Rule:
    """How a Service's connections are given out. `weights` of versions: none given, versions do not matter."""

    kind: str = ROUND_ROBIN
    weights: Mapping[str, int] = field(factory=dict)
    sticky_s: float = 0.0

    @classmethod
    def of(cls, service: Service) -> Rule:
        """Of a Service's annotations. Raises ValueError, whose text names the annotation."""
        kind = service.annotations.get(KIND, ROUND_ROBIN).strip()
        if kind not in KINDS:
            raise ValueError(f"{KIND}: {kind!r} is none of {', '.join(KINDS)}")
        return cls(kind, _weights(service.annotations.get(WEIGHTS, "")), service.sticky_s)


def _weights(text: str) -> dict[str, int]:
    weights = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        version, _, weight = part.partition("=")
        if not version.strip() or not weight.strip().isascii() or not weight.strip().isdigit():
            raise ValueError(f"{WEIGHTS}: {part!r} is not like v1=90")
        weights[version.strip()] = int(weight)
    if weights and not any(weights.values()):
        raise ValueError(f"{WEIGHTS}: all are 0, so nothing could be sent")
    return weights


@define
class _Failure:
    until: float
    times: int


@define
class Balancer:
    """Remembers turns, connections and failures. `random` gives numbers in [0, 1); times are monotonic seconds."""

    random: Callable[[], float]
    machine: str = ""
    zone: str = ""
    _turns: OrderedDict[str, int] = field(factory=OrderedDict)
    _stuck: OrderedDict[str, tuple[PeerId, float]] = field(factory=OrderedDict)
    _open: dict[PeerId, int] = field(factory=dict)
    _failures: OrderedDict[PeerId, _Failure] = field(factory=OrderedDict)

    def order(
        self, key: str, rule: Rule, replicas: Sequence[ServiceRecord], now: float
    ) -> tuple[ServiceRecord, ...]:
        """All of `replicas`, in the order in which to try them for one connection. `key` is whose turns it is."""
        turn = self._next_turn(key)
        good = sorted((r for r in replicas if not self.avoids(r.peer_id, now)), key=_peer)
        bad = [record for record in replicas if self.avoids(record.peer_id, now)]
        bad.sort(key=lambda record: (self._failures[record.peer_id].until, record.peer_id))
        ordered = self._ordered(rule, good, turn)
        stuck, since = self._stuck.get(key, (None, 0.0))
        if now < since + rule.sticky_s:
            ordered.sort(key=lambda record: record.peer_id != stuck)
        return (*ordered, *bad)

    def avoids(self, peer: PeerId, now: float) -> bool:
        """Whether a replica has failed lately."""
        failure = self._failures.get(peer)
        return failure is not None and now < failure.until

    def opened(self, key: str, peer: PeerId, now: float) -> None:
        """A connection with a replica has come about: it is well, and a sticky client stays with it."""
        self._failures.pop(peer, None)
        self._open[peer] = self._open.get(peer, 0) + 1
        _put(self._stuck, key, (peer, now), MAX_KEYS)

    def closed(self, peer: PeerId) -> None:
        """It is over."""
        left = self._open[peer] - 1
        if left:
            self._open[peer] = left
        else:
            del self._open[peer]

    def failed(self, peer: PeerId, now: float) -> None:
        """No connection came about."""
        failure = self._failures.get(peer)
        if failure is not None and now < failure.until:
            return  # those that were under way at the same time count once
        times = 0 if failure is None else failure.times + 1
        until = now + min(MAX_AVOID_S, AVOID_S * 2 ** min(times, 10))
        _put(self._failures, peer, _Failure(until, times), MAX_FAILED)

    def _next_turn(self, key: str) -> int:
        turn = self._turns.get(key)
        if turn is None:
            turn = int(self.random() * (1 << 16))  # not all pods begin with the same replica
        _put(self._turns, key, turn + 1, MAX_KEYS)
        return turn

    def _ordered(self, rule: Rule, replicas: list[ServiceRecord], turn: int) -> list[ServiceRecord]:
        """By version and kind; those that are alike take turns."""
        versions = self._versions(rule, replicas)

        def rank(record: ServiceRecord) -> tuple[int, int]:
            return (versions.get(_version(record), 0), self._rank(rule, record))

        alike = groupby(sorted(replicas, key=rank), key=rank)
        return [record for _, group in alike for record in _rotated(list(group), turn)]

    def _rank(self, rule: Rule, record: ServiceRecord) -> int:
        if rule.kind == LEAST:
            return self._open.get(record.peer_id, 0)
        return self._distance(record) if rule.kind == LOCALITY else 0

    def _distance(self, record: ServiceRecord) -> int:
        if self.machine and record.caps.get("machine") == self.machine:
            return 0
        return 1 if self.zone and record.caps.get("zone") == self.zone else 2

    def _versions(self, rule: Rule, replicas: Sequence[ServiceRecord]) -> dict[str, int]:
        """Their ranks: 0 for one drawn by weight, then the others by weight; at last those that have none."""
        if not rule.weights:
            return {}
        return self._drawn({_version(record): rule.weights.get(_version(record), 0) for record in replicas})

    def _drawn(self, weights: Mapping[str, int]) -> dict[str, int]:
        left = {version: weights[version] for version in sorted(weights)}
        ranks: dict[str, int] = {}
        if sum(left.values()):
            ranks[_draw(left, self.random())] = 0
        rest = sorted((v for v in left if v not in ranks), key=lambda version: (-left[version], version))
        return ranks | {version: rank for rank, version in enumerate(rest, 1)}


def _draw(weights: Mapping[str, int], chance: float) -> str:
    point = chance * sum(weights.values())
    for version, weight in weights.items():
        if point < weight:
            return version
        point -= weight
    return max(weights, key=lambda version: weights[version])  # a rounding error away from the end


def _peer(record: ServiceRecord) -> PeerId:
    return record.peer_id


def _version(record: ServiceRecord) -> str:
    return str(record.caps.get("app_version", ""))


def _rotated(records: list[ServiceRecord], turn: int) -> list[ServiceRecord]:
    start = turn % len(records) if records else 0
    return records[start:] + records[:start]


def _put(table: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > limit:
        table.popitem(last=False)
