"""A hybrid logical clock: stamps that follow wall time and never go back (Kulkarni et al., 2014)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from magik_proto.errors import RemoteProtocolError

COUNTER_BITS: Final = 16
MAX_STAMP: Final = (1 << 64) - 1
MAX_AHEAD_MS: Final = 30_000
"""How far ahead of our wall clock another's stamp may be (the clock skew of protocol.md). At it: refused, for
one machine with a broken clock would otherwise drag the whole fabric's stamps into the future."""


class HybridClock:
    """Makes 64-bit stamps ``ms << 16 | counter``, strictly increasing, and after every stamp that it
    observed.

    `wall` gives milliseconds since the epoch. When it stands still or goes back, the counter counts on (and
    carries into the milliseconds after 65,536 stamps in one of them), so that order holds before nearness to
    wall time.
    """

    def __init__(self, wall: Callable[[], int]) -> None:
        self._wall = wall
        self._last = 0

    @property
    def last(self) -> int:
        """The highest stamp made or observed; 0 before the first."""
        return self._last

    def now(self) -> int:
        """A stamp higher than all before."""
        self._last = max(self._wall() << COUNTER_BITS, self._last + 1)
        return self._last

    def observe(self, stamp: int) -> None:
        """Later stamps will be higher than `stamp`, which came in a message.

        Raises `RemoteProtocolError` (``clock.ahead``) for a stamp more than `MAX_AHEAD_MS` ahead of the wall
        clock, and keeps nothing of it.
        """
        ahead = stamp_ms(stamp) - self._wall()
        if not 0 <= stamp <= MAX_STAMP or ahead > MAX_AHEAD_MS:
            raise RemoteProtocolError(
                "clock.ahead", f"stamp {stamp} is {ahead} ms ahead, allowed {MAX_AHEAD_MS}"
            )
        self._last = max(self._last, stamp)


def stamp_ms(stamp: int) -> int:
    """The milliseconds since the epoch in `stamp`."""
    return stamp >> COUNTER_BITS
