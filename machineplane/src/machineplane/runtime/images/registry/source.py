"""An endpoint as a source of one image's content, whichever of the credentials at hand it takes."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import trio
from attrs import field, frozen

from machineplane.runtime.images.errors import RegistryDenied, RegistryUnreachable
from machineplane.runtime.images.registry.endpoint import Endpoint
from machineplane.runtime.images.registry.repository import Repository, Tagged
from machineplane.runtime.images.sources import BlobStream

DOWN_S = 10.0  # how long an endpoint that did not answer is not asked again: the pods' own first back-off
T = TypeVar("T")


@frozen
class Health:
    """Which addresses did not answer lately, so that not every pod waits for a time-out of its own."""

    _failed: dict[str, tuple[float, str]] = field(factory=dict)

    def problem(self, address: str) -> str | None:
        """What was the matter with it, if that was just now."""
        until, problem = self._failed.get(address, (0.0, ""))
        return problem if until > trio.current_time() else None

    def went_down(self, address: str, problem: str) -> None:
        """Note it, and drop what is over: names come from pods, so the table must not grow by them."""
        now = trio.current_time()
        for old in [known for known, (until, _) in self._failed.items() if until <= now]:
            del self._failed[old]
        self._failed[address] = (now + DOWN_S, problem)


class EndpointSource:
    """A ``Source``. ``repositories`` differ in the credential alone, best first; the first that is let in is kept to."""

    def __init__(self, endpoint: Endpoint, repositories: Sequence[Repository], health: Health) -> None:
        self._endpoint = endpoint
        self._repositories = tuple(repositories)
        self._health = health

    @property
    def subject(self) -> str:
        return self._repositories[0].subject

    @property
    def private(self) -> bool:
        """Whether credentials were shown to get something that is not to be handed on."""
        return not self._endpoint.settings.share and any(each.private for each in self._repositories)

    async def resolve(self, tag: str, limit: int) -> Tagged:
        """What the tag stands for at this endpoint."""
        return await self._first(lambda repository: repository.resolve(tag, limit))

    async def exists(self, digest: str) -> None:
        """Raises unless the endpoint gives the manifest to one of the credentials."""
        await self._first(lambda repository: repository.exists(digest))

    async def document(self, digest: str, limit: int) -> bytes:
        """See ``Source``."""
        return await self._first(lambda repository: repository.document(digest, limit))

    @asynccontextmanager
    async def blob(self, digest: str, offset: int) -> AsyncIterator[BlobStream]:
        """See ``Source``."""
        async with AsyncExitStack() as stack:
            yield await self._first(
                lambda repository: stack.enter_async_context(repository.blob(digest, offset))
            )

    async def _first(self, ask: Callable[[Repository], Awaitable[T]]) -> T:
        if (problem := self._health.problem(self._endpoint.address)) is not None:
            raise RegistryUnreachable(self._endpoint.subject, problem, "it was asked just now")
        denied: RegistryDenied | None = None
        for repository in self._repositories:
            try:
                answer = await ask(repository)
            except RegistryDenied as error:
                denied = denied or error
                continue
            except RegistryUnreachable as error:
                self._health.went_down(self._endpoint.address, error.problem)
                raise
            self._repositories = (repository,)
            return answer
        assert denied is not None  # there is at least one repository
        raise denied
