"""The agent's side of the seam to its machine: HTTP on a Unix socket (or TCP on the loopback), one connection a call.

A daemon that restarts makes a new socket, so nothing is kept between calls. Calls fail with `MachineError`; who can wait
uses `patiently`, which tries again from 200 ms to 5 s, for as long as the machine is away.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import h11
import trio
from attrs import field, frozen

from magik_proto.identity import PeerId
from workplane.answers import AnswerError, Executed, Fields, Passport, State, boolean
from workplane.patience import Patience

MAX_BODY: Final = 1 << 20
"""Bytes of a body either way (workplane-spec). At more: an error."""
READ_BYTES: Final = 65_536
CALL_S: Final = 10.0
"""For a call that the machine answers at once. A guess."""
STATE_S: Final = 45.0
"""For one that it may hold for 30 s (workplane-spec)."""
HEAL_S: Final = 30.0
"""The machine asks another one. A guess."""
CONFLICT: Final = 409

T = TypeVar("T")


class MachineError(OSError):
    """The machine did not do what it was asked; the text says what, why and what to do.

    `status` is HTTP's, None where there was no answer.
    """

    def __init__(self, what: str, why: str, status: int | None = None) -> None:
        super().__init__(f"{what}: {why}")
        self.status = status


def parse_where(url: str) -> tuple[str, str | tuple[str, int]]:
    """Of a ``--machine-api`` that was checked: the Host header, and the socket's path or (host, port)."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return "machine", parts.path
    return parts.netloc.rpartition("@")[2], (parts.hostname or "localhost", parts.port or 80)


@frozen
class Machine:
    """Calls to the machine for one pod. Where not said otherwise they raise `MachineError`."""

    url: str
    token: str = field(repr=False)

    async def passport(self, key: PeerId) -> Passport:
        """A pass for the key, and what the machine knows of the pod; again and again for the same key."""
        return await self._call("POST", "/v1/pass", Passport.of, {"key": str(key)})

    async def state(self, since: int) -> State:
        """How things are, once something is newer than `since` (0 at first), or after 30 s."""
        return await self._call("GET", f"/v1/state?since={since}", State.of, seconds=STATE_S)

    async def put_status(self, status: Mapping[str, Any]) -> None:
        """What the machine is to show of the pod."""
        await self._call("PUT", "/v1/status", _nothing, status)

    async def restart(self, container: str, reason: str) -> None:
        """Have a container restarted, as the pod's restart policy has it."""
        await self._call("POST", f"/v1/containers/{quote(container)}/restart", _nothing, {"reason": reason})

    async def execute(self, container: str, command: tuple[str, ...], timeout: float) -> Executed:
        """Run a command in a container, for `timeout` seconds at most."""
        body = {"command": list(command), "timeout_s": timeout}
        path = f"/v1/containers/{quote(container)}/exec"
        return await self._call("POST", path, Executed.of, body, seconds=timeout + CALL_S)

    async def service(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """The Service of that name; None where there is none."""
        try:
            return await self._call("GET", f"/v1/services/{quote(namespace)}/{quote(name)}", _object)
        except MachineError as error:
            if error.status == 404:
                return None
            raise

    async def heal(self, missing: int, generation: int) -> bool:
        """Have the machine that acts for the workload look at it; whether the workload is disposed of."""
        body = {"missing": missing, "generation": generation}
        return await self._call("POST", "/v1/heal", _disposed, body, seconds=HEAL_S)

    async def _call(
        self,
        method: str,
        path: str,
        read: Callable[[object], T],
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float = CALL_S,
    ) -> T:
        what = f"the machine ({self.url}), {method} {path.partition('?')[0]}"
        try:
            with trio.fail_after(seconds):
                status, answer = await self._exchange(method, path, body)
        except trio.TooSlowError:
            raise MachineError(what, f"no answer within {seconds:g} s") from None
        except (OSError, trio.BrokenResourceError) as error:
            raise MachineError(what, f"{error}; is machineplane running there?") from error
        except h11.ProtocolError as error:
            raise MachineError(what, f"no HTTP: {error}") from error
        if not 200 <= status < 300:
            raise MachineError(what, _reason(status, answer), status)
        try:
            return read(json.loads(answer) if answer else None)
        except (ValueError, RecursionError) as error:
            raise MachineError(what, f"the answer is no JSON: {error}", status) from error
        except AnswerError as error:
            raise MachineError(what, f"the answer cannot be used: {error}", status) from error

    async def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
        host, where = parse_where(self.url)
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=READ_BYTES)
        async with await _connect(where) as stream:
            await stream.send_all(_request(connection, method, path, host, self.token, body))
            return await _answer(connection, stream)


async def patiently(call: Callable[[], Awaitable[T]], *, unless: int | None = None) -> T:
    """The outcome of a call that is tried until it succeeds; a `MachineError` of the status `unless` is passed on."""
    patience = Patience()
    while True:
        try:
            return await call()
        except MachineError as error:
            if unless is not None and error.status == unless:
                raise
            await patience.failed(error)


async def _connect(where: str | tuple[str, int]) -> trio.SocketStream:
    return (
        await trio.open_unix_socket(where) if isinstance(where, str) else await trio.open_tcp_stream(*where)
    )


def _request(
    connection: h11.Connection, method: str, path: str, host: str, token: str, body: Mapping[str, Any] | None
) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    headers = [
        ("Host", host),
        ("Authorization", f"Bearer {token}"),
        ("Connection", "close"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(content))),
    ]
    request = h11.Request(method=method, target=path, headers=headers)
    parts: list[h11.Event] = [request, h11.Data(data=content), h11.EndOfMessage()]
    return b"".join(connection.send(part) or b"" for part in parts)


async def _answer(connection: h11.Connection, stream: trio.SocketStream) -> tuple[int, bytes]:
    status, content = 0, bytearray()
    while True:
        match connection.next_event():
            case h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(READ_BYTES)))
            case h11.Response(status_code=code):
                status = code
            case h11.Data(data=data):
                content += data
                if len(content) > MAX_BODY:
                    raise h11.RemoteProtocolError(f"an answer of more than {MAX_BODY} bytes")
            case h11.EndOfMessage():
                return status, bytes(content)
            case h11.ConnectionClosed():
                raise h11.RemoteProtocolError("the connection ended before the answer")


def _reason(status: int, answer: bytes) -> str:
    """The message of a Kubernetes Status, or at least the number."""
    try:
        message = json.loads(answer).get("message")
    except (ValueError, AttributeError, RecursionError):
        message = None
    return f"{message} (HTTP status {status})" if isinstance(message, str) else f"HTTP status {status}"


def _nothing(_: object) -> None:
    return None


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise AnswerError("expected an object")
    return value


def _disposed(value: object) -> bool:
    return Fields(value).maybe("disposed", boolean) or False
