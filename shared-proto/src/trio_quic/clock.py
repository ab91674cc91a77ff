"""When an endpoint's connections are to be looked at again: one heap, and one task that minds it."""

import heapq
from typing import Any

import trio

from .connection import Connection

# Stale entries are thrown out when they are this many more than there are connections.
MAX_STALE = 256


class Clock:
    """Connections by their ``due``. Times that move on are found out when the old one comes."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Connection[Any]]] = []
        self._ticks = 0
        self._alarm = trio.CancelScope()

    def arm(self, connection: Connection[Any], connections: int) -> None:
        """Note when the connection, one of so many, wants to be looked at."""
        due = connection.due()
        if due >= connection.armed:
            return
        connection.armed = due
        self._ticks += 1
        heapq.heappush(self._heap, (due, self._ticks, connection))
        if due < self._alarm.deadline:
            self._alarm.deadline = due
        if len(self._heap) > 2 * connections + MAX_STALE:
            self._heap = [(due, tick, it) for due, tick, it in self._heap if due == it.armed]
            heapq.heapify(self._heap)

    async def next_due(self) -> tuple[float, list[Connection[Any]]]:
        """Wait until there are connections to be looked at; returns them, and the time (never before theirs)."""
        with trio.CancelScope() as self._alarm:
            self._alarm.deadline = self._heap[0][0] if self._heap else float("inf")
            await trio.sleep_forever()
        now = max(trio.current_time(), self._heap[0][0]) if self._heap else trio.current_time()
        found: list[Connection[Any]] = []
        while self._heap and self._heap[0][0] <= now:
            due, _, connection = heapq.heappop(self._heap)
            if due == connection.armed:
                connection.armed = float("inf")
                found.append(connection)
        return now, found
