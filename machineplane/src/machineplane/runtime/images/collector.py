"""Garbage collection by age and disk pressure, as the kubelet does it: what nothing uses goes, the longest unused first.

Imported images stay, unlike with the kubelet: this machine may have the only copy.

Synchronous; the daemon runs it in a thread from time to time. Names go before content: what somebody else still names stays.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

from machineplane.runtime.images.partial import remove_partials
from machineplane.runtime.images.refs import Entry
from machineplane.runtime.images.registry.settings import GarbageSettings
from machineplane.runtime.images.store import ImageStore

PERIOD_S = 300.0  # the kubelet's ImageGCPeriod
BROKEN_KEPT_S = 86_400.0  # how long a broken download may be gone on with; a guess


@frozen
class Disk:
    """The file system of the store, in bytes. ``available`` is what an ordinary user may still take, as df shows it."""

    capacity: int
    available: int

    @property
    def used_percent(self) -> int:
        """Rounded up, so that a threshold is not missed by a fraction."""
        return 100 - self.available * 100 // self.capacity if self.capacity else 0

    def missing(self, percent: int) -> int:
        """Bytes to be freed until no more than ``percent`` are used."""
        return max(0, self.capacity * (100 - percent) // 100 - self.available)


def read_disk(path: Path) -> Disk:
    """By ``statvfs``."""
    found = os.statvfs(path)
    return Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


@frozen(kw_only=True)
class Collected:
    """What a collection did: names removed, bytes freed, and bytes that it should have freed and could not."""

    removed: tuple[str, ...]
    freed: int
    short: int
    used_percent: int


@frozen(kw_only=True)
class Collector:
    """Of one store. ``pinned`` names are never removed; ``disk`` and ``clock`` (s since the epoch) are for tests."""

    store: ImageStore
    settings: GarbageSettings
    pinned: frozenset[str] = frozenset()
    disk: Callable[[Path], Disk] = read_disk
    clock: Callable[[], float] = time.time

    def collect(self, in_use: frozenset[str]) -> Collected:
        """Remove what is too old, and under pressure as much as is needed. ``in_use`` are digests of manifests.

        Raises an ``ImageError`` where the store is damaged or cannot be written.
        """
        now, disk = self.clock(), self.disk(self.store.path)
        pressed = disk.used_percent >= self.settings.high_percent
        wanted = disk.missing(self.settings.low_percent) if pressed else 0
        kept_s = self.settings.minimum_age_s if pressed else BROKEN_KEPT_S
        images = self._removable(in_use, now)
        removed = [
            ref for digest, age in images.items() if self._too_old(age) for ref in self._forget(digest)
        ]
        freed = remove_partials(self.store.partials, older_than=now - kept_s)
        if pressed or removed:
            freed += self.store.prune(in_use, partials_before=now - kept_s)
        for digest in images:
            if freed >= wanted:
                break
            removed += self._forget(digest)
            freed += self.store.prune(in_use, partials_before=now - kept_s)
        return Collected(
            removed=tuple(removed),
            freed=freed,
            short=max(0, wanted - freed),
            used_percent=disk.used_percent,
        )

    def _removable(self, in_use: frozenset[str], now: float) -> Mapping[str, float]:
        """Digests of images that may go, with their ages in seconds, the oldest first."""
        by_digest: dict[str, list[tuple[str, Entry]]] = {}
        for ref, entry in self.store.entries().items():
            by_digest.setdefault(entry.digest, []).append((ref, entry))
        ages = {
            digest: now - max(self.store.last_used(digest), *(entry.stored / 1000 for _, entry in named), 0.0)
            for digest, named in by_digest.items()
            if digest not in in_use and all(e.pulled and ref not in self.pinned for ref, e in named)
        }
        oldest = sorted(ages, key=lambda digest: (-ages[digest], digest))
        return {digest: ages[digest] for digest in oldest if ages[digest] >= self.settings.minimum_age_s}

    def _too_old(self, age: float) -> bool:
        return bool(self.settings.maximum_age_s) and age > self.settings.maximum_age_s

    def _forget(self, digest: str) -> list[str]:
        names = [ref for ref, entry in self.store.entries().items() if entry.digest == digest]
        for ref in names:
            self.store.remove(ref)
        return names
