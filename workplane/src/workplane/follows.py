"""Which workloads' records are kept up to date: those that somebody used lately. No I/O."""

from __future__ import annotations

from typing import Final

from attrs import define, field

FRESH_S: Final = 5.0
"""The table has been asked lately enough: replicas announce themselves as often (technical-spec §4)."""
KEEP_S: Final = 60.0
"""For so long after its last use a workload is followed. A guess."""
MAX_FOLLOWED: Final = 256
"""At once. At it the one that was not used for longest goes. A guess: each costs a search in 5 s."""
NEVER: Final = -float("inf")


@define
class _Followed:
    used_at: float
    asked_at: float = NEVER
    answered_at: float = NEVER
    pinned: bool = False


@define
class Follows:
    """Times are monotonic seconds."""

    fresh_s: float = FRESH_S
    keep_s: float = KEEP_S
    limit: int = MAX_FOLLOWED
    _followed: dict[str, _Followed] = field(factory=dict)

    def use(self, workload_id: str, now: float, *, pinned: bool = False) -> bool:
        """Somebody uses a workload (`pinned`: for ever); whether the table's answer has to be waited for."""
        followed = self._followed.get(workload_id)
        if followed is None:
            self._make_room()
            followed = self._followed.setdefault(workload_id, _Followed(now))
        followed.used_at = now
        followed.pinned |= pinned
        # While it is followed the answer of the search before will do, until that of the next is there.
        return now - followed.answered_at > 2 * self.fresh_s

    def asked(self, workload_id: str, now: float) -> None:
        """The table is being asked."""
        if (followed := self._followed.get(workload_id)) is not None:
            followed.asked_at = now

    def answered(self, workload_id: str, now: float) -> None:
        """It has been asked, whatever it knew."""
        if (followed := self._followed.get(workload_id)) is not None:
            followed.answered_at = now

    def due(self, now: float) -> list[str]:
        """The workloads to ask for, those least lately asked first; what nobody uses any more is left."""
        for workload_id, followed in list(self._followed.items()):
            if not followed.pinned and now - followed.used_at > self.keep_s:
                del self._followed[workload_id]
        due = [w for w, followed in self._followed.items() if now - followed.asked_at >= self.fresh_s]
        return sorted(due, key=lambda w: self._followed[w].asked_at)

    def next_timeout(self) -> float | None:
        """When to ask for `due`; None while nothing is followed."""
        return min((f.asked_at + self.fresh_s for f in self._followed.values()), default=None)

    def _make_room(self) -> None:
        spare = [w for w, followed in self._followed.items() if not followed.pinned]
        if len(self._followed) >= self.limit and spare:
            del self._followed[min(spare, key=lambda w: self._followed[w].used_at)]
