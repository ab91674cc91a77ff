"""What the state machines of this package have in common.

Every machine has the shape of `Machine`: an event and a reading of a monotonic clock (float seconds) go in,
a list of outputs comes out; no I/O, no clock and no random source of its own.  An illegal event raises
LocalProtocolError and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")
EventT_contra = TypeVar("EventT_contra", contravariant=True)
OutputT = TypeVar("OutputT")


class Machine(Protocol[EventT_contra, OutputT]):
    """The one shape.  `next_timeout` is the time at which to call `poll`, or None for never."""

    def receive(self, event: EventT_contra, now: float) -> list[OutputT]: ...

    def poll(self, now: float) -> list[OutputT]: ...

    def next_timeout(self) -> float | None: ...


class RandomSource(Protocol):
    """What machines ask of a random source; `random.Random(seed)` is one."""

    def getrandbits(self, k: int, /) -> int: ...


def below(rng: RandomSource, bound: int) -> int:
    """A number from 0 up to, not including, `bound` (> 0), each equally likely."""
    bits = bound.bit_length()
    while (value := rng.getrandbits(bits)) >= bound:
        pass
    return value


def shuffled(rng: RandomSource, items: Iterable[T]) -> list[T]:
    """The items in a random order (Fisher and Yates).  Pass them in a determined order: no sets."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        other = below(rng, last + 1)
        result[last], result[other] = result[other], result[last]
    return result
