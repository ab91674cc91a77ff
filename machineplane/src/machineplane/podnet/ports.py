"""Which port of the machine leads to which pod: pure bookkeeping, no I/O."""

import hashlib
from collections.abc import Callable
from ipaddress import IPv4Address
from itertools import chain

from attrs import frozen

from machineplane.podnet.errors import PortsExhausted


@frozen
class Forward:
    """A UDP port of the machine, and where what comes to it goes."""

    port: int
    address: IPv4Address
    pod_port: int


class PortPool:
    """Ports of one range, each with at most one owner.

    The search begins at a place that follows from the owner: a pod whose forwarding was lost gets the port that it
    had, as a rule, and a port that was freed rests, as a rule, although nobody remembers when that was. At the limit
    :meth:`take` raises :class:`PortsExhausted`.
    """

    def __init__(self, ports: range) -> None:
        self._ports = ports
        self._owner: dict[int, str] = {}
        self._forwards: dict[str, Forward] = {}

    def get(self, owner: str) -> Forward | None:
        """What ``owner`` has."""
        return self._forwards.get(owner)

    def find(self, owner: str, usable: Callable[[int], bool]) -> int:
        """A free port of the range for which ``usable`` holds (the machine's own programs may have others)."""
        first = int.from_bytes(hashlib.sha256(owner.encode()).digest()[:8]) % len(self._ports)
        for port in chain(self._ports[first:], self._ports[:first]):
            if port not in self._owner and usable(port):
                return port
        raise PortsExhausted(
            f"no free UDP port from {self._ports[0]} to {self._ports[-1]}: {len(self._owner)} pods of this machine and "
            "its own programs have them; delete pods, or give the machine a wider --agent-ports"
        )

    def hold(self, owner: str, forward: Forward) -> None:
        """``owner`` has ``forward``, be it within the range or (as an earlier daemon gave it) not."""
        self.release(owner)
        self._owner[forward.port] = owner
        self._forwards[owner] = forward

    def release(self, owner: str) -> None:
        """Give back what ``owner`` has; nothing happens when that is nothing."""
        forward = self._forwards.pop(owner, None)
        if forward is not None:
            del self._owner[forward.port]
