"""Who may speak to the API: an ASGI layer before the application, one for each listener.

The plain listener is bound to loopback. A browser on this machine could still be led there by a foreign page
(DNS rebinding, cross-origin requests), so the ``Host`` must be a loopback name or address, and an ``Origin``,
if any, too. The TLS listener is open to the network and asks for the bearer token.
"""

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from attrs import field, frozen

from .errors import ApiError
from .websocket import refuse

Scope = MutableMapping[str, Any]
Send = Callable[[Any], Awaitable[None]]
Receive = Callable[[], Awaitable[Any]]
Application = Callable[..., Awaitable[None]]

#: Requests at work at once, watches and logs included; a guess. More are answered by 429.
MAX_REQUESTS: Final = 1000


@frozen
class Guard:
    """Lets a request through to ``app`` if ``check`` (which raises ApiError) does, and if there are not too
    many."""

    app: Application
    check: Callable[[list[tuple[str, str]]], None]
    places: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MAX_REQUESTS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        borrower = object()
        try:
            self.check(
                [
                    (name.decode("latin-1").lower(), value.decode("latin-1"))
                    for name, value in scope["headers"]
                ]
            )
            self._enter(borrower)
        except ApiError as error:
            await _refuse(scope, send, error)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self.places.release_on_behalf_of(borrower)

    def _enter(self, borrower: object) -> None:
        try:
            self.places.acquire_on_behalf_of_nowait(borrower)
        except trio.WouldBlock:
            raise ApiError(
                429, "TooManyRequests", "too many requests at once, please try again later", retry_after=1
            ) from None


def check_loopback(headers: list[tuple[str, str]]) -> None:
    """For the plain listener. Raises ApiError 403 for a foreign or missing Host, or a foreign Origin."""
    hosts = [value for name, value in headers if name == "host"]
    if len(hosts) != 1 or not is_loopback(f"//{hosts[0]}"):
        raise ApiError.forbidden(
            "this port serves programs on this machine only: call it as localhost, 127.0.0.1 or [::1], or use the TLS port "
            "with a kubeconfig"
        )
    if any(name == "origin" and not is_loopback(value) for name, value in headers):
        raise ApiError.forbidden("requests from web pages of other origins are refused")


def is_loopback(url: str) -> bool:
    """Whether the host of a URL is ``localhost`` or a loopback address."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        if host is None or parts.username is not None:
            return False
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(token: str) -> Callable[[list[tuple[str, str]]], None]:
    """For the TLS listener: a check that raises ApiError 401 without ``Authorization: Bearer <token>``."""
    wanted = token.encode()

    def check(headers: list[tuple[str, str]]) -> None:
        given = [value for name, value in headers if name == "authorization"]
        scheme, _, credential = (given[0] if len(given) == 1 else "").partition(" ")
        same = hmac.compare_digest(credential.strip().encode("utf-8", "replace"), wanted)
        if scheme.lower() != "bearer" or not same or not wanted:
            raise ApiError.unauthorized()

    return check


async def _refuse(scope: Scope, send: Send, error: ApiError) -> None:
    if scope["type"] == "websocket":
        await refuse(send, error)
        return
    body = json.dumps(error.status()).encode() + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.code == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.code, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
