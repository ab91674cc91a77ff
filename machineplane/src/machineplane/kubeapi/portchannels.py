"""port-forward as Python's clients speak it: ``v4.channel.k8s.io``, or no subprotocol at all.

``ports`` in the query names the ports; the *i*-th has channel 2i for data and 2i + 1 for errors, each begun by its port in
two bytes, little-endian. One connection a port, for as long as the socket lasts; it has no half-closed state.
"""

from collections.abc import Mapping
from typing import Final

import trio

from machineplane.channels import SessionRefused

from .calls import Call
from .errors import ApiError
from .podports import STALL, Pod, text_of
from .websocket import WebSocket

#: Ports of one request, a guess: two channels each have to fit a byte.
MAX_PORTS: Final = 16
_READ: Final = 32 * 1024


def asked_ports(call: Call) -> list[int]:
    """The query's ports. Raises ApiError 400."""
    words = [word.strip() for value in call.words.get("ports", ()) for word in value.split(",")]
    if not words or len(words) > MAX_PORTS:
        raise ApiError.bad_request(f"1 to {MAX_PORTS} ports are expected in the query, as ports=80,443")
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 6 and 0 < int(word) < 65536):
            raise ApiError.bad_request(f"{word!r} is not a port")
    return [int(word) for word in words]


async def serve_ports(pod: Pod, call: Call, socket: WebSocket) -> None:
    """Until all connections have ended, or the client goes (ClientGone)."""
    try:
        ports = asked_ports(call)
    except ApiError as error:
        await socket.send(b"\x01" + str(error).encode())
        return
    streams: dict[int, trio.abc.SendStream] = {}
    for index, port in enumerate(ports):
        for channel in (2 * index, 2 * index + 1):
            await socket.send(bytes([channel]) + port.to_bytes(2, "little"))
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as connections:
            ready = trio.Event()
            nursery.start_soon(_inward, socket, streams, ready)
            for index, port in enumerate(ports):
                await connections.start(_carry, pod, port, 2 * index, streams, socket)
            ready.set()
        nursery.cancel_scope.cancel()


async def _carry(
    pod: Pod,
    port: int,
    channel: int,
    streams: dict[int, trio.abc.SendStream],
    socket: WebSocket,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """One connection, from the pod to the client."""
    try:
        async with pod.connect(port) as stream:
            streams[channel] = stream
            task_status.started()
            while data := await stream.receive_some(_READ):
                await socket.send(bytes([channel]) + bytes(data))
    except* SessionRefused as group:
        await socket.send(bytes([channel + 1]) + text_of(group).encode())
        if channel not in streams:
            task_status.started()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        await socket.send(bytes([channel + 1]) + b"the connection was broken off")
    finally:
        streams.pop(channel, None)


async def _inward(socket: WebSocket, streams: Mapping[int, trio.abc.SendStream], ready: trio.Event) -> None:
    await ready.wait()
    while True:
        message = await socket.receive()
        stream = streams.get(message[0]) if message else None
        if stream is None:
            continue  # of a connection that has ended, or of a channel that carries nothing
        try:
            with trio.fail_after(STALL):
                await stream.send_all(message[1:])
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.aclose()
