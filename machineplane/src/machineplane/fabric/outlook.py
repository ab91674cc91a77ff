"""What the API reads: all that a request is about is in the view before it is answered, whatever the fabric's size."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import define, frozen

from machineplane.fabric.crawl import MACHINES_MAX
from machineplane.fabric.follow import Follower
from machineplane.fabric.index import WORKLOAD, Index
from machineplane.fabric.reader import Reader
from machineplane.fabric.scope import Scope, resources_of, scope_of_kind, scope_of_names
from machineplane.fabric.view import View
from magik_mesh import Node
from magik_proto.identity import PeerId

NEAREST = 5  # guess: three guardians, and two in case that the machines around them have just changed
YOUNG_S = 120.0  # so long the index is not trusted to know what is not there
REFRESH_S = 2.0  # guess: how late a watch hears of what happens on machines that are not connected
PER_SECOND = 16.0  # and how many machines are read for one a second at most
_MAY_BE_UNTOLD = ("Pod", "Event")  # whose names the guardians of nothing know, or not yet


@frozen
class _Topic:
    kind: str
    namespace: str | None
    name: str | None


@define
class _Watched:
    count: int
    next_at: float
    under_way: bool = False


class Outlook:
    """Settles the view for reads, and keeps it settled for watches."""

    def __init__(self, node: Node, follower: Follower, reader: Reader, index: Index, view: View) -> None:
        self._node = node
        self._follower = follower
        self._reader = reader
        self._index = index
        self._view = view
        self._large_since: float | None = None
        self._watched: dict[_Topic, _Watched] = {}

    async def all_of(self, kind: str, namespace: str | None, name: str | None = None) -> str:
        """The view has all objects of a kind (of one name, if that is given); what to warn of, else nothing."""
        if not self._node.large:
            await self._follower.settle()
            return ""
        if name is not None and resources_of(kind, namespace or name, name):
            await self.one(kind, namespace, name)
            return ""
        return await self._reader.crawl(scope_of_kind(kind, namespace))

    async def everything_in(self, namespace: str) -> None:
        """The view has all manifests of a namespace."""
        if self._node.large:
            await self._reader.crawl(Scope({"workload"}, namespace))
        else:
            await self._follower.settle()

    async def one(self, kind: str, namespace: str | None, name: str) -> None:
        """The view has the object of that name, if there is one, and all that it is made of."""
        if not self._node.large:
            await self._follower.settle()
            return
        resources = resources_of(kind, namespace, name)
        if resources:
            await self._read(resources)
        if (kind, namespace or "", name) in self._view.rendered:
            return
        if not resources or kind in _MAY_BE_UNTOLD or self._young:
            await self._reader.crawl(scope_of_kind(kind, namespace))

    async def _read(self, resources: tuple[str, ...]) -> None:
        """From the guardians, from who tells of it, and from the authors of what they have."""
        ask: set[PeerId] = set()

        async def near(resource: str) -> None:
            ask.update((await self._index.nearest(WORKLOAD, resource))[:NEAREST])

        async def holders(resource: str) -> None:
            ask.update(await self._index.holders(WORKLOAD, resource))

        async with trio.open_nursery() as nursery:
            for resource in resources:
                nursery.start_soon(near, resource)
                nursery.start_soon(holders, resource)
        scope = scope_of_names(frozenset(resources))
        await self._reader.read_all(ask, scope)
        for _ in range(2):  # the authors, and then whom these name
            await self._reader.read_all((more := self._involved(resources) - ask), scope)
            ask |= more

    def _involved(self, resources: tuple[str, ...]) -> set[PeerId]:
        """Authors of these resources, and who has been seen to run pods of them."""
        found: set[PeerId] = set()
        for uid, records in self._view.records.items():
            mine = [record for record in records.values() if str(record.resource) in resources]
            if mine:
                found |= {record.author for record in mine} | {p.node for p in self._view.pods_of(uid)}
                found |= self._view.runners(uid)
        return found

    @property
    def _young(self) -> bool:
        return self._large_since is None or trio.current_time() - self._large_since < YOUNG_S

    # -- watches

    @contextmanager
    def watching(self, kind: str, namespace: str | None, name: str | None) -> Iterator[None]:
        """While a watch is open, what it is about is read again and again."""
        topic = _Topic(kind, namespace, name)
        watched = self._watched.setdefault(topic, _Watched(0, trio.current_time() + REFRESH_S))
        watched.count += 1
        try:
            yield
        finally:
            watched.count -= 1
            if not watched.count and self._watched.get(topic) is watched:
                del self._watched[topic]

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                now = trio.current_time()
                if not self._node.large:
                    self._large_since = None
                elif self._large_since is None:
                    self._large_since = now
                for topic, watched in list(self._watched.items()):
                    if self._node.large and watched.next_at <= now and not watched.under_way:
                        watched.under_way = True
                        nursery.start_soon(self._refresh, topic, watched)
                await trio.sleep(REFRESH_S / 4)

    async def _refresh(self, topic: _Topic, watched: _Watched) -> None:
        began = trio.current_time()
        await self.all_of(topic.kind, topic.namespace, topic.name)
        machines = min(self._node.size_estimate(), MACHINES_MAX) if topic.name is None else 1
        watched.next_at = max(began + machines / PER_SECOND, trio.current_time()) + REFRESH_S
        watched.under_way = False
