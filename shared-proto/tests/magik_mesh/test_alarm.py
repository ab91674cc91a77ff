"""Deadlines come in order, once, and not when they were cancelled; those that were do not pile up."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from magik_mesh.alarm import MAX_STALE, Alarm


async def test_deadlines_come_at_their_time_whatever_their_order(autojump_clock: MockClock) -> None:
    alarm, rung = Alarm(), list[tuple[int, float]]()
    random = Random(3)
    times = [random.randrange(1, 50) for _ in range(100)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        await trio.lowlevel.checkpoint()
        deadlines = [
            alarm.set(float(at), lambda at=at: rung.append((at, trio.current_time()))) for at in times
        ]
        gone = deadlines[::3]
        for deadline in gone:
            alarm.cancel(deadline)
            alarm.cancel(deadline)
        await trio.sleep(60)
        expected = sorted(at for number, at in enumerate(times) if number % 3)
        assert [at for at, _ in rung] == expected
        assert all(now == pytest.approx(at, abs=0.01) for at, now in rung)
        assert [deadline.passed for deadline in deadlines] == [deadline not in gone for deadline in deadlines]
        nursery.cancel_scope.cancel()


async def test_a_deadline_set_by_another_or_in_the_past_comes_too(autojump_clock: MockClock) -> None:
    alarm, rung = Alarm(), list[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        alarm.set(1.0, lambda: alarm.set(0.5, lambda: rung.append("past")))
        await trio.sleep(2)
        assert rung == ["past"]
        nursery.cancel_scope.cancel()


async def test_cancelled_deadlines_do_not_pile_up() -> None:
    alarm = Alarm()
    kept = [alarm.set(1e9, lambda: None) for _ in range(10)]
    for _ in range(10_000):
        alarm.cancel(alarm.set(1e9, lambda: None))
    assert len(alarm._heap) <= 2 * len(kept) + MAX_STALE + 1
