"""Deadlines of calls: many, and nearly all of them never come.

A cancel scope with a deadline for each call would cost as much as a task switch or two; here a deadline is an entry of one
heap, and one task minds them all.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import trio
from attrs import define, field

# Entries that were cancelled stay in the heap until they are this many more than the others.
MAX_STALE = 256


@define(eq=False)
class Deadline:
    """One entry: `action` is called once when Trio's clock reaches `at`, unless it was cancelled."""

    at: float
    action: Callable[[], object] | None
    passed: bool = False


@define(eq=False)
class Alarm:
    """See the module's text. `run` has to be running."""

    _heap: list[tuple[float, int, Deadline]] = field(factory=list)
    _live: int = 0
    _count: int = 0
    _nap: trio.CancelScope = field(factory=trio.CancelScope)

    def set(self, at: float, action: Callable[[], object]) -> Deadline:
        """Have `action` called at `at`. It must not raise."""
        deadline = Deadline(at, action)
        self._count += 1
        self._live += 1
        heapq.heappush(self._heap, (at, self._count, deadline))
        if at < self._nap.deadline:
            self._nap.deadline = at
        return deadline

    def cancel(self, deadline: Deadline) -> None:
        """Forget it; without effect if that, or its time, has come already."""
        if deadline.action is None:
            return
        deadline.action = None
        self._live -= 1
        if len(self._heap) > 2 * self._live + MAX_STALE:
            self._heap = [item for item in self._heap if item[2].action is not None]
            heapq.heapify(self._heap)

    async def run(self) -> None:
        """Call what is due, until cancelled."""
        while True:
            with trio.CancelScope() as self._nap:
                self._nap.deadline = self._heap[0][0] if self._heap else float("inf")
                await trio.sleep_forever()
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                self._ring(heapq.heappop(self._heap)[2])

    def _ring(self, deadline: Deadline) -> None:
        action, deadline.action = deadline.action, None
        if action is not None:
            self._live -= 1
            deadline.passed = True
            action()
