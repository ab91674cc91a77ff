"""One repository of a registry: what a tag stands for, documents, and blobs from any byte on."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import httpx
from attrs import frozen

from machineplane.runtime.images.documents import INDEX_TYPES, MANIFEST_TYPES, sha256
from machineplane.runtime.images.errors import BadAnswer, NotInRegistry, RegistryUnreachable, shown
from machineplane.runtime.images.names import is_digest
from machineplane.runtime.images.registry.session import Session, body, read_bounded
from machineplane.runtime.images.sources import BlobStream

_ACCEPT = {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}
_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(?:\d{1,19}|\*)")


@frozen
class Tagged:
    """What a tag stands for now. ``document`` is there where it had to be fetched to know."""

    digest: str
    document: bytes | None = None


class Repository:
    """A ``Source``. All methods raise subclasses of ``PullFailed``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def subject(self) -> str:
        return self._session.subject

    @property
    def private(self) -> bool:
        """Whether something was had by showing a credential."""
        return self._session.used_credential

    async def resolve(self, tag: str, limit: int) -> Tagged:
        """By the head alone where the registry tells the digest there: that counts against no pull limit."""
        response = await self._session.open(f"manifests/{tag}", method="HEAD", headers=_ACCEPT)
        await response.aclose()
        digest = response.headers.get("docker-content-digest", "")
        if is_digest(digest):
            return Tagged(digest)
        data = await self._manifest(tag, limit)
        return Tagged(sha256(data), data)

    async def document(self, digest: str, limit: int) -> bytes:
        """See ``Source``."""
        return await self._manifest(digest, limit)

    async def exists(self, digest: str) -> None:
        """Raises unless this repository gives the manifest to whoever the session is."""
        response = await self._session.open(f"manifests/{digest}", method="HEAD", headers=_ACCEPT)
        await response.aclose()

    async def _manifest(self, which: str, limit: int) -> bytes:
        response = await self._session.open(f"manifests/{which}", headers=_ACCEPT)
        try:
            return await read_bounded(response, limit, f"{self.subject}: manifest {which}")
        except httpx.HTTPError as error:
            raise RegistryUnreachable(self.subject, f"broke off ({error or type(error).__name__})") from error

    @asynccontextmanager
    async def blob(self, digest: str, offset: int) -> AsyncIterator[BlobStream]:
        """See ``Source``. A server without ranges, or with none that fits, begins anew."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = await self._session.open(f"blobs/{digest}", headers=headers)
        if response.status_code == 416:
            await response.aclose()
            response = await self._session.open(f"blobs/{digest}")
        async with body(response) as raw, aclosing(self._chunks(raw)) as chunks:
            self._check(response)
            yield BlobStream(self._start(response, offset), chunks)

    def _check(self, response: httpx.Response) -> None:
        if response.status_code not in (200, 206):
            raise NotInRegistry(self.subject, f"answers a blob with status {response.status_code}")
        if (coding := response.headers.get("content-encoding", "identity")) != "identity":
            raise BadAnswer(self.subject, f"sends a blob in the coding {shown(coding)}, not as it is")

    def _start(self, response: httpx.Response, offset: int) -> int:
        if response.status_code == 200:
            return 0
        match = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None or int(match[1]) != offset:
            raise BadAnswer(self.subject, "sends another range than it was asked for")
        return offset

    async def _chunks(self, raw: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """A connection that breaks is told apart from one that ends by who reads."""
        try:
            async for chunk in raw:
                yield chunk
        except httpx.HTTPError as error:
            raise RegistryUnreachable(self.subject, f"broke off ({error or type(error).__name__})") from error
