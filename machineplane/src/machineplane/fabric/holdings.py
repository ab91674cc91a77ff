"""The signed manifests that this machine guards, and the workloads it knows to be disposed of.

Memory only. A manifest comes from the API here, from a peer that wants it guarded, or from a pod that was found running
after a restart. The newer one by (generation, stamp, author) wins. A disposed uid is remembered for ``TOMBSTONE_LIFE_S``,
far longer than it is told (``DISPOSAL_LIFE_S``), and refuses every later manifest of that uid, so that a delete is not
undone by a machine that was away and had not heard of it.
"""

from collections import OrderedDict
from uuid import UUID

from attrs import frozen

from magik_proto.messages import Disposal
from magik_proto.records import Workload

MANIFESTS_MAX = 1_000  # specs/machineplane-spec.md, Limits
DISPOSALS_MAX = 10_000
DISPOSAL_LIFE_S = 300.0  # protocol.md: for so long everyone is told
# Guess: how long a machine may be away and still learn what was deleted meanwhile. 10,000 of them take some 5 MB.
TOMBSTONE_LIFE_S = 86_400.0


class HoldingsFull(Exception):
    """There are as many manifests here as a machine guards; apply it through another machine."""


@frozen
class Tombstone:
    """A disposal and the monotonic second at which it may be forgotten."""

    disposal: Disposal
    until: float


class Holdings:
    """Manifests by uid, with their tombstones; a state without I/O. ``now`` is in monotonic seconds."""

    def __init__(self, manifests_max: int = MANIFESTS_MAX, disposals_max: int = DISPOSALS_MAX) -> None:
        self._manifests: dict[UUID, Workload] = {}
        self._disposed: OrderedDict[UUID, Tombstone] = OrderedDict()
        self._manifests_max = manifests_max
        self._disposals_max = disposals_max

    def get(self, uid: UUID) -> Workload | None:
        return self._manifests.get(uid)

    def all(self) -> tuple[Workload, ...]:
        """All manifests that are held."""
        return tuple(self._manifests.values())

    def offer(self, workload: Workload, now: float) -> bool:
        """Take a manifest if it is news; False where it is disposed of or not newer. Raises HoldingsFull."""
        self._expire(now)
        if workload.uid in self._disposed:
            return False
        known = self._manifests.get(workload.uid)
        if known is not None and known.precedence >= workload.precedence:
            return False
        if known is None and len(self._manifests) >= self._manifests_max:
            raise HoldingsFull(f"this machine guards {self._manifests_max} manifests already")
        self._manifests[workload.uid] = workload
        return True

    def release(self, uid: UUID) -> None:
        """Stop guarding a manifest that others guard."""
        self._manifests.pop(uid, None)

    def dispose(self, disposal: Disposal, now: float, life_s: float = TOMBSTONE_LIFE_S) -> bool:
        """Remember a delete for ``life_s`` and drop its manifest; False where it was known or its life is over.

        The oldest is forgotten at the cap.
        """
        self._expire(now)
        if disposal.uid in self._disposed or life_s <= 0:
            return False
        while len(self._disposed) >= self._disposals_max:
            self._disposed.popitem(last=False)
        self._disposed[disposal.uid] = Tombstone(disposal, now + life_s)
        self._manifests.pop(disposal.uid, None)
        return True

    def tombstone(self, uid: UUID, now: float) -> Disposal | None:
        """The disposal of a workload, while it is remembered."""
        self._expire(now)
        found = self._disposed.get(uid)
        return None if found is None else found.disposal

    def is_disposed(self, uid: UUID, now: float) -> bool:
        self._expire(now)
        return uid in self._disposed

    def disposals(self, now: float) -> tuple[Disposal, ...]:
        """Those still remembered, oldest first."""
        self._expire(now)
        return tuple(t.disposal for t in self._disposed.values())

    def _expire(self, now: float) -> None:
        while self._disposed:
            uid, tombstone = next(iter(self._disposed.items()))
            if tombstone.until > now:
                return
            del self._disposed[uid]
