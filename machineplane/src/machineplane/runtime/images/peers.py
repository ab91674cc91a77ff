"""Other machines as places where images are to be had. Known here by a protocol only: `app` joins it to the mesh."""

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

from machineplane.runtime.images.sources import Source


@frozen
class Offer:
    """A machine has an image: ``digest`` is its index's or manifest's, ``at`` when it took it in (ms since the epoch)."""

    source: Source
    digest: str
    at: int


class Peers(Protocol):
    """Asks the machines of the fabric. Nobody answering is no error."""

    async def find_digest(self, digest: str) -> Sequence[Offer]:
        """Who has the image whose manifest or index has this digest."""
        ...

    async def find_name(self, ref: str) -> Sequence[Offer]:
        """What others hold under a complete name. Any member may say what it likes here: a hint, not a fact."""
        ...


class NoPeers:
    """For the command line, and until the mesh is there."""

    async def find_digest(self, digest: str) -> Sequence[Offer]:
        return ()

    async def find_name(self, ref: str) -> Sequence[Offer]:
        return ()
