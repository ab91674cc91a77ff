"""The machine's news of the pod: a long poll that goes on for as long as the agent lives, machine or no machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from workplane.answers import State
from workplane.machine import Machine, MachineError
from workplane.patience import Patience

PAUSE_S: Final = 0.05
"""Between two answers: a machine that always has news is asked twenty times a second at most. A guess."""

OnState = Callable[[State], None]


class Feed:
    """`listeners` hear every state, in order; `on_return` is called when the machine answers after it did not."""

    def __init__(self, machine: Machine, on_return: Callable[[], None] = lambda: None) -> None:
        self._machine = machine
        self._on_return = on_return
        self._patience = Patience()
        self.listeners: list[OnState] = []
        self.state: State | None = None

    async def run(self) -> None:
        """Ask until cancelled."""
        version = 0
        while True:
            try:
                self.state = await self._machine.state(version)
            except MachineError as error:
                await self._patience.failed(error)
                version = (
                    0  # a daemon that has restarted may count anew; and so it answers at once when it is back
                )
                continue
            if self._patience.succeeded():
                self._on_return()
            version = self.state.version
            for listener in self.listeners:
                listener(self.state)
            await trio.sleep(PAUSE_S)
