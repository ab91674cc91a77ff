"""The machine's own addresses, asked of the kernel by netlink."""

from ipaddress import IPv4Network, ip_address

from pyroute2 import IPRoute

_SCOPE_UNIVERSE = 0  # rtnetlink(7): addresses that are good beyond this link and host


def own_addresses(besides: IPv4Network) -> tuple[str, ...]:
    """Addresses by which other machines may reach this one, IPv4 first; those of the pods' network left out.

    Blocking (some milliseconds): to be called before the daemon's tasks run, or from a worker thread.
    """
    with IPRoute() as netlink:
        found = [a.get_attr("IFA_ADDRESS") for a in netlink.get_addr() if a["scope"] == _SCOPE_UNIVERSE]
    parsed = [ip_address(text) for text in found]
    usable = [a for a in parsed if not a.is_loopback and not (a.version == 4 and a in besides)]
    return tuple(str(a) for a in sorted(usable, key=lambda a: (a.version, int(a))))
