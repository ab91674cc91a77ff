"""Which address of the pod's loopback stands for which name. No I/O."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from ipaddress import IPv4Address
from typing import Final

from attrs import define, field

from workplane.names import ServiceName

FIRST: Final = int(IPv4Address("127.64.0.0"))
SIZE: Final = 1 << 22
"""127.64.0.0/10."""
MAX_NAMES: Final = 4096
"""At it the name that was not used for longest goes. A guess: few pods speak with a hundredth of it."""


@define
class AddressBook:
    """Addresses of names, the same in every pod as long as no two names fall on one."""

    domain: str
    limit: int = MAX_NAMES
    _addresses: OrderedDict[ServiceName, IPv4Address] = field(factory=OrderedDict)
    _names: dict[IPv4Address, ServiceName] = field(factory=dict)

    def address(self, name: ServiceName) -> IPv4Address:
        """The address of a name, given out now if it has none: the first free one from SHA-256 of the whole name."""
        found = self._addresses.get(name)
        if found is None:
            self._make_room()
            found = self._addresses[name] = self._first_free(name)
            self._names[found] = name
        self._addresses.move_to_end(name)
        return found

    def name(self, address: IPv4Address) -> ServiceName | None:
        """Whose address it is."""
        return self._names.get(address)

    def _first_free(self, name: ServiceName) -> IPv4Address:
        digest = hashlib.sha256(whole_name(name, self.domain).encode()).digest()
        start = int.from_bytes(digest[:4], "big")
        for step in range(SIZE):
            address = IPv4Address(FIRST + (start + step) % SIZE)
            if address not in self._names:
                return address
        raise AssertionError("there are fewer names than addresses")

    def _make_room(self) -> None:
        if len(self._addresses) >= self.limit:
            _, address = self._addresses.popitem(last=False)
            del self._names[address]


def whole_name(name: ServiceName, domain: str) -> str:
    """``web.default.svc.cluster.local``, or with the part in front."""
    part = f"{name.part}." if name.part else ""
    return f"{part}{name.service}.{name.namespace}.svc.{domain}"
