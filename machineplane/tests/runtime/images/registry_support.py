"""A registry on loopback that tells the truth or not, as a test wants: HTTP/1.1 by h11, one handler for each request."""

import base64
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio
from attrs import define, field, frozen

from machineplane.runtime.images.documents import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    encode,
    sha256,
)


@frozen
class Asked:
    """A request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@frozen
class Answer:
    """``cut``: the connection breaks after so many bytes of the body, whatever the head promised."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(factory=dict)
    cut: int | None = None
    length: int | None = None  # promised, where it is not the body's


Handler = Callable[[Asked], Awaitable[Answer] | Answer]


@define
class Server:
    """``requests`` are all that came, in order."""

    port: int = 0
    requests: list[Asked] = field(factory=list)
    handler: Handler = lambda _: Answer(404)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def asked(self, method: str, part: str) -> list[Asked]:
        return [asked for asked in self.requests if asked.method == method and part in asked.target]


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(handler=handler)

    async def serve(stream: trio.abc.Stream) -> None:
        wrapped = trio.SSLStream(stream, tls, server_side=True) if tls else stream  # type: ignore[arg-type,var-annotated]
        try:
            await _serve_connection(wrapped, server)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield server
        nursery.cancel_scope.cancel()


async def _serve_connection(stream: trio.abc.Stream, server: Server) -> None:
    connection = h11.Connection(h11.SERVER)
    while True:
        asked = await _read(connection, stream)
        if asked is None:
            return
        server.requests.append(asked)
        found = server.handler(asked)
        answer = found if isinstance(found, Answer) else await found
        if not await _write(connection, stream, asked, answer):
            await stream.aclose()
            return
        connection.start_next_cycle()


async def _read(connection: h11.Connection, stream: trio.abc.Stream) -> Asked | None:
    request: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            headers = {key.decode().lower(): value.decode() for key, value in request.headers}
            return Asked(request.method.decode(), request.target.decode(), headers, body)
        else:
            return None


async def _write(connection: h11.Connection, stream: trio.abc.Stream, asked: Asked, answer: Answer) -> bool:
    """False where the connection is to break."""
    length = len(answer.body) if answer.length is None else answer.length
    headers = {"Content-Length": str(length), **answer.headers}
    head = h11.Response(status_code=answer.status, headers=list(headers.items()))
    await stream.send_all(connection.send(head) or b"")
    if asked.method != "HEAD":
        sent = answer.body if answer.cut is None else answer.body[: answer.cut]
        for start in range(0, len(sent), 65536):
            await stream.send_all(connection.send(h11.Data(data=sent[start : start + 65536])) or b"")
        if answer.cut is not None or answer.length is not None:
            return False
    await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
    return True


class Content:
    """Images of a repository, and the honest way to answer for them."""

    def __init__(self, path: str = "team/app") -> None:
        self.path = path
        self.blobs: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.types: dict[str, str] = {}
        self.ranges = True

    def add(self, data: bytes, kind: str = OCI_LAYER) -> dict[str, Any]:
        digest = sha256(data)
        self.blobs[digest] = data
        self.types[digest] = kind
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def image(
        self,
        layers: Sequence[bytes],
        *,
        plain: Sequence[bytes] = (),
        architecture: str = "amd64",
        suffix: str = "",
        **config: Any,
    ) -> dict[str, Any]:
        """Put an image in; its manifest's descriptor."""
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/run"], **config},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in plain or layers]},
        }
        configuration = self.add(encode(document), OCI_CONFIG)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": configuration,
            "layers": [self.add(layer, OCI_LAYER + suffix) for layer in layers],
        }
        found = self.add(encode(manifest), OCI_MANIFEST)
        return {**found, "platform": {"os": "linux", "architecture": architecture}}

    def index(self, *entries: dict[str, Any]) -> dict[str, Any]:
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
        return self.add(encode(document), OCI_INDEX)

    def tag(self, name: str, descriptor: dict[str, Any]) -> str:
        self.tags[name] = str(descriptor["digest"])
        return self.tags[name]

    def answer(self, asked: Asked) -> Answer:
        *_, what, which = asked.path.split("/")
        if not asked.path.startswith(f"/v2/{self.path}/"):
            return Answer(404)
        digest = self.tags.get(which, which)
        data = self.blobs.get(digest)
        if data is None:
            return Answer(404)
        headers = {"Content-Type": self.types[digest], "Docker-Content-Digest": digest}
        if what == "manifests":
            return Answer(200, b"" if asked.method == "HEAD" else data, headers)
        return self._ranged(asked, data)

    def _ranged(self, asked: Asked, data: bytes) -> Answer:
        wanted = asked.headers.get("range", "")
        if not wanted or not self.ranges:
            return Answer(200, data)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return Answer(206, data[start:], {"Content-Range": span})


class Guarded:
    """A registry that wants a token, or basic authentication; its token service is another handler."""

    def __init__(self, content: Content, realm: str = "", *, users: dict[str, str] | None = None) -> None:
        self.content = content
        self.realm = realm
        self.users = users or {}
        self.token = "t0ken"
        self.anonymous = False

    def answer(self, asked: Asked) -> Answer:
        if asked.headers.get("authorization") == f"Bearer {self.token}":
            return self.content.answer(asked)
        challenge = f'Bearer realm="{self.realm}",service="registry.test",scope="repository:x:pull"'
        return Answer(401, b"{}", {"WWW-Authenticate": challenge})

    def answer_basic(self, asked: Asked) -> Answer:
        if self.known(asked):
            return self.content.answer(asked)
        return Answer(401, b"{}", {"WWW-Authenticate": 'Basic realm="registry.test"'})

    def give_token(self, asked: Asked) -> Answer:
        if self.anonymous or self.known(asked) or "refresh_token=r3fresh" in asked.body.decode():
            return Answer(200, json.dumps({"token": self.token, "expires_in": 300}).encode())
        return Answer(401, b"{}")

    def known(self, asked: Asked) -> bool:
        scheme, _, given = asked.headers.get("authorization", "").partition(" ")
        if scheme != "Basic":
            return False
        name, _, password = base64.b64decode(given).decode().partition(":")
        return bool(name) and self.users.get(name) == password
