"""Where content comes from: a repository of a registry, or another machine. Whatever they send is checked by who reads."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from attrs import frozen


@frozen
class BlobStream:
    """Bytes of a blob from ``start`` on (where the source could not begin where it was asked to, from 0)."""

    start: int
    chunks: AsyncIterator[bytes]


class Source(Protocol):
    """Something that has blobs. Its methods raise subclasses of ``PullFailed``, naming the source."""

    @property
    def subject(self) -> str:
        """What errors call it."""
        ...

    def blob(self, digest: str, offset: int) -> AbstractAsyncContextManager[BlobStream]:
        """The blob, if possible from ``offset`` on. Its chunks may end early or go on too long."""
        ...

    async def document(self, digest: str, limit: int) -> bytes:
        """A manifest or an index, whole. More than ``limit`` bytes raise ``BadAnswer``."""
        ...
