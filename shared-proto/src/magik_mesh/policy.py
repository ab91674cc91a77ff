"""Who is admitted to a plane: what a node asks of `magik_proto.membership` or `magik_proto.passes`."""

from __future__ import annotations

from typing import Protocol

from magik_proto.credentials import Revocations
from magik_proto.identity import PeerId


class Policy(Protocol):
    """`MembershipPolicy` on the plane of machines, `PassPolicy` on that of pods."""

    @property
    def root(self) -> PeerId | None:
        """The fabric's root, or None for an open fabric."""
        ...

    @property
    def open(self) -> bool:
        """Whether there is no root."""
        ...

    @property
    def revocations(self) -> Revocations | None:
        """The newest list, for passing on."""
        ...

    def admit(self, peer: PeerId, shown: bytes | None, now_ms: int, /) -> frozenset[str]:
        """The roles of the peer that proved the key `peer` and shows `shown`; raises `MembershipError`."""
        ...

    def revoke(self, revocations: Revocations) -> bool:
        """Take a list of revocations; whether it was news. Raises `MembershipError`."""
        ...
