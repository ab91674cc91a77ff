"""Time and randomness, passed in: what a test replaces to be deterministic."""

from __future__ import annotations

import os
import time
from typing import Protocol

import trio
from attrs import frozen


class Clock(Protocol):
    """All that a node reads of the world beside its sockets."""

    def now(self) -> float:
        """Monotonic seconds on Trio's clock, so that deadlines and timers agree."""
        ...

    def timestamp(self) -> int:
        """Milliseconds since the epoch, for what is signed or expires."""
        ...

    def random(self, size: int) -> bytes:
        """`size` random bytes; for nonces and jitter, never for keys."""
        ...


@frozen
class SystemClock:
    """The running Trio loop's clock, the wall clock and the kernel's random source."""

    def now(self) -> float:
        """See `Clock.now`."""
        return trio.current_time()

    def timestamp(self) -> int:
        """See `Clock.timestamp`."""
        return time.time_ns() // 1_000_000

    def random(self, size: int) -> bytes:
        """See `Clock.random`."""
        return os.urandom(size)


@frozen
class Bits:
    """A clock's random bytes as bits, for `magik_proto.machine.shuffled`."""

    _clock: Clock

    def getrandbits(self, k: int, /) -> int:
        """A random number of `k` bits."""
        return int.from_bytes(self._clock.random((k + 7) // 8), "big") & ((1 << k) - 1)


def unit_random(clock: Clock) -> float:
    """A uniform number in [0, 1)."""
    return int.from_bytes(clock.random(6), "big") / (1 << 48)
