"""The hybrid clock: forward only, near the wall clock, after what it has seen."""

from __future__ import annotations

from itertools import pairwise

import pytest

from magik_proto.clock import MAX_AHEAD_MS, HybridClock, stamp_ms
from magik_proto.errors import RemoteProtocolError


class Wall:
    """A wall clock that stands where it is put."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


def test_stamps_follow_the_wall_clock() -> None:
    wall = Wall(1000)
    clock = HybridClock(wall)
    assert clock.last == 0
    assert stamp_ms(clock.now()) == 1000
    wall.ms = 2000
    assert clock.now() == 2000 << 16
    assert clock.last == 2000 << 16


def test_stamps_increase_while_the_wall_stands_or_goes_back() -> None:
    wall = Wall(1000)
    clock = HybridClock(wall)
    stamps = [clock.now() for _ in range(70_000)]
    wall.ms = 500
    stamps += [clock.now() for _ in range(10)]
    assert all(a < b for a, b in pairwise(stamps))
    assert stamp_ms(stamps[-1]) == 1001, "the counter carries into the milliseconds"


def test_later_stamps_are_after_what_was_observed() -> None:
    clock = HybridClock(Wall(1000))
    seen = (1000 + MAX_AHEAD_MS) << 16
    clock.observe(seen)
    assert clock.now() == seen + 1
    clock.observe(5)
    assert clock.now() == seen + 2


@pytest.mark.parametrize("stamp", [(1001 + MAX_AHEAD_MS) << 16, -1, 1 << 64])
def test_a_broken_clock_does_not_drag_ours(stamp: int) -> None:
    clock = HybridClock(Wall(1000))
    with pytest.raises(RemoteProtocolError) as caught:
        clock.observe(stamp)
    assert caught.value.rule == "clock.ahead"
    assert clock.now() == 1000 << 16
