"""A random source whose numbers are the same on every version of every Python."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_STEP = 2.0**-53


class SeededRandom:
    """SplitMix64 (Steele, Lea, Flood 2014).  Good enough to shake machines, useless for secrets."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def getrandbits(self, k: int, /) -> int:
        """A number of `k` random bits."""
        if k <= 64:
            return self._next() >> (64 - k) if k else 0
        value = 0
        for _ in range(-(-k // 64)):
            value = value << 64 | self._next()
        return value >> (-k % 64)

    def random(self) -> float:
        """A number from 0 up to, not including, 1."""
        return (self._next() >> 11) * _STEP

    def _next(self) -> int:
        self._state = mixed = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
        return mixed ^ mixed >> 31
