"""gRPC's health service, asked once: the wire forms of "gRPC over HTTP/2" and protobuf, by h2, which does no I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import trio

HOST: Final = "127.0.0.1"
READ_BYTES: Final = 16_384
MAX_ANSWER: Final = 65_536
"""Bytes of an answer that are looked at; a health answer has a few. At more the check has failed."""
_SERVING: Final = 1  # grpc.health.v1.HealthCheckResponse.ServingStatus


async def ask_health(port: int, service: str) -> tuple[bool, str]:
    """Whether the service of the pod is SERVING, and why not. Raises OSError, `trio.BrokenResourceError`."""
    try:
        return await _ask(port, service)
    except h2.exceptions.ProtocolError as error:
        raise trio.BrokenResourceError(f"malformed answer: {error}") from error


async def _ask(port: int, service: str) -> tuple[bool, str]:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    stream_id = connection.get_next_available_stream_id()
    connection.send_headers(stream_id, _headers(port))
    connection.send_data(stream_id, _message(service), end_stream=True)
    async with await trio.open_tcp_stream(HOST, port) as stream:
        status, answer = await _answer(stream, connection)
    if status != "0":
        return False, f"gRPC status {status or 'missing'}"
    return answer[5:7] == bytes([0x08, _SERVING]), "the service is not SERVING"


def _headers(port: int) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", f"{HOST}:{port}"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]


def _message(service: str) -> bytes:
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


async def _answer(stream: trio.SocketStream, connection: h2.connection.H2Connection) -> tuple[str, bytes]:
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
