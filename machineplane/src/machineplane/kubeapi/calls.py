"""A request and an answer as plain values: handlers know neither Quart nor its request context."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from attrs import field, frozen

from .errors import ApiError
from .kinds import Kind

#: Opens a stream of bytes; what it raises on entering becomes the answer instead.
OpenStream = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]

_TRUE: Final = ("true", "1", "t", "True", "TRUE")
_FALSE: Final = ("", "false", "0", "f", "False", "FALSE")


@frozen
class Target:
    """What a path names: a kind, maybe in a namespace, maybe one object of it, maybe a subresource of
    that."""

    kind: Kind
    namespace: str | None = None
    name: str | None = None
    subresource: str | None = None


@frozen
class Call:
    """A request: method, query, the headers that matter, and its body. ``words`` has all values of the query's names, where
    ``query`` has each one's first; only streams set it."""

    method: str
    query: Mapping[str, str] = field(factory=dict)
    accept: str = ""
    content_type: str | None = None
    user_agent: str = ""
    body: bytes = b""
    words: Mapping[str, tuple[str, ...]] = field(factory=dict)

    def flag(self, name: str) -> bool:
        """A boolean query parameter. Raises ApiError 400 if it is neither true nor false."""
        text = self.query.get(name, "")
        if text not in _TRUE + _FALSE:
            raise ApiError.bad_request(f"query parameter {name}: {text!r} is neither true nor false")
        return text in _TRUE

    def number(self, name: str, *, least: int = 0) -> int | None:
        """A whole number ≥ ``least`` from the query, or None. Raises ApiError 400."""
        text = self.query.get(name, "")
        if not text:
            return None
        if not (text.removeprefix("-").isascii() and text.removeprefix("-").isdigit() and len(text) < 19):
            raise ApiError.bad_request(f"query parameter {name}: {text!r} is not a whole number")
        if int(text) < least:
            raise ApiError.bad_request(f"query parameter {name}: {text} is less than {least}")
        return int(text)

    @property
    def dry_run(self) -> bool:
        """``dryRun=All``. Raises ApiError 400 for any other value."""
        text = self.query.get("dryRun", "")
        if text not in ("", "All"):
            raise ApiError.bad_request(f'invalid dryRun {text!r}: the only supported value is "All"')
        return text == "All"

    @property
    def manager(self) -> str:
        """Who writes: ``fieldManager``, else the program of the user agent, as Kubernetes has it."""
        return self.query.get("fieldManager", "") or self.user_agent.partition("/")[0][:128] or "unknown"


@frozen
class Answer:
    """A response: a JSON value, raw bytes or a stream, with its status, media type and warnings (RFC 7234
    code 299)."""

    value: Any = None
    status: int = 200
    media: str = "application/json"
    warnings: tuple[str, ...] = ()
    stream: OpenStream | None = None
    headers: Mapping[str, str] = field(factory=dict)
