"""How many incoming connections an endpoint has from one place, and from one identity."""

from collections import Counter
from ipaddress import IPv6Address, ip_address
from typing import TypeVar

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .errors import PeerRejected
from .interface import Address
from .limits import Limits
from .tls import CertificateCheck

K = TypeVar("K")


@attrs.define(eq=False)
class Census:
    """The counts of one endpoint."""

    _limits: Limits
    _origins: Counter[str] = attrs.field(factory=Counter, init=False)
    _identities: Counter[bytes] = attrs.field(factory=Counter, init=False)

    def is_crowded(self, address: Address) -> bool:
        """Whether no more may come from there."""
        return self._origins[_origin(address)] >= self._limits.max_per_address

    def enter(self, address: Address) -> "Guest":
        """Count one more from there."""
        guest = Guest(self, _origin(address))
        self._origins[guest.origin] += 1
        return guest

    def identify(self, guest: "Guest", certificate: x509.Certificate) -> None:
        """Count a guest by its proven key, too. Raises PeerRejected if there are enough with that."""
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if self._identities[key] >= self._limits.max_per_identity:
            raise PeerRejected(f"there are already {self._identities[key]} connections of this identity")
        guest.identity = key
        self._identities[key] += 1

    def leave(self, guest: "Guest") -> None:
        """Count it no more."""
        _discount(self._origins, guest.origin)
        if guest.identity is not None:
            _discount(self._identities, guest.identity)


@attrs.define(eq=False)
class Guest:
    """One incoming connection, as it is counted."""

    census: Census
    origin: str
    identity: bytes | None = None

    def checked_by(self, check: CertificateCheck) -> CertificateCheck:
        """The application's check, and then the count of its identity."""

        def check_and_count(certificate: x509.Certificate) -> object:
            verified = check(certificate)
            self.census.identify(self, certificate)
            return verified

        return check_and_count


def _discount(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _origin(address: Address) -> str:
    """What counts as one origin: an IPv4 address, or the /64 that an IPv6 host can pick addresses from at will."""
    host = ip_address(address[0].partition("%")[0])
    return host.exploded[:19] if isinstance(host, IPv6Address) and not host.ipv4_mapped else str(host)
