"""Messages that we passed on, and whether others of the mesh turn out to have them too."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import ceil
from typing import NamedTuple

import attrs

from magik_proto.identity import PeerId


class Alone(NamedTuple):
    """A message that few of our mesh have; `saviour` sent it because it was asked, if it was."""

    key: bytes
    topic: str
    saviour: PeerId | None


@attrs.define
class _Passed:
    alone: Alone
    due: float
    lacking: int  # so many of the mesh have to show yet that they have it
    silent: dict[PeerId, None]  # of the mesh


class Echoes:
    """In a mesh that works a message comes from several sides.  Where, `wait_s` after it was passed on, less than
    `share` of the mesh has sent it too, the mesh may be thin, or of sybils: then it is time to look elsewhere.

    At most `capacity` messages are watched; at it, further ones are not.
    """

    def __init__(self, wait_s: float, share: float, capacity: int) -> None:
        self._wait_s = wait_s
        self._share = share
        self._capacity = capacity
        self._passed: dict[bytes, _Passed] = {}  # oldest first

    def next_timeout(self) -> float | None:
        """When to call `alone`; None while nothing is watched."""
        for first in self._passed.values():
            return first.due
        return None

    def passed(self, message: Alone, senders: Iterable[PeerId], mesh: Collection[PeerId], now: float) -> None:
        """A message that came from `senders` goes to the rest of the mesh."""
        silent = dict.fromkeys(mesh)
        for peer in senders:
            silent.pop(peer, None)
        lacking = ceil(self._share * len(mesh)) - (len(mesh) - len(silent))
        if lacking > 0 and len(self._passed) < self._capacity:
            self._passed[message.key] = _Passed(message, now + self._wait_s, lacking, silent)

    def heard(self, key: bytes, peer: PeerId) -> None:
        """A peer has a message."""
        passed = self._passed.get(key)
        if passed is None or passed.silent.pop(peer, self) is self:
            return
        passed.lacking -= 1
        if not passed.lacking:
            del self._passed[key]

    def alone(self, now: float) -> list[Alone]:
        """The messages that had no echo in time; each once."""
        found: list[Alone] = []
        while self._passed and now >= self._passed[(key := next(iter(self._passed)))].due:
            found.append(self._passed.pop(key).alone)
        return found
