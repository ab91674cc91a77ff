"""The parts that a fabric needs which is larger than a machine has connections, joined. In a small one they rest."""

import random
from collections.abc import Callable, Iterable, Iterator

import trio

from machineplane.fabric.follow import Follower
from machineplane.fabric.guardian import Guardian
from machineplane.fabric.holdings import Holdings
from machineplane.fabric.index import WORKLOAD, Index, Thing
from machineplane.fabric.outlook import Outlook
from machineplane.fabric.oversight import Oversight
from machineplane.fabric.reader import Reader
from machineplane.fabric.remote import Remote
from machineplane.fabric.scope import OF
from machineplane.fabric.table import Table
from machineplane.fabric.view import View
from magik_mesh import Node
from magik_proto.identity import Identity


class Wide:
    """``others`` are things for the index beside workloads."""

    def __init__(
        self,
        *,
        node: Node,
        identity: Identity,
        wall: Callable[[], int],
        rng: random.Random,
        table: Table,
        view: View,
        holdings: Holdings,
        follower: Follower,
        guardian: Guardian,
        remote: Remote,
        others: Callable[[], Iterable[Thing]] = lambda: (),
    ) -> None:
        self._table = table
        self._others = others
        self.reader = Reader(node, table, view, lambda: follower.peers)
        self.index = Index(node, identity, wall, rng, self._things)
        self.oversight = Oversight(
            node=node,
            reader=self.reader,
            index=self.index,
            table=table,
            view=view,
            holdings=holdings,
            give=remote.give,
            wake=guardian.wake,
            release=guardian.release,
            rng=rng,
        )
        self.outlook = Outlook(node, follower, self.reader, self.index, view)
        guardian.large = self.oversight
        remote.keepers = self.oversight.keepers

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for task in (self.index.run, self.oversight.run, self.outlook.run):
                nursery.start_soon(task)

    def _things(self) -> Iterator[Thing]:
        """Workloads of which a pod runs here, this machine's own Node, and what else there is."""
        found = [entry.value or {} for kind in ("node", "pod") for entry in self._table.entries(kind)]
        yield from ((WORKLOAD, str(value[OF])) for value in found if OF in value)
        yield from self._others()
