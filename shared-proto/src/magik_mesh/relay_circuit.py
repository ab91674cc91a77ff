"""A circuit's end: datagrams of a path on the stream of a call, both ways; and what the calls' bodies hold."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import trio

from magik_mesh import codes
from magik_mesh.addresses import Address, is_dialable, is_loopback, parse
from magik_mesh.errors import CallRefused
from magik_mesh.relay_socket import Path, SwitchSocket
from magik_mesh.relay_wire import Unpacker, pack
from magik_mesh.rpc_client import ReplyStream
from magik_mesh.streams import STREAM_ERRORS
from magik_proto.errors import InvalidField, RemoteProtocolError
from magik_proto.identity import PeerId

_CHUNK = 64 << 10
# Addresses in one punch: those that we say of ourselves, and as others see us. A guess.
MAX_CANDIDATES = 8


class Calls(Protocol):
    """What relaying needs of a node."""

    async def call(self, peer: PeerId, method: str, body: Any = None, *, timeout: float = 30.0) -> Any:
        """See `magik_mesh.Node.call`."""

    def open_call(
        self, peer: PeerId, method: str, body: Any = None, *, timeout: float = 30.0
    ) -> AbstractAsyncContextManager[tuple[Any, ReplyStream]]:
        """See `magik_mesh.Node.open_call`."""


async def carry(socket: SwitchSocket, path: Path, stream: trio.abc.HalfCloseableStream) -> None:
    """Carry the datagrams of `path` until the stream ends or breaks, or `path.scope` is cancelled."""
    try:
        with path.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, path, stream, nursery.cancel_scope)
                await _receive(socket, path, stream)
                nursery.cancel_scope.cancel()
    finally:
        socket.end_circuit(path)


async def _send(path: Path, stream: trio.abc.HalfCloseableStream, both: trio.CancelScope) -> None:
    try:
        while True:
            await stream.send_all(pack(await path.take()))
    except STREAM_ERRORS:
        both.cancel()


async def _receive(socket: SwitchSocket, path: Path, stream: trio.abc.HalfCloseableStream) -> None:
    unpacker = Unpacker()
    try:
        while chunk := await stream.receive_some(_CHUNK):
            socket.arrive(path, unpacker.feed(chunk))
    except (*STREAM_ERRORS, RemoteProtocolError):
        return


def peer_in(body: Any) -> PeerId:
    """The machine that a call's body names. Raises `CallRefused`."""
    try:
        return PeerId(entry(body, "peer", bytes))
    except InvalidField as error:
        raise CallRefused(codes.RELAY_BODY, str(error)) from error


def entry(body: Any, key: str, kind: type, size: int | None = None) -> Any:
    """What a call's body has under `key`; with `size`, of that length. Raises `CallRefused`."""
    value = body.get(key) if isinstance(body, dict) else None
    if not isinstance(value, kind):
        raise CallRefused(codes.RELAY_BODY, f"{key} is missing or not {kind.__name__}")
    if size is not None and len(value) != size:  # type: ignore[arg-type]
        raise CallRefused(codes.RELAY_BODY, f"{key} is not of {size} bytes")
    return value


def candidates(texts: Iterable[Any]) -> list[Address]:
    """Those of some addresses as text to which a datagram may be sent, at most `MAX_CANDIDATES`."""
    found: dict[Address, None] = {}
    for text in texts:
        try:
            address = parse(text) if isinstance(text, str) else None
        except RemoteProtocolError:
            continue
        if address is not None and is_candidate(address):
            found[address] = None
    return list(found)[:MAX_CANDIDATES]


def is_candidate(address: Address) -> bool:
    """Whether another machine could reach this one at `address`: loopback means itself to each."""
    return is_dialable(address) and not is_loopback(address)
