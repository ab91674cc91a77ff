"""A delete reaches machines that were away when it was made."""

from uuid import UUID

import pytest
import trio
from attrs import evolve
from fabric_support import FakeMachine, Wall, deployment, mirror, new_view, record
from test_holdings import disposal_of
from trio.testing import MockClock

from machineplane.fabric.disposals import SWEEP_S, Disposals
from machineplane.fabric.holdings import DISPOSAL_LIFE_S, TOMBSTONE_LIFE_S, Holdings
from machineplane.fabric.tombstones import Tombstones
from magik_mesh.testing import memory_fabric
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.messages import Disposal, encode_message
from magik_proto.records import Workload
from magik_proto.signing import sign

EVERYTHING = frozenset({"run", "submit"})


class Machine(FakeMachine):
    """Holdings, table, view and disposals as a daemon has them, on Trio's clock."""

    def __init__(self, number: int, wall: Wall) -> None:
        super().__init__(number, wall)
        self.view, self.holdings, self.stopped = new_view(self.id, wall), Holdings(), list[UUID]()
        began, start = wall.now, trio.current_time()
        self.disposals = Disposals(
            identity=self.identity,
            wall=lambda: began + int(1000 * (trio.current_time() - start)),
            holdings=self.holdings,
            table=self.table,
            view=self.view,
            stop=self.stopped.append,
            publish=self.publish,
            roles=lambda _: EVERYTHING,
        )

    async def publish(self, disposal: Disposal) -> None:
        pass  # nobody else hears it by gossip

    def guard(self, workload: Workload) -> None:
        self.holdings.offer(workload, trio.current_time())
        self.hold(workload)
        self.run(workload, f"pod-{self.id.short}")

    def told(self) -> list[str]:
        return [entry.key[1] for entry in self.table.entries("disposal")]


async def test_a_machine_that_was_away_for_hours_drops_what_was_deleted(autojump_clock: MockClock) -> None:
    wall = Wall()
    here, away = Machine(1, wall), Machine(2, wall)
    workload = record(deployment(), here.identity)
    here.guard(workload)
    away.guard(workload)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.disposals.run)
        await here.disposals.dispose(workload)
        assert here.told() == [str(workload.uid)]
        await trio.sleep(5 * 3600)
        assert here.told() == [], "nobody is told any more"
        mirror(here.view, away)  # the other is back, and shows its manifest and pod
        assert here.view.manifest(str(workload.uid)) is None, "it does not come back"
        assert here.told() == [str(workload.uid)]
        mirror(away.view, here)
        assert away.holdings.get(workload.uid) is None
        assert away.stopped == [workload.uid]
        await trio.sleep(DISPOSAL_LIFE_S + SWEEP_S)
        assert here.told() == []
        nursery.cancel_scope.cancel()


async def test_it_is_forgotten_after_its_life_wherever_it_was_heard(autojump_clock: MockClock) -> None:
    wall = Wall()
    here, late = Machine(1, wall), Machine(2, wall)
    workload = record(deployment(), here.identity)
    async with trio.open_nursery() as nursery:
        for machine in (here, late):
            nursery.start_soon(machine.disposals.run)
        await here.disposals.dispose(workload)
        await trio.sleep(TOMBSTONE_LIFE_S - 100)
        await late.disposals.learn(here.id, here.disposals.remembered())
        assert late.holdings.is_disposed(workload.uid, trio.current_time())
        await trio.sleep(100 + SWEEP_S)
        for machine in (here, late):
            assert machine.disposals.remembered() == []
            assert machine.view.disposed == set()
            assert machine.holdings.offer(workload, trio.current_time()), "told late, it does not live longer"
        nursery.cancel_scope.cancel()


async def test_a_disposal_older_than_its_life_is_not_taken(autojump_clock: MockClock) -> None:
    wall = Wall()
    here = Machine(1, wall)
    workload = record(deployment(), here.identity)
    here.guard(workload)
    here.disposals.obey(disposal_of(workload))  # of 1970
    assert here.holdings.get(workload.uid) is not None
    assert here.stopped == []


async def test_a_daemon_that_starts_asks_the_first_it_meets(autojump_clock: MockClock) -> None:
    wall = Wall()
    old, young = Machine(1, wall), Machine(2, wall)
    workload = record(deployment(), old.identity)
    young.guard(workload)  # adopted with its pod
    async with memory_fabric(2) as fabric:
        a, b = fabric.nodes
        Tombstones(a, old.disposals.remembered, old.disposals.learn)
        mine = Tombstones(b, young.disposals.remembered, young.disposals.learn)
        await fabric.connected()
        await old.disposals.dispose(workload)
        await mine.met(a.id)
        assert young.stopped == [workload.uid]
        assert young.holdings.get(workload.uid) is None
        await mine.met(PeerId(bytes(31) + b"x"))  # unreachable: asked in vain, without harm


async def test_what_nobody_signed_is_not_learnt(autojump_clock: MockClock) -> None:
    wall = Wall()
    here = Machine(1, wall)
    workload = record(deployment(), here.identity)
    here.guard(workload)
    forged = evolve(
        sign(evolve(disposal_of(workload), timestamp=wall(), signature=b""), here.identity), generation=9
    )
    with pytest.raises(RemoteProtocolError, match="signature"):
        await here.disposals.learn(here.id, [encode_message(forged)])
    assert here.holdings.get(workload.uid) is not None
