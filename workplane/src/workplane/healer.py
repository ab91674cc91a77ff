"""Drives `workplane.healing`: looks at the catalogue when it is time, and asks the machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from magik_proto.records import ServiceRecord
from workplane.healing import Answered, Ask, End, Event, Failed, Healing, Leading, Looked, Output, Wanted

Heal = Callable[[int, int], Awaitable[bool]]
"""Asks the machine (missing, generation); whether the workload is disposed of. Raises OSError."""


class Healer:
    """``look`` gives the own workload's living records, ``end`` is called when the workload is disposed of."""

    def __init__(
        self,
        healing: Healing,
        look: Callable[[], Awaitable[tuple[ServiceRecord, ...]]],
        heal: Heal,
        end: Callable[[], None],
    ) -> None:
        self._healing = healing
        self._look = look
        self._heal = heal
        self._end = end
        self._log = structlog.get_logger(part="healing")
        self.asked = 0
        self.asked_for = 0

    @property
    def missing(self) -> int:
        """As of the last look."""
        return self._healing.missing(trio.current_time())

    def wanted(self, generation: int, replicas: int) -> None:
        """The workload has this manifest."""
        self._take(Wanted(generation, replicas))

    def leading(self, leads: bool) -> None:
        """Whether this replica holds the lease."""
        self._take(Leading(leads))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep_until(self._healing.next_timeout())
            outputs = self._take(Looked(await self._look()))
            for output in outputs:
                await self._carry_out(output)

    def _take(self, event: Event) -> list[Output]:
        return self._healing.receive(event, trio.current_time())

    async def _carry_out(self, output: Output) -> None:
        if isinstance(output, End):
            self._end()
            return
        try:
            disposed = await self._ask(output)
        except OSError as error:
            self._log.warning("machine-does-not-heal", missing=output.missing, error=str(error))
            self._take(Failed())
        else:
            for further in self._take(Answered(disposed)):
                await self._carry_out(further)

    async def _ask(self, ask: Ask) -> bool:
        disposed = await self._heal(ask.missing, ask.generation)
        self.asked += 1
        self.asked_for += ask.missing
        self._log.info("asked-to-heal", missing=ask.missing, generation=ask.generation, disposed=disposed)
        return disposed
