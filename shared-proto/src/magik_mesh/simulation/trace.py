"""A digest of all that machines send each other: two versions of the code with the same trace behave the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from magik_mesh.simulation.fabric import Fabric
from magik_proto.identity import PeerId
from magik_proto.testing.network import Send


class Trace:
    """SHA-256 over every message from now on: when, from whom, to whom, what. It makes a run a good deal slower."""

    def __init__(self, fabric: Fabric) -> None:
        self._hash = hashlib.sha256()
        fabric.network.tap = self._take

    def _take(self, now: float, source: PeerId, sends: Sequence[Send]) -> None:
        for send in sends:
            self._hash.update(f"{now!r} {source} {send.to} {send.message!r} {send.reliable}\n".encode())

    def hexdigest(self) -> str:
        """Of what was sent so far."""
        return self._hash.hexdigest()
