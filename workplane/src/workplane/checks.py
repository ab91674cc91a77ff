"""Carrying out one check of a probe against the own pod: HTTP, a TCP connection, or gRPC's health service.

Protocols are those of the libraries h11 and h2, which do no I/O; the I/O is Trio's, to 127.0.0.1 alone. Whatever the app
answers, or does not, is a result; nothing it sends is kept but the first bytes.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Final
from urllib.parse import urljoin, urlsplit

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11
import trio
from attrs import evolve, frozen

from workplane.probes import LOOPBACK, Check, Exec, Grpc, HttpGet, Probe, TcpSocket

HOST: Final = "127.0.0.1"
MAX_REDIRECTS: Final = 10
"""As the kubelet's HTTP client; at more the check has failed."""
READ_BYTES: Final = 16_384
MAX_ANSWER: Final = 65_536
"""Bytes of a gRPC answer that are looked at; a health answer has a few. At more the check has failed."""
_SERVING: Final = 1  # grpc.health.v1.HealthCheckResponse.ServingStatus


@frozen
class Result:
    """What a check came to; `message` says why not."""

    well: bool
    message: str = ""


Execute = Callable[[tuple[str, ...], float], Awaitable[Result]]
"""Runs a command in the container, in as many seconds at most."""


async def carry_out(probe: Probe, execute: Execute) -> Result:
    """One check within the probe's time-out. Never raises for what the app does."""
    with trio.move_on_after(probe.timeout):
        try:
            return await _check(probe.check, probe.timeout, execute)
        except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
            return Result(False, str(error))
        except (h11.RemoteProtocolError, h2.exceptions.ProtocolError) as error:
            return Result(False, f"malformed answer: {error}")
    return Result(False, f"no answer within {probe.timeout:g} s")


async def _check(check: Check, timeout: float, execute: Execute) -> Result:
    match check:
        case HttpGet():
            return await _http(check)
        case TcpSocket(port):
            await (await trio.open_tcp_stream(HOST, port)).aclose()
            return Result(True)
        case Grpc():
            return await _grpc(check)
        case Exec(command):
            return await execute(command, timeout)


# -- HTTP


async def _http(check: HttpGet) -> Result:
    """Redirects are followed on the pod's loopback; one that leads elsewhere is an answer, as for the kubelet."""
    for _ in range(MAX_REDIRECTS + 1):
        status, location = await _get(check)
        there = _inside(check, location) if 300 <= status < 400 and location else None
        if there is None:
            return Result(200 <= status < 400, f"HTTP status {status}")
        check = there
    return Result(False, f"more than {MAX_REDIRECTS} redirects")


def _inside(check: HttpGet, location: str) -> HttpGet | None:
    """Where a redirect leads within the pod; None where it leads out of it."""
    scheme = "https" if check.tls else "http"
    try:
        target = urlsplit(urljoin(f"{scheme}://{HOST}:{check.port}{check.path}", location))
        port = target.port or (443 if target.scheme == "https" else 80)
    except ValueError:
        return None
    if target.scheme not in ("http", "https") or (target.hostname or "") not in LOOPBACK:
        return None
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    return evolve(check, port=port, path=path, tls=target.scheme == "https")


async def _get(check: HttpGet) -> tuple[int, str]:
    """Status and Location of an answer; its body is not read."""
    stream: trio.abc.Stream = await trio.open_tcp_stream(HOST, check.port)
    if check.tls:
        stream = trio.SSLStream(stream, _unverified(), server_hostname=HOST, https_compatible=True)
    async with stream:
        connection = h11.Connection(h11.CLIENT)
        for event in (_request(check), h11.EndOfMessage()):
            await stream.send_all(connection.send(event) or b"")
        while True:
            found = connection.next_event()
            if isinstance(found, h11.Response):
                location = dict(found.headers).get(b"location", b"")
                return found.status_code, location.decode("ascii", errors="replace")
            if found is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(READ_BYTES)))


def _request(check: HttpGet) -> h11.Request:
    own = {name.lower() for name, _ in check.headers}
    common = (("Host", f"{HOST}:{check.port}"), ("User-Agent", "magik-probe/1"), ("Accept", "*/*"))
    headers = [
        *check.headers,
        *(pair for pair in common if pair[0].lower() not in own),
        ("Connection", "close"),
    ]
    return h11.Request(method="GET", target=check.path, headers=headers)


def _unverified() -> ssl.SSLContext:
    """Probes verify no certificate, as the kubelet's do: the app is asked whether it answers, not who it is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# -- gRPC (health/v1), by the wire forms of "gRPC over HTTP/2" and protobuf


async def _grpc(check: Grpc) -> Result:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    stream_id = connection.get_next_available_stream_id()
    connection.send_headers(stream_id, _grpc_headers(check))
    connection.send_data(stream_id, _grpc_message(check.service), end_stream=True)
    async with await trio.open_tcp_stream(HOST, check.port) as stream:
        status, answer = await _grpc_answer(stream, connection)
    if status != "0":
        return Result(False, f"gRPC status {status or 'missing'}")
    return Result(answer[5:7] == bytes([0x08, _SERVING]), "the service is not SERVING")


def _grpc_headers(check: Grpc) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", f"{HOST}:{check.port}"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]


def _grpc_message(service: str) -> bytes:
    """HealthCheckRequest{service = 1}, after a byte (not compressed) and the length."""
    name = service.encode()
    body = b"\x0a" + _varint(len(name)) + name if name else b""
    return struct.pack(">BI", 0, len(body)) + body


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _header(headers: Iterable[tuple[str | bytes, str | bytes]], name: str) -> str:
    """A header's value; h2 decodes, as it is configured here, and its types do not know it."""
    return next((str(value) for key, value in headers if key == name), "")


async def _grpc_answer(
    stream: trio.SocketStream, connection: h2.connection.H2Connection
) -> tuple[str, bytes]:
    """The call's status and message, when its stream has ended."""
    status, answer = "", b""
    while True:
        await stream.send_all(connection.data_to_send())
        data = await stream.receive_some(READ_BYTES)
        if not data:
            raise trio.BrokenResourceError("the connection ended before the answer")
        for event in connection.receive_data(bytes(data)):
            match event:
                case (
                    h2.events.ResponseReceived(headers=headers) | h2.events.TrailersReceived(headers=headers)
                ):
                    status = _header(headers or (), "grpc-status") or status
                case h2.events.DataReceived(data=part):
                    answer += part or b""
                    if len(answer) > MAX_ANSWER:
                        raise trio.BrokenResourceError(f"an answer of more than {MAX_ANSWER} bytes")
                    connection.acknowledge_received_data(
                        event.flow_controlled_length or 0, event.stream_id or 0
                    )
                case h2.events.StreamEnded():
                    return status, answer
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    raise trio.BrokenResourceError("the call was refused")
