"""Which replicas of which workloads are known: service records with their life, their order, and who may be seen. No I/O.

Records are hints: that a signer is a replica of the workload that it names, its pass proves when it is connected to.
Here only their form is judged, their signature having been checked before.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Final

from attrs import define, field, frozen

from magik_proto.identity import PeerId
from magik_proto.records import SERVICE_LIFE_MS, ServiceRecord

MAX_WORKLOADS: Final = 10_000
"""protocol.md, "Workload plane". At it the workload whose newest record is oldest goes."""
MAX_REPLICAS: Final = 1_000
"""Of one workload (protocol.md). At it the replica whose record is oldest goes."""
CLOCK_SKEW_MS: Final = 30_000
"""A record from further ahead than clocks may differ is not believed (protocol.md)."""
GRACE_MS: Final = 45_000
"""A record that is over is kept for so long, for when no better is left: in an overload all are late. A guess: three of its
lives; who left, or was lost, is forgotten at once in any case."""


@frozen(kw_only=True)
class Visibility:
    """Which workloads a pod in `namespace` deals with: by patterns of workload ids (``ns/Kind/name``, ``*`` for any part).

    What a deny pattern names is out. With allow patterns only what one of them names is in; without, the own namespace,
    and others where `cross_namespace` says so.
    """

    namespace: str
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    cross_namespace: bool = False

    def admits(self, workload_id: str) -> bool:
        """Whether a workload is seen, and may call."""
        if workload_id.partition("/")[0] != self.namespace and not self.cross_namespace:
            return False
        if any(fnmatch.fnmatchcase(workload_id, pattern) for pattern in self.deny):
            return False
        return not self.allow or any(fnmatch.fnmatchcase(workload_id, pattern) for pattern in self.allow)


@define
class Catalog:
    """The replicas that are known. Times are ms since the epoch; ``life_ms`` counts from a record's own `ts`."""

    visibility: Visibility
    life_ms: int = SERVICE_LIFE_MS
    max_workloads: int = MAX_WORKLOADS
    max_replicas: int = MAX_REPLICAS
    _known: dict[str, dict[PeerId, ServiceRecord]] = field(factory=dict)

    def take(self, records: Iterable[ServiceRecord], now_ms: int) -> list[ServiceRecord]:
        """Take records in; those that were news: new, or of higher precedence than their signer's before."""
        return [record for record in records if self._take(record, now_ms)]

    def replicas(self, workload_id: str, now_ms: int) -> tuple[ServiceRecord, ...]:
        """The replicas of a workload whose records are alive, in the order of their peer ids."""
        alive = [r for r in self._known.get(workload_id, {}).values() if self._alive(r, now_ms)]
        return tuple(sorted(alive, key=lambda record: record.peer_id))

    def ready(self, workload_id: str, now_ms: int) -> tuple[ServiceRecord, ...]:
        """Those of them that may be sent traffic."""
        return tuple(r for r in self.replicas(workload_id, now_ms) if r.ready and r.healthy)

    def hoped(self, workload_id: str, now_ms: int) -> tuple[ServiceRecord, ...]:
        """Those that may be sent traffic; where no replica has a living record, those that might have been lately.

        As Envoy's panic threshold: that all have fallen silent at one time says more about us than about them.
        """
        if self.replicas(workload_id, now_ms):
            return self.ready(workload_id, now_ms)
        kept = self._known.get(workload_id, {}).values()
        found = [r for r in kept if r.ready and r.healthy and self._kept(r, now_ms)]
        return tuple(sorted(found, key=lambda record: record.peer_id))

    def leader(self, workload_id: str, now_ms: int) -> ServiceRecord | None:
        """Who says that it leads; of several the one of the latest epoch. A hint: a call is fenced where it arrives."""
        leaders = [r for r in self.ready(workload_id, now_ms) if r.caps.get("leader") is True]
        return max(leaders, key=_epoch, default=None)

    def of_peer(self, peer: PeerId, workload_id: str) -> ServiceRecord | None:
        """The record of one replica, alive or not."""
        return self._known.get(workload_id, {}).get(peer)

    def known(self, workload_id: str) -> tuple[ServiceRecord, ...]:
        """All its records, those that are over but still kept as well."""
        return tuple(self._known.get(workload_id, {}).values())

    def workloads(self) -> tuple[str, ...]:
        """All workloads with a record, in the order of their ids."""
        return tuple(sorted(self._known))

    def forget(self, peer: PeerId, workload_id: str) -> None:
        """A signer turned out to be no replica of the workload."""
        self._known.get(workload_id, {}).pop(peer, None)

    def expire(self, now_ms: int) -> None:
        """Drop what is over; call it from time to time."""
        for workload_id, replicas in list(self._known.items()):
            left = {peer: record for peer, record in replicas.items() if self._kept(record, now_ms)}
            if left:
                self._known[workload_id] = left
            else:
                del self._known[workload_id]

    def _take(self, record: ServiceRecord, now_ms: int) -> bool:
        if not self._alive(record, now_ms) or not self.visibility.admits(record.workload_id):
            return False
        replicas = self._known.get(record.workload_id)
        before = None if replicas is None else replicas.get(record.peer_id)
        if before is not None and before.precedence >= record.precedence:
            return False
        if replicas is None:
            replicas = self._room_for_workload().setdefault(record.workload_id, {})
        replicas[record.peer_id] = record
        if len(replicas) > self.max_replicas:
            del replicas[min(replicas.values(), key=_age).peer_id]
        return True

    def _alive(self, record: ServiceRecord, now_ms: int) -> bool:
        return record.ts - CLOCK_SKEW_MS <= now_ms < record.ts + self.life_ms

    def _kept(self, record: ServiceRecord, now_ms: int) -> bool:
        return now_ms < record.ts + self.life_ms + GRACE_MS

    def _room_for_workload(self) -> dict[str, dict[PeerId, ServiceRecord]]:
        if len(self._known) >= self.max_workloads:
            oldest = min(self._known, key=lambda w: max((r.ts for r in self._known[w].values()), default=0))
            del self._known[oldest]
        return self._known


def _epoch(record: ServiceRecord) -> tuple[int, PeerId]:
    epoch = record.caps.get("leader_epoch")
    return (epoch if isinstance(epoch, int) else 0, record.peer_id)


def _age(record: ServiceRecord) -> tuple[int, PeerId]:
    return (record.ts, record.peer_id)
