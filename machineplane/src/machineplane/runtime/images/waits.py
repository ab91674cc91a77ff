"""Pauses between tries. How they pass, and the randomness in them, are given."""

import random
from collections.abc import Awaitable, Callable

import trio
from attrs import frozen


@frozen
class Waits:
    """Jittered pauses, so that machines that failed together do not come back together."""

    rng: random.Random
    sleep: Callable[[float], Awaitable[None]] = trio.sleep

    async def pause(self, most_s: float, least_s: float = 0.0) -> None:
        """Between half of ``most_s`` and all of it, but no less than ``least_s``."""
        await self.sleep(max(least_s, most_s * self.rng.uniform(0.5, 1.0)))
