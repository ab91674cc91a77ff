"""HTTP with one repository at one endpoint: authentication, redirects, and trying again.

An ``Authorization`` goes only to where it belongs: tokens to the endpoint they are for, passwords to the endpoint or to
the token service that it names, and never along with a redirect to another scheme, host or port.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.request import parse_http_list, parse_keqv_list

import httpx
import trio
from attrs import frozen

from machineplane.runtime.images.documents import Fields
from machineplane.runtime.images.errors import (
    BadAnswer,
    NotAnImage,
    NotInRegistry,
    RegistryDenied,
    RegistryUnreachable,
    shown,
)
from machineplane.runtime.images.registry.credentials import Credential
from machineplane.runtime.images.registry.endpoint import Endpoint
from machineplane.runtime.images.waits import Waits

TRIES = 5  # of one request that is answered "later" or breaks; a guess
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 8.0  # doubling between them, jittered; a guess: 15 s at most altogether
RETRY_AFTER_MAX_S = 60.0  # who wants us to wait longer is answered by the pod's own back-off
REDIRECTS = 5  # a guess: registries send one hop, to their storage
TOKEN_BYTES = 64 * 1024  # of a token service's answer; real ones are about 3 KiB
_TOKEN_LIFE_S = (
    60.0  # where the service names none (distribution project, "Token Authentication Specification")
)
_LATER = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTED = (301, 302, 303, 307, 308)
_CLIENT_ID = "magik"


@frozen
class _Token:
    header: str
    until: float


@frozen
class _Later:
    """Why this try brought nothing, and how long the server wants us to wait."""

    problem: str
    pause_s: float = 0.0


class Session:
    """Requests for one repository, with one credential or none. Safe for several tasks at once."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        endpoint: Endpoint,
        path: str,
        credential: Credential | None,
        waits: Waits,
    ) -> None:
        self.endpoint = endpoint
        self.path = path
        self.credential = credential
        self.used_credential = False  # whether an answer was had by showing it
        self._client = client
        self._waits = waits
        self._token: _Token | None = None
        self._asking = trio.Lock()

    @property
    def subject(self) -> str:
        return f"{self.endpoint.subject}: {self.path}"

    async def open(
        self, rest: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """A successful answer (2xx, or 416 to a range) of which only the head is read; the caller closes it.

        Raises ``RegistryUnreachable``, ``RegistryDenied``, ``NotInRegistry`` or ``BadAnswer``.
        """
        url = self.endpoint.url(self.path, rest)
        number = 0
        while isinstance(found := await self._try(method, url, headers or {}), _Later):
            number += 1
            if number == TRIES or found.pause_s > RETRY_AFTER_MAX_S:
                raise RegistryUnreachable(self.endpoint.subject, found.problem, "it is tried again later")
            await self._waits.pause(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0**number), found.pause_s)
        return await self._accepted(found, rest)

    async def _try(self, method: str, url: httpx.URL, headers: Mapping[str, str]) -> httpx.Response | _Later:
        try:
            response = await self._authorised(method, url, headers)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            problem = f"cannot be reached at {self.endpoint.address} ({_text(error)})"
            raise RegistryUnreachable(
                self.endpoint.subject, problem, "see the network and the registry configuration"
            ) from error
        except httpx.TransportError as error:
            return _Later(f"does not answer ({_text(error)})")
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise BadAnswer(self.endpoint.subject, f"answers with nonsense ({_text(error)})") from error
        if response.status_code not in _LATER:
            return response
        await response.aclose()
        return _Later(f"answers with status {response.status_code}", _retry_after(response))

    async def _accepted(self, response: httpx.Response, rest: str) -> httpx.Response:
        status = response.status_code
        if 200 <= status < 300 or status == 416:
            return response
        await response.aclose()
        if status in (401, 403):
            how = "the credentials for it are refused" if self.credential else "it wants credentials"
            remedy = "see the pod's imagePullSecrets, or auths in the registry configuration"
            raise RegistryDenied(self.subject, f"is not given ({how}, status {status})", remedy)
        if status == 404:
            raise NotInRegistry(self.subject, f"has no {rest}", "see the image's name and tag")
        raise BadAnswer(self.subject, f"is answered with status {status}")

    # -- authentication

    async def _authorised(self, method: str, url: httpx.URL, headers: Mapping[str, str]) -> httpx.Response:
        """Send; where a credential is wanted, get one by the challenge and send once more."""
        token = self._fresh()
        response = await self._follow(method, url, headers, token)
        if response.status_code != 401:
            return response
        challenges = response.headers.get_list("www-authenticate")
        await response.aclose()
        answer = await self._answer(challenges, refused=token)
        return await self._follow(method, url, headers, answer) if answer is not None else response

    def _fresh(self) -> _Token | None:
        if self._token is not None and self._token.until <= trio.current_time():
            self._token = None
        return self._token

    async def _answer(self, challenges: list[str], refused: _Token | None) -> _Token | None:
        """What satisfies one of the challenges; None if nothing new does. Asked for by one task at a time."""
        async with self._asking:
            if self._token is not None and self._token is not refused:
                return self._token
            for scheme, parameters in filter(None, map(_challenge, challenges)):
                if scheme == "bearer":
                    self._token = await self._bearer(parameters)
                    return self._token
                if scheme == "basic" and self.credential and self.credential.username and refused is None:
                    self._token = _Token(_basic(self.credential), float("inf"))
                    self.used_credential = True
                    return self._token
        return None

    async def _bearer(self, parameters: Mapping[str, str]) -> _Token:
        """Ask the token service. With an identity token by OAuth 2, else with the name and password, or as nobody."""
        realm = self._realm(parameters.get("realm", ""))
        query = {"service": parameters.get("service", ""), "scope": self.endpoint.scope(self.path)}
        query = {key: value for key, value in query.items() if value}
        credential = self.credential
        if credential is not None and credential.identity_token:
            form = {
                **query,
                "grant_type": "refresh_token",
                "client_id": _CLIENT_ID,
                "refresh_token": credential.identity_token,
            }
            request = self._client.build_request("POST", realm, data=form)
        else:
            shown_as = {"account": credential.username} if credential is not None else {}
            headers = {"Authorization": _basic(credential)} if credential is not None else {}
            url = realm.copy_merge_params({**query, **shown_as})
            request = self._client.build_request("GET", url, headers=headers)
        response = await self._client.send(request, stream=True)
        try:
            token = await self._read_token(response)
        finally:
            await response.aclose()
        self.used_credential = credential is not None
        return token

    def _realm(self, text: str) -> httpx.URL:
        """A token service in clear text is asked only by who has configured its registry so."""
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL:
            url = httpx.URL()
        allowed = ("http", "https") if self.endpoint.plain_http else ("https",)
        if url.scheme not in allowed or not url.host:
            raise BadAnswer(
                self.endpoint.subject, f"names the token service {shown(text)}, which is not asked"
            )
        return url

    async def _read_token(self, response: httpx.Response) -> _Token:
        status = response.status_code
        if status in (401, 403):
            raise RegistryDenied(
                self.subject,
                f"is not given (its token service refuses, status {status})",
                "see the pod's imagePullSecrets, or auths in the registry configuration",
            )
        subject = f"token service of {self.endpoint.subject}"
        if status in _LATER:
            raise httpx.ReadError(f"its token service answers with status {status}")
        if status != 200:
            raise BadAnswer(subject, f"answers with status {status}")
        data = await read_bounded(response, TOKEN_BYTES, subject)
        try:
            fields = Fields.parse(data, subject)
            token, life = fields.text("token") or fields.text("access_token"), fields.number("expires_in")
        except NotAnImage as error:
            raise BadAnswer(subject, error.problem) from error
        if not token or not token.isascii() or not token.isprintable():
            raise BadAnswer(subject, "gives no usable token")
        life_s = max(_TOKEN_LIFE_S, float(life or 0))  # the specification's least, for services that say less
        return _Token(f"Bearer {token}", trio.current_time() + life_s)

    # -- redirects

    async def _follow(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], token: _Token | None
    ) -> httpx.Response:
        origin = url
        for _ in range(REDIRECTS + 1):
            own = _origin(url) == _origin(origin)
            more = {"Authorization": token.header} if token is not None and own else {}
            request = self._client.build_request(method, url, headers={**headers, **more})
            response = await self._client.send(request, stream=True)
            if response.status_code not in _REDIRECTED:
                return response
            target = response.headers.get("location", "")
            await response.aclose()
            url = self._next(url, target)
        raise BadAnswer(self.endpoint.subject, f"redirects more than {REDIRECTS} times")

    def _next(self, url: httpx.URL, target: str) -> httpx.URL:
        try:
            following = url.join(target)
        except httpx.InvalidURL:
            following = httpx.URL()
        allowed = ("http", "https") if self.endpoint.plain_http else ("https",)
        if not target or following.scheme not in allowed or not following.host or following.userinfo:
            raise BadAnswer(
                self.endpoint.subject, f"redirects to {shown(target)}, which is not followed: HTTPS is needed"
            )
        return following


@asynccontextmanager
async def body(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body's chunks as they come; leaving closes the answer.

    The client reads by generators within generators and closes only the outermost when a body is not read to its end
    (Trio warns of the others). So what is left is asked for once more and cancelled, which ends all of them.
    """
    chunks = response.aiter_raw()
    try:
        yield chunks
    finally:
        with suppress(httpx.HTTPError), trio.CancelScope() as scope:
            scope.cancel()
            async for _ in chunks:
                pass
        await response.aclose()


async def read_bounded(response: httpx.Response, limit: int, subject: str) -> bytes:
    """The whole body; closes the answer. Raises ``BadAnswer`` above ``limit`` bytes, before more is taken into memory."""
    data = bytearray()
    async with body(response) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > limit:
                raise BadAnswer(subject, f"answers with more than {limit} bytes")
    return bytes(data)


def _origin(url: httpx.URL) -> tuple[Any, ...]:
    return (url.scheme, url.host, url.port)


def _basic(credential: Credential) -> str:
    request = httpx.Request("GET", "http://x")
    auth = httpx.BasicAuth(credential.username, credential.password)
    return str(next(auth.auth_flow(request)).headers["Authorization"])


def _challenge(text: str) -> tuple[str, dict[str, str]] | None:
    """Scheme in small letters, and parameters (RFC 9110, 11.6.1); None for what is malformed."""
    scheme, _, rest = text.strip().partition(" ")
    try:
        parameters = parse_keqv_list(parse_http_list(rest))
    except ValueError:
        return (scheme.lower(), {}) if scheme.lower() == "basic" else None
    return scheme.lower(), {key.lower(): value for key, value in parameters.items()}


def _retry_after(response: httpx.Response) -> float:
    """Seconds by RFC 9110, 10.2.3: a number, or a date; 0 where there is none that can be read."""
    text = response.headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


def _text(error: BaseException) -> str:
    """The error's own words, or those of what it came of: the client's errors are often bare."""
    cause: BaseException | None = error
    while cause is not None and not str(cause):
        cause = cause.__cause__ or cause.__context__
    return str(cause) if cause is not None else type(error).__name__
