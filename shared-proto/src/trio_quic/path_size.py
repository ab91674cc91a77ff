"""How long a datagram the path takes: probing as in RFC 8899, by a ladder of the sizes that networks have.

A machine without I/O. Sizes are bytes of UDP payload. Probing waits for bulk: calls of some hundred bytes gain nothing by
it, and never pay for it. A probe is a datagram of its own with a PING and padding: its loss delays no data, and is no
sign of congestion (RFC 9000 §14.4).
"""

from typing import Final

from attrs import define, field

LADDER: Final = (1452, 8952)
"""What IPv6 leaves of an Ethernet frame (1500), and of a jumbo frame (9000). Measured between two processes over loopback:
1.2 and 3 times the bulk that 1200 carries (medians of three rounds). Beyond, only loopback goes."""
MAX_PROBES: Final = 3
"""Probes of one size that may be lost before it is given up (RFC 8899 §5.1.2)."""
WORTH: Final = 32
"""Full datagrams after which a longer one is probed for. A guess: above what a call takes."""
BLACK_HOLE: Final = 16
"""Full datagrams lost in a row, none of their size arriving, after which the path is taken to have become narrower (RFC
8899 §4.3): more than a full queue at a router drops at once, for most. A guess; a mistake costs speed alone."""


@define
class PathSize:
    """What one path is known to take. ``base`` is what every path takes, ``largest`` the most that is tried."""

    base: int
    largest: int
    size: int = field(init=False)
    _full: int = field(default=0, init=False)
    _lost: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _probing: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.size = self.base

    def on_full(self) -> None:
        """A datagram was sent that had no room for more."""
        self._full += 1

    def probe(self) -> int:
        """The size of the probe that is to be sent now, which is thereby under way; 0: none."""
        if self._full < WORTH or self._probing or self._failed >= MAX_PROBES:
            return 0
        self._probing = next((step for step in LADDER if self.size < step <= self.largest), 0)
        self._full = 0
        return self._probing

    def on_probe(self, size: int, arrived: bool) -> None:
        """What became of the probe of this size. One from before a ``restart`` counts for nothing."""
        if size != self._probing:
            return
        self._probing = 0
        if arrived:
            self.size, self._failed, self._full, self._lost = size, 0, WORTH, 0
        else:
            self._failed += 1

    def on_data(self, arrived: bool) -> bool:
        """What became of data that were longer than ``base``. Returns whether the path has turned out to be narrower."""
        self._lost = 0 if arrived else self._lost + 1
        if self._lost < BLACK_HOLE or self.size == self.base:
            return False
        self.restart()
        return True

    def restart(self) -> None:
        """The path is another one."""
        self.size = self.base
        self._full = self._lost = self._failed = self._probing = 0
