"""Guardians in a large fabric: who else looks after a workload, and whether those it depends on are alive.

Nobody is connected with everybody there, so what `guardian` reads off the list of connected machines in a small fabric is
found out here by asking (machineplane-spec, "Large fabrics", "Guardians").
"""

import random
from collections.abc import Awaitable, Callable, Iterable
from uuid import UUID

import structlog
import trio

from machineplane.fabric.guardian import GUARDIANS
from machineplane.fabric.holdings import Holdings
from machineplane.fabric.index import WORKLOAD, Index
from machineplane.fabric.manifests import Manifest
from machineplane.fabric.reader import Reader
from machineplane.fabric.scope import OF, TEXTS_MAX, scope_of_names
from machineplane.fabric.table import Table
from machineplane.fabric.view import View
from machineplane.fabric.vigil import Vigil
from magik_mesh import Node
from magik_proto.identity import PeerId
from magik_proto.records import Workload

TICK_S = 1.0
CHECK_TIMEOUT_S = 3.0
SURVEY_S = (
    120.0  # guess: how often the index is asked who else runs a workload, and whether its guardians hold it
)
LOOK_NEARER_S = 15.0  # guess: how often a guardian of a lost author looks whether it is the nearest one now
BELIEVED_S = 300.0  # for so long a machine that was awarded pods, or tells of some, is asked for them
RUNNERS_LOOKING = 4  # of a workload's replicas so many look in each SURVEY_S whether its guardians hold it

Give = Callable[[PeerId, Workload], Awaitable[bool]]


class Oversight:
    """``give`` hands a manifest to a guardian, ``wake`` has a workload looked at, ``release`` lets go of one."""

    def __init__(
        self,
        *,
        node: Node,
        reader: Reader,
        index: Index,
        table: Table,
        view: View,
        holdings: Holdings,
        give: Give,
        wake: Callable[[str], None],
        release: Callable[[UUID], None],
        rng: random.Random,
    ) -> None:
        self._node = node
        self._reader = reader
        self._index = index
        self._table = table
        self._view = view
        self._holdings = holdings
        self._give = give
        self._wake = wake
        self._release = release
        self._rng = rng
        self._vigil = Vigil()
        self._guarding: set[UUID] = set()
        self._near: dict[UUID, tuple[float, tuple[PeerId, ...]]] = {}  # and when they were looked up
        self._where: dict[UUID, dict[PeerId, float]] = {}  # machines that may run pods of it, until when
        self._surveyed: dict[UUID, float] = {}
        self._rounds: dict[UUID, float] = {}  # when each is next
        self._looking: set[UUID] = set()  # lookups under way
        self._log = structlog.get_logger(room="fabric")
        reader.heard = self._heard
        reader.silent = self._silent
        reader.needed = self._vigil.is_watched

    @property
    def active(self) -> bool:
        """Whether the fabric is large."""
        return self._node.large

    # -- what `guardian` asks

    def guard(self, uid: UUID) -> None:
        """This machine was given a manifest to guard, or has made it."""
        self._guarding.add(uid)

    def acts(self, workload: Workload) -> bool:
        """Whether this machine acts: as the author, else as the nearest guardian while the author is lost."""
        if workload.author == self._node.id:
            return True
        if workload.uid not in self._guarding or not self._vigil.is_lost(workload.author):
            return False
        _, near = self._near.get(workload.uid, (0.0, ()))
        alive = [p for p in near if p != workload.author and not self._vigil.is_lost(p)]
        return bool(alive) and alive[0] == self._node.id

    def placed(self, workload: Workload, peers: Iterable[PeerId]) -> None:
        """These machines were awarded pods of it just now."""
        until = trio.current_time() + BELIEVED_S
        self._where.setdefault(workload.uid, {}).update(dict.fromkeys(peers, until))
        if self.acts(workload):
            self._tell_runners(workload)

    async def settle(self, workload: Workload, placed: Iterable[PeerId] = ()) -> None:
        """Know what those have who run it: what was read less than a period ago counts, but for ``placed``."""
        now = trio.current_time()
        if now - self._surveyed.get(workload.uid, float("-inf")) >= SURVEY_S:
            await self._survey(workload)
        scope = scope_of_names(frozenset({str(workload.resource)}))
        there = [p for p in self._places(workload) if not self._vigil.is_lost(p)]
        await self._reader.read_all(there, scope, max_age=self._vigil.period, timeout=CHECK_TIMEOUT_S)
        await self._reader.read_all(placed, scope, timeout=CHECK_TIMEOUT_S)

    def _places(self, workload: Workload) -> set[PeerId]:
        now = trio.current_time()
        told = {peer for peer, until in self._where.get(workload.uid, {}).items() if until > now}
        seen = {pod.node for pod in self._view.pods_of(str(workload.uid))}
        return (told | seen | self._view.runners(str(workload.uid))) - {self._node.id}

    def _tell_runners(self, workload: Workload) -> None:
        """Who reads this table, a guardian or whoever acts next, knows at once whom to ask."""
        seen = {pod.node for pod in self._view.pods_of(str(workload.uid))}
        now = trio.current_time()
        told = {peer for peer, until in self._where.get(workload.uid, {}).items() if until > now}
        peers = [peer.raw for peer in sorted(seen | told)]
        self._table.put(("runners", str(workload.uid)), {"peers": peers, OF: str(workload.resource)})

    async def _survey(self, workload: Workload) -> None:
        """Who runs it, by the index; what its guardians know of it; and who of them has to be given it."""
        self._surveyed[workload.uid] = trio.current_time()
        holders: list[PeerId] = []

        async def look() -> None:
            holders.extend(await self._index.holders(WORKLOAD, str(workload.resource)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await self._look_near(workload)
        self.placed(workload, holders)
        await self._see_that_guardians_hold(workload)

    async def keepers(self, workload: Workload) -> list[PeerId]:
        """The machines nearest to it that may guard it, nearest first, self left out where it is not as near."""
        near = await self._index.nearest(WORKLOAD, str(workload.resource))
        if workload.resource.kind != "Secret":
            return list(near[:GUARDIANS])
        found: list[PeerId] = []
        for peer in near:
            if len(found) < GUARDIANS and "submit" in await self._roles(peer):
                found.append(peer)
        return found

    async def _roles(self, peer: PeerId) -> frozenset[str]:
        roles = self._node.roles(peer)
        if roles is None:
            await self._node.find_peer(peer)  # its record, which its roles stand in, comes with it
            roles = self._node.roles(peer)
        return roles or frozenset()

    async def _look_near(self, workload: Workload) -> tuple[PeerId, ...]:
        near = tuple(await self.keepers(workload))
        self._near[workload.uid] = (trio.current_time(), near)
        return near

    async def _see_that_guardians_hold(self, workload: Workload) -> bool:
        """Whether all of them do in the end."""
        _, near = self._near.get(workload.uid, (0.0, ()))
        others = [peer for peer in near if peer != self._node.id]
        scope = scope_of_names(frozenset({str(workload.resource)}))
        await self._reader.read_all(others, scope, timeout=CHECK_TIMEOUT_S)
        manifest = self._view.manifest(str(workload.uid))
        newest = manifest.record if manifest else workload
        kept = [await self._has(peer, newest) or await self._give(peer, newest) for peer in others]
        return bool(others) and all(kept)

    async def _has(self, peer: PeerId, workload: Workload) -> bool:
        known = self._view.records.get(str(workload.uid), {}).get(peer)
        return known is not None and known.precedence >= workload.precedence

    # -- watching over

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                if self._node.large:
                    self._tick(nursery)
                self._reader.tidy()
                await trio.sleep(TICK_S)

    def _tick(self, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        held = {workload.uid: workload for workload in self._holdings.all()}
        self._forget_all_but(held)
        self._vigil.want(self._wanted(held.values()), now)
        for peer, resources in self._vigil.due(now):
            nursery.start_soon(self._check, peer, resources)
        for workload in held.values():
            self._look_after(workload, now, nursery)

    def _forget_all_but(self, held: Iterable[UUID]) -> None:
        uids = set(held)
        self._guarding &= uids
        for entry in self._table.entries("runners"):
            if UUID(entry.key[1]) not in uids:
                self._table.remove(entry.key)
        for table in (self._near, self._where, self._surveyed, self._rounds):
            for uid in [uid for uid in table if uid not in uids]:
                del table[uid]

    def _wanted(self, held: Iterable[Workload]) -> dict[PeerId, frozenset[str]]:
        wanted: dict[PeerId, set[str]] = {}
        for workload in held:
            if not Manifest.of(workload).runs_pods:
                continue
            acts = self.acts(workload)
            if acts:
                self._tell_runners(workload)
            else:
                self._table.remove(("runners", str(workload.uid)))
            peers = self._places(workload) if acts else set()
            if workload.uid in self._guarding or acts:
                peers.add(workload.author)
            for peer in peers - {self._node.id}:
                wanted.setdefault(peer, set()).add(str(workload.resource))
        return {peer: frozenset(sorted(texts)[:TEXTS_MAX]) for peer, texts in wanted.items()}

    async def _check(self, peer: PeerId, resources: frozenset[str]) -> None:
        if not await self._reader.try_read(peer, scope_of_names(resources), timeout=CHECK_TIMEOUT_S):
            return
        for workload in self._holdings.all():
            mine = workload.author == peer and workload.uid in self._guarding
            if mine and str(workload.resource) in resources and not await self._has(peer, workload):
                await self._give(peer, workload)  # its author has started anew

    def _heard(self, peer: PeerId) -> None:
        was_lost = self._vigil.is_lost(peer)
        self._vigil.answered(peer, trio.current_time())
        if was_lost:
            self._log.info("machine-back", peer=str(peer))
            self._wake_those_of(peer)

    def _silent(self, peer: PeerId) -> None:
        if self._vigil.failed(peer, trio.current_time()):
            self._log.warning("machine-lost", peer=str(peer))
            self._reader.lost(peer)
            self._wake_those_of(peer)

    def _wake_those_of(self, author: PeerId) -> None:
        for workload in self._holdings.all():
            if workload.author == author:
                self._wake(str(workload.uid))

    # -- rounds: is a workload where it has to be?

    def _look_after(self, workload: Workload, now: float, nursery: trio.Nursery) -> None:
        """Begin what is due for one workload that is held here, if nothing is under way for it."""
        uid = workload.uid
        if uid in self._looking:
            return
        due = self._rounds.setdefault(uid, now + SURVEY_S * self._rng.random())
        looked_at, _ = self._near.get(uid, (float("-inf"), ()))
        orphaned = uid in self._guarding and self._vigil.is_lost(workload.author)
        if orphaned and now - looked_at >= LOOK_NEARER_S:
            self._begin(self._look_nearer, workload, nursery)
        elif due <= now:
            self._rounds[uid] = now + SURVEY_S * (0.75 + self._rng.random() / 2)
            self._begin(self._round, workload, nursery)

    def _begin(
        self, what: Callable[[Workload], Awaitable[None]], workload: Workload, nursery: trio.Nursery
    ) -> None:
        async def run() -> None:
            try:
                await what(workload)
            finally:
                self._looking.discard(workload.uid)

        self._looking.add(workload.uid)
        nursery.start_soon(run)

    async def _look_nearer(self, workload: Workload) -> None:
        await self._look_near(workload)
        self._wake(str(workload.uid))

    async def _round(self, workload: Workload) -> None:
        """Guardians change with the fabric: see that those of now hold it, and let go of it where it is no duty."""
        runs = any(pod.node == self._node.id for pod in self._view.pods_of(str(workload.uid)))
        mine = workload.uid in self._guarding or workload.author == self._node.id
        if not mine and not runs:
            self._release(workload.uid)
            return
        if not mine and self._rng.random() * max(1, workload.replicas) >= RUNNERS_LOOKING:
            return
        near = await self._look_near(workload)
        held = await self._see_that_guardians_hold(workload)
        if self._node.id in near or workload.author == self._node.id or not held:
            return
        self._guarding.discard(workload.uid)
        if not runs and not self.acts(workload):
            self._release(workload.uid)
