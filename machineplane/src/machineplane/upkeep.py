"""In a large fabric: what this machine's pods depend on and other machines have is read again and again.

In a small one everything is followed, and this rests.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import trio
from attrs import frozen

TICK_S = 1.0  # so late at most the first reading begins for a pod that is new
PERIOD_S = 30.0  # as often as volumes look at their objects; a guess
SPACE_S = 60.0  # a guess: how often all manifests of a namespace are read at most
PER_SECOND = 8.0  # machines asked a second for one namespace at most, as in `fabric.vigil`; a guess
AT_ONCE = 4
WANTED_MAX = 256  # guess: of what is more nothing is read again


@frozen(order=True)
class Wanted:
    """An object, or all manifests of a namespace where ``name`` is empty."""

    namespace: str
    kind: str = ""
    name: str = ""


class Outlook(Protocol):
    """What reads; as `machineplane.fabric.outlook`."""

    async def one(self, kind: str, namespace: str | None, name: str) -> None: ...
    async def everything_in(self, namespace: str) -> None: ...


class Upkeep:
    """``machines()`` is the fabric's size where it is large, else 0; ``wanted()`` is what pods of this machine need."""

    def __init__(
        self, outlook: Outlook, machines: Callable[[], int], wanted: Callable[[], Iterable[Wanted]]
    ) -> None:
        self._outlook = outlook
        self._machines = machines
        self._wanted = wanted
        self._read_at: dict[Wanted, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self._machines():
                await self._round()
            else:
                self._read_at.clear()
            await trio.sleep(TICK_S)

    async def service(self, namespace: str, name: str) -> None:
        """The view has the Service of that name, and what it may select as it was not long ago."""
        if not self._machines():
            return
        await self._outlook.one("Service", namespace, name)
        space = Wanted(namespace)
        if self._is_due(space):
            await self._read(space)

    def _is_due(self, what: Wanted) -> bool:
        period = PERIOD_S if what.name else max(SPACE_S, self._machines() / PER_SECOND)
        return trio.current_time() - self._read_at.get(what, float("-inf")) >= period

    async def _round(self) -> None:
        wanted = sorted(set(self._wanted()))[:WANTED_MAX]
        limiter = trio.CapacityLimiter(AT_ONCE)

        async def read(what: Wanted) -> None:
            async with limiter:
                await self._read(what)

        async with trio.open_nursery() as nursery:
            for what in filter(self._is_due, wanted):
                nursery.start_soon(read, what)
        for what in [what for what in self._read_at if what not in wanted and self._is_due(what)]:
            del self._read_at[what]

    async def _read(self, what: Wanted) -> None:
        self._read_at[what] = trio.current_time()
        if what.name:
            await self._outlook.one(what.kind, what.namespace, what.name)
        else:
            await self._outlook.everything_in(what.namespace)
