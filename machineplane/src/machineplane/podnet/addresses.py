"""Which pod holds which address: pure bookkeeping, no I/O."""

from ipaddress import IPv4Address, IPv4Network

from machineplane.podnet.errors import PodNetworkError, SubnetExhausted

# Below /30 no pod fits beside the gateway.
LONGEST_PREFIX = 30


def gateway_of(subnet: IPv4Network) -> IPv4Address:
    """The first host address of ``subnet``: the bridge's own."""
    return subnet.network_address + 1


class AddressPool:
    """Addresses of one subnet, given out in a ring, so that a freed address rests as long as it can.

    At the limit (all of the subnet's host addresses but the gateway's are held) :meth:`take` raises
    :class:`SubnetExhausted`. Memory grows with the addresses held, not with the subnet.
    """

    def __init__(self, subnet: IPv4Network) -> None:
        if subnet.prefixlen > LONGEST_PREFIX:
            raise PodNetworkError(f"pod subnet {subnet} holds no pod: choose a /{LONGEST_PREFIX} or wider")
        self.subnet = subnet
        self.gateway = gateway_of(subnet)
        self.size = subnet.num_addresses - 3  # network, gateway, broadcast
        self._next = 0
        self._owner: dict[IPv4Address, str] = {}
        self._address: dict[str, IPv4Address] = {}

    def __len__(self) -> int:
        return len(self._owner)

    def held(self) -> dict[str, IPv4Address]:
        """A copy of what is held: owner to address."""
        return dict(self._address)

    def get(self, owner: str) -> IPv4Address | None:
        """The address that ``owner`` holds."""
        return self._address.get(owner)

    def take(self, owner: str) -> IPv4Address:
        """Give ``owner`` the next free address of the ring, or the one that it already holds."""
        if owner in self._address:
            return self._address[owner]
        if len(self._owner) >= self.size:
            raise SubnetExhausted(
                f"subnet {self.subnet} has no free address: all {self.size} are held by pods; "
                "delete pods, or give the machine a wider --pod-subnet"
            )
        address = self._next_free()
        self._hold(owner, address)
        return address

    def restore(self, owner: str, address: IPv4Address) -> None:
        """Hold ``address`` for ``owner`` again, as found on the machine. The ring goes on after it."""
        if not self._is_pods(address):
            raise PodNetworkError(f"address {address} of pod {owner} is not one for pods of {self.subnet}")
        if self._owner.get(address, owner) != owner:
            raise PodNetworkError(
                f"address {address} is held by both pod {self._owner[address]} and pod {owner}"
            )
        self._hold(owner, address)

    def release(self, owner: str) -> None:
        """Give back what ``owner`` holds; nothing happens when that is nothing."""
        address = self._address.pop(owner, None)
        if address is not None:
            del self._owner[address]

    def _hold(self, owner: str, address: IPv4Address) -> None:
        self._owner[address] = owner
        self._address[owner] = address
        self._next = max(self._next, self._offset(address) + 1) % self.size

    def _offset(self, address: IPv4Address) -> int:
        return int(address) - int(self.gateway) - 1

    def _is_pods(self, address: IPv4Address) -> bool:
        return 0 <= self._offset(address) < self.size

    def _next_free(self) -> IPv4Address:
        # Ends: the caller has seen that fewer than `size` are held.
        while (address := self.gateway + 1 + self._next) in self._owner:
            self._next = (self._next + 1) % self.size
        self._next = self._offset(address)
        return address
