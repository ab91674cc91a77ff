"""Addresses as text and as pairs, and which of them a machine says of itself.

An address is an IP literal with a UDP port, `192.0.2.1:4001` or `[2001:db8::1]:4001`. Names are not
resolved: a name in a record would make every member of the fabric ask a resolver of the sender's choosing.
"""

from __future__ import annotations

import ipaddress
import socket

from attrs import define, field

from magik_proto.identity import format_address, parse_address

Address = tuple[str, int]

# How many addresses that only others have seen a machine says of itself. A guess: one per address family.
MAX_OBSERVED = 2
# How many source addresses of its own; a machine with more networks names them by `advertise`. A guess.
MAX_LOCAL = 4


def parse(text: str) -> Address:
    """`ip:port` to a pair; `RemoteProtocolError` says what is wrong with it."""
    host, port = parse_address(text)
    return plain_host(host), port


def text_of(address: Address) -> str:
    """A pair as text, IPv6 in brackets."""
    return format_address(address[0], address[1])


def plain_host(host: str) -> str:
    """An IPv4 address that a dual-stack socket shows as `::ffff:a.b.c.d`, as itself."""
    ip = ipaddress.ip_address(host)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip)


def is_wildcard(host: str) -> bool:
    """Whether a socket bound to `host` listens on every address."""
    return ipaddress.ip_address(host).is_unspecified


def is_dialable(address: Address) -> bool:
    """Whether it makes sense to send a datagram there at all."""
    ip = ipaddress.ip_address(address[0])
    return not (ip.is_unspecified or ip.is_multicast or ip.is_reserved)


def is_loopback(address: Address) -> bool:
    """Whether it means this computer, whoever says it."""
    return ipaddress.ip_address(address[0]).is_loopback


def source_towards(address: Address) -> str | None:
    """The address by which this machine would reach `address`, or None without a route. Sends nothing."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return plain_host(probe.getsockname()[0])
    except OSError:  # no more files may be open, either
        return None


@define
class OwnAddresses:
    """What this machine tells others of where it is.

    Explicit `advertise` addresses end the matter, then a concrete listening address. On a wildcard address
    it learns: by which source address it reaches others (trusted, it is its own), and as what others see it
    (a claim: kept apart and few, so that a liar can add a wrong address but never push out a right one). At
    a limit the oldest goes.
    """

    listen: Address
    advertise: tuple[Address, ...] = ()
    _local: list[Address] = field(factory=list)
    _observed: list[Address] = field(factory=list)

    def current(self) -> tuple[Address, ...]:
        """Addresses to advertise, the best first; loopback ones last, as they serve this computer only."""
        if self.advertise:
            return self.advertise
        if not is_wildcard(self.listen[0]):
            return (self.listen,)
        known = [*self._local, *(a for a in self._observed if a not in self._local)]
        return tuple(sorted(known, key=is_loopback))

    def reached_from(self, host: str) -> bool:
        """We reach others from `host`. True if that changed what we say."""
        return self._add(self._local, (host, self.listen[1]), MAX_LOCAL)

    def seen_as(self, address: Address) -> bool:
        """A peer says that it sees us at `address`. True if that changed what we say.

        An IPv6 zone (RFC 4007 §11) means something on that peer's computer alone, and may be too long for a record.
        """
        if "%" in address[0]:
            return False
        return self._add(self._observed, address, MAX_OBSERVED)

    def _add(self, table: list[Address], address: Address, limit: int) -> bool:
        before = self.current()
        if address not in table and is_dialable(address):
            table.append(address)
            del table[:-limit]
        return self.current() != before
