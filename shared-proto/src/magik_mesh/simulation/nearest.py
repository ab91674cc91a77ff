"""The truth about who is near what, for measuring; and what a colluding liar knows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from magik_proto.kademlia import BITS, Contact


class Nearest:
    """Contacts by position."""

    __slots__ = ("_contacts", "_places")

    def __init__(self, contacts: Iterable[Contact]) -> None:
        self._contacts = sorted(contacts, key=lambda contact: contact.place)
        self._places = [contact.place for contact in self._contacts]

    def __len__(self) -> int:
        return len(self._contacts)

    def sharing(self, place: int, bits: int) -> list[Contact]:
        """Those whose position begins with the same `bits` bits."""
        low, high = self._range(place, bits)
        return self._contacts[low:high]

    def of(self, place: int, count: int) -> list[Contact]:
        """The `count` nearest, nearest first."""
        bits = 0
        while bits < BITS and self._size(place, bits + 1) >= count:
            bits += 1
        found = self.sharing(place, bits)
        found.sort(key=lambda contact: contact.place ^ place)
        return found[:count]

    def bucket(self, place: int, index: int) -> tuple[int, int]:
        """The slice of `at` that holds bucket `index` of a peer at `place`."""
        return self._range(place ^ (1 << (BITS - 1 - index)), index + 1)

    def at(self, index: int) -> Contact:
        """By order of position."""
        return self._contacts[index]

    def _size(self, place: int, bits: int) -> int:
        low, high = self._range(place, bits)
        return high - low

    def _range(self, place: int, bits: int) -> tuple[int, int]:
        rest = BITS - bits
        low = place >> rest << rest
        return bisect_left(self._places, low), bisect_left(self._places, low + (1 << rest))
