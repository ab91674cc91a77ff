"""Who looks after a workload, and the one task per workload that does.

Every manifest is held by the machine whose API took it (its author) and by the ``GUARDIANS`` machines whose positions are
closest (by XOR) to the hash of the workload's name; the machines that run it hold it too. Exactly one *acts*: the author
while it is alive, else the closest machine alive. All machines come to the same answer from the same list of live
machines; while their lists differ two may act, which makes surplus for a moment and never loss. In a fabric that is
larger than a machine's list `oversight` finds out what the list says in others.

The actor compares pods with the manifest (`plan`), tenders what is missing and retires what is too many, one step at a time.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol
from uuid import UUID

import structlog
import trio
from attrs import frozen

from machineplane.fabric.events import Events
from machineplane.fabric.founding import Founding, Foundings
from machineplane.fabric.holdings import Holdings, HoldingsFull
from machineplane.fabric.manifests import Manifest
from machineplane.fabric.objects import pod_fact
from machineplane.fabric.scope import OF
from machineplane.fabric.table import SECRET, Table
from machineplane.fabric.view import View
from magik_proto.dht_kinds import holding_key
from magik_proto.identity import PeerId
from magik_proto.kademlia import closest
from magik_proto.messages import ResourceId, encode_message
from magik_proto.records import Workload

GUARDIANS = 3  # guess: as many as replicas of a state that must outlive two machines at once
RETRY_MIN_S, RETRY_MAX_S = 0.2, 5.0  # protocol.md, Healing
LOOK_AGAIN_S = 30.0  # protocol.md, replica check
# A daemon that has just started does not know yet what others run: for so long it acts only for what its own API
# takes in, and for nothing that it found. A guess: several times what joining a fabric takes.
START_GRACE_S = 8.0


@frozen
class Outcome:
    """What became of a tender: replicas placed by machine, how many are left over, and why."""

    placed: dict[PeerId, int]
    unplaced: int
    reasons: tuple[str, ...]


# A manifest, how many replicas, how many run where already, and a StatefulSet's ordinals.
Tender = Callable[[Manifest, int, dict[PeerId, int], tuple[int, ...]], Awaitable[Outcome]]
Retire = Callable[[PeerId, str], Awaitable[None]]
Roles = Callable[[PeerId], frozenset[str] | None]


def guardians(resource: ResourceId, alive: Iterable[PeerId], count: int = GUARDIANS) -> list[PeerId]:
    """The machines closest to the workload, closest first: those that a lookup of its name in the index leads to."""
    return closest(alive, holding_key("workload", str(resource)), count)


def keepers(workload: Workload, alive: Iterable[PeerId], roles: Roles) -> list[PeerId]:
    """The machines that may guard a manifest: for a Secret those alone that serve the API anyway."""
    return [peer for peer in alive if workload.resource.kind != "Secret" or "submit" in (roles(peer) or ())]


def actor(workload: Workload, alive: Iterable[PeerId]) -> PeerId:
    """The one machine that acts for a workload. ``alive`` must not be empty."""
    living = list(alive)
    return workload.author if workload.author in living else guardians(workload.resource, living, 1)[0]


class Large(Protocol):
    """What takes the place of the list of live machines in a fabric that is larger than it (see `oversight`)."""

    @property
    def active(self) -> bool: ...
    def acts(self, workload: Workload) -> bool: ...
    def guard(self, uid: UUID) -> None: ...
    def placed(self, workload: Workload, peers: Iterable[PeerId]) -> None: ...
    async def settle(self, workload: Workload, placed: Iterable[PeerId] = ()) -> None: ...


class Guardian:
    """Keeps the holdings in step with the view and runs a task for each workload that this machine acts for."""

    def __init__(
        self,
        *,
        view: View,
        table: Table,
        holdings: Holdings,
        events: Events,
        alive: Callable[[], tuple[PeerId, ...]],
        settle: Callable[[], Awaitable[None]],
        tender: Tender,
        retire: Retire,
        dispose: Callable[[Workload], Awaitable[None]],
        roles: Roles,
        foundings: Foundings,
    ) -> None:
        self._view = view
        self._table = table
        self._holdings = holdings
        self._events = events
        self._alive = alive
        self._settle = settle
        self._tender = tender
        self._retire = retire
        self._dispose = dispose
        self._roles = roles
        self._foundings = foundings
        self.large: Large | None = None
        self._acting: dict[UUID, trio.Event] = {}
        self._dirty: set[str] = set()
        self._woken = trio.Event()
        self._made_here: set[UUID] = set()
        self._started = float("inf")  # until `run`
        self._log = structlog.get_logger(room="fabric")

    def take(self, workload: Workload) -> None:
        """Guard a manifest that was made here and now. Raises HoldingsFull."""
        new = self._holdings.get(workload.uid) is None
        if new:
            self._made_here.add(workload.uid)
        self.guard(workload)
        if new and workload.resource.kind == "StatefulSet":
            self._foundings.put(workload.uid)

    def guard(self, workload: Workload) -> bool:
        """As `hold`, for what somebody wants guarded here, where that is more than to run it."""
        if self.large is not None:
            self.large.guard(workload.uid)
        return self.hold(workload)

    def release(self, uid: UUID) -> None:
        """Let go of what others hold."""
        self._holdings.release(uid)
        self._table.remove(("workload", str(uid)))

    def hold(self, workload: Workload) -> bool:
        """Guard a manifest from now on; False if it is no news. Raises HoldingsFull."""
        if not self._holdings.offer(workload, trio.current_time()):
            return False
        value: dict[str, object] = {"record": encode_message(workload), OF: str(workload.resource)}
        if workload.resource.kind == "Secret":
            value[SECRET] = True
        self._table.put(("workload", str(workload.uid)), value)
        self.wake(str(workload.uid))
        return True

    def wake(self, uid: str) -> None:
        """Something about this workload has changed."""
        self._dirty.add(uid)
        self._woken.set()

    def founding(self, uid: UUID) -> Founding | None:
        """The mark of a workload that was made here; this machine alone knows whether it was given away."""
        return self._foundings.of(uid)

    def actor_of(self, workload: Workload) -> PeerId:
        """The machine that acts for a workload, by the list of live machines."""
        return actor(workload, self._alive())

    def wake_all(self) -> None:
        """The set of live machines has changed."""
        for uid in self._view.records:
            self.wake(uid)

    async def run(self) -> None:
        """Until cancelled."""
        self._started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_after_start)
            while True:
                with trio.move_on_after(LOOK_AGAIN_S) as scope:
                    await self._woken.wait()
                if scope.cancelled_caught:
                    self.wake_all()
                self._woken = trio.Event()
                dirty, self._dirty = sorted(self._dirty), set()
                for uid in dirty:
                    self._look(UUID(uid), nursery)

    async def rejoin(self) -> None:
        """This machine was alone and is not any more: what it holds may be out of date, as after a start."""
        self._started = trio.current_time()
        self._made_here.clear()
        await self._look_after_start()

    async def _look_after_start(self) -> None:
        await trio.sleep_until(self._started + START_GRACE_S)
        self.wake_all()

    def _look(self, uid: UUID, nursery: trio.Nursery) -> None:
        manifest = self._view.manifest(str(uid))
        if manifest is not None:
            self._adopt_or_release(manifest.record)
        own = self._holdings.get(uid)
        if uid in self._acting:
            self._acting[uid].set()
        elif own is not None and self._acts(own):
            self._acting[uid] = trio.Event()
            nursery.start_soon(self._act, uid)

    def _adopt_or_release(self, newest: Workload) -> None:
        """Hold what is mine to guard or newer than what I hold; let go of what others guard and nobody runs here."""
        own = self._holdings.get(newest.uid)
        alive = () if self._is_large else keepers(newest, self._alive(), self._roles)
        near = guardians(newest.resource, alive)
        mine = self._view.own in (newest.author, *near) or self._runs(newest.uid)
        if own is None and not mine:
            return
        try:
            self.hold(newest)
        except HoldingsFull as error:
            self._log.warning("cannot-guard", workload=str(newest.resource), error=str(error))
            return
        if self._is_large:
            return  # `oversight` knows who else holds it
        held_by_guardians = set(near) <= self._view.holders(str(newest.uid))
        if not mine and held_by_guardians:
            self.release(newest.uid)

    @property
    def _is_large(self) -> bool:
        return self.large is not None and self.large.active

    def _runs(self, uid: UUID) -> bool:
        return any(p.node == self._view.own for p in self._view.pods_of(str(uid)))

    def _acts(self, workload: Workload) -> bool:
        young = trio.current_time() < self._started + START_GRACE_S
        if young and workload.uid not in self._made_here:
            return False
        if self.large is not None and self.large.active:
            return self.large.acts(workload)
        return actor(workload, self._alive()) == self._view.own

    async def _act(self, uid: UUID) -> None:
        """Act for one workload until it is gone or another machine's turn."""
        delay = RETRY_MIN_S
        try:
            while (workload := self._holdings.get(uid)) is not None and self._acts(workload):
                changed = self._acting[uid] = trio.Event()
                done = await self._step(workload)
                delay = RETRY_MIN_S if done else min(2 * delay, RETRY_MAX_S)
                with trio.move_on_after(LOOK_AGAIN_S if done else delay):
                    await changed.wait()
                    if not done:
                        await trio.sleep(delay)
        finally:
            self._made_here.discard(uid)
            if self._holdings.is_disposed(uid, trio.current_time()):
                self._foundings.take(uid)
            del self._acting[uid]
            self._table.remove(("placement", str(uid)))

    async def _step(self, workload: Workload) -> bool:
        """One comparison and what follows from it; False where something is left to be done again soon."""
        await self._catch_up(workload)
        manifest = Manifest.of(workload)
        if not manifest.runs_pods:
            return True
        if self._view.winner(workload.resource) not in (str(workload.uid), None):
            await self._yield_name(workload)
            return True
        pods = self._view.pods_of(str(workload.uid))
        step = manifest.next_step(pod_fact(p) for p in pods)
        for pod in pods:
            if pod.uid in step.retire:
                await self._retire(pod.node, pod.uid)
        if not step.tender:
            self._say(workload, None)
            return step.idle
        ordinals, reasons = self._free(workload.resource, step.ordinals)
        if step.ordinals and not ordinals:
            outcome = Outcome({}, len(step.ordinals), reasons)
            self._say(workload, outcome)
            self._report(manifest, outcome)
            return False
        taken: dict[PeerId, int] = {}
        for pod in pods:
            if not pod.terminating and pod.template_hash == manifest.template_hash:
                taken[pod.node] = taken.get(pod.node, 0) + 1
        outcome = await self._tender(manifest, len(ordinals) or step.tender, taken, ordinals)
        outcome = Outcome(outcome.placed, outcome.unplaced + len(reasons), (*outcome.reasons, *reasons))
        if self.large is not None and self.large.active:
            self.large.placed(workload, outcome.placed)
            await self.large.settle(workload, outcome.placed)
        self._say(workload, outcome)
        self._report(manifest, outcome)
        return not outcome.unplaced

    def _free(
        self, resource: ResourceId, ordinals: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Those whose names no bare Pod has, and a reason for each of the others: who came first has the name."""
        names = {n: f"{resource.name}-{n}" for n in ordinals}
        there = [
            n
            for n in ordinals
            if self._view.winner(ResourceId(resource.namespace, "Pod", names[n])) is not None
        ]
        return tuple(n for n in ordinals if n not in there), tuple(
            f"pod {names[n]} already exists" for n in there
        )

    async def _catch_up(self, workload: Workload) -> None:
        if self.large is not None and self.large.active:
            await self.large.settle(workload)
        else:
            await self._settle()

    async def _yield_name(self, workload: Workload) -> None:
        """Another workload of this name is older: this one was made at the same time elsewhere, and goes."""
        self._events.record(
            Manifest.of(workload).obj,
            "Warning",
            "NameTaken",
            f"{workload.resource} was created through two machines at once; the older one stays",
        )
        await self._dispose(workload)

    def _say(self, workload: Workload, outcome: Outcome | None) -> None:
        if outcome is None or not outcome.unplaced:
            self._table.remove(("placement", str(workload.uid)))
        else:
            said = {
                "unplaced": outcome.unplaced,
                "reasons": list(outcome.reasons) or ["no machine made a bid"],
                OF: str(workload.resource),
            }
            self._table.put(("placement", str(workload.uid)), said)

    def _report(self, manifest: Manifest, outcome: Outcome) -> None:
        for peer, count in sorted(outcome.placed.items()):
            text = (
                f"{count} replica{'s' if count > 1 else ''} awarded to machine {self._view.node_name(peer)}"
            )
            self._events.record(manifest.obj, "Normal", "Scheduled", text)
        if outcome.unplaced:
            text = f"{outcome.unplaced} replicas not placed: {'; '.join(outcome.reasons) or 'no machine made a bid'}"
            self._events.record(manifest.obj, "Warning", "FailedScheduling", text)
