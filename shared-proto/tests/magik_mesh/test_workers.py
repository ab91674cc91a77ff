"""Calls of one peer: as many tasks as are at work at once, none for those that do not wait, and nobody is kept waiting."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from magik_mesh import Call, PeerUnreachable
from magik_mesh.testing import memory_fabric
from magik_mesh.workers import MAX_IDLE

METHOD = "/test/work/1.0.0"


class Spawned(trio.abc.Instrument):
    """Counts the tasks that are started."""

    count = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def workers() -> int:
    """How many workers there are, of all connections' both ends."""
    await wait_all_tasks_blocked()
    tasks, todo = 0, [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        assert task is not None
        tasks += task.name.endswith("Workers.work")
        for nursery in task.child_nurseries:
            todo.extend(nursery.child_tasks)
    return tasks


async def test_a_call_that_waits_holds_up_no_other(autojump_clock: MockClock) -> None:
    async with memory_fabric(2) as fabric:
        await fabric.connected()
        asker, answerer = fabric.nodes
        release = trio.Event()
        at_work = 0

        async def work(call: Call) -> object:
            nonlocal at_work
            at_work += 1
            if call.body == "wait":
                await release.wait()
            return call.body

        answerer.handle(METHOD, work)
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(asker.call, answerer.id, METHOD, "wait")
            await trio.sleep(0.5)
            assert at_work == 30
            assert await asker.call(answerer.id, METHOD, "quick", timeout=1.0) == "quick"
            release.set()
        # Of either end: those who wait for calls, and the reader of gossip.
        assert await workers() <= 2 * (MAX_IDLE + 1)


async def test_calls_that_do_not_wait_start_no_tasks(autojump_clock: MockClock) -> None:
    async with memory_fabric(2) as fabric:
        await fabric.connected()
        asker, answerer = fabric.nodes

        async def work(call: Call) -> object:
            return call.body

        answerer.handle(METHOD, work)
        await asker.call(answerer.id, METHOD)  # from the first on, one worker more waits than is at work
        started = Spawned()
        trio.lowlevel.add_instrument(started)
        for number in range(60):
            assert await asker.call(answerer.id, METHOD, number) == number
        trio.lowlevel.remove_instrument(started)
        assert started.count == 0


async def test_workers_end_with_their_connection(autojump_clock: MockClock) -> None:
    async with memory_fabric(2) as fabric:
        await fabric.connected()
        asker, answerer = fabric.nodes

        async def hang(_: Call) -> None:
            await trio.sleep_forever()

        answerer.handle(METHOD, hang)
        outcome: list[str] = []

        async def ask() -> None:
            try:
                await asker.call(answerer.id, METHOD)
            except PeerUnreachable as error:
                outcome.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await trio.sleep(0.5)
            for link in answerer._links.all():
                link.close(1, "goodbye")
        assert len(outcome) == 3
        assert await workers() == 0
