"""What the tests of this package share: identities, endpoints on a network in memory, and echo servers."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trio_quic import (
    Connection,
    Credentials,
    Endpoint,
    Limits,
    QuicError,
    Stream,
    make_certificate,
    open_endpoint,
)
from trio_quic.core import AioquicCore
from trio_quic.interface import MakeCore
from trio_quic.testing import MemoryNetwork

ALPN = "test/1"
CORE: MakeCore = AioquicCore  # test_native.py runs tests with the other one
ALICE = ("10.0.0.1", 4433)
BOB = ("10.0.0.2", 4433)


def credentials(name: str) -> Credentials:
    key = Ed25519PrivateKey.generate()
    return Credentials(make_certificate(key, common_name=name), key)


def name_of(certificate: x509.Certificate) -> str:
    return str(certificate.subject.rfc4514_string()).removeprefix("CN=")


def network(seed: int = 1, **faults: Any) -> MemoryNetwork:
    return MemoryNetwork(random.Random(seed), **faults)


@asynccontextmanager
async def endpoint_on(
    net: MemoryNetwork,
    address: tuple[str, int],
    name: str = "",
    *,
    verify_peer: Callable[[x509.Certificate], Any] = name_of,
    limits: Limits | None = None,
    alpn: str = ALPN,
) -> AsyncIterator[Endpoint[Any]]:
    opened = open_endpoint(
        *address,
        credentials=credentials(name or address[0]),
        alpn=alpn,
        verify_peer=verify_peer,
        limits=limits,
        socket=net.socket(*address),
        core=CORE,
    )
    async with opened as endpoint:
        yield endpoint


@asynccontextmanager
async def connected(
    net: MemoryNetwork, *, limits: Limits | None = None
) -> AsyncIterator[tuple[Connection[str], Connection[str]]]:
    """Two endpoints and the connection from Alice to Bob, as both see it."""
    async with (
        endpoint_on(net, ALICE, "alice", limits=limits) as alice,
        endpoint_on(net, BOB, "bob", limits=limits) as bob,
    ):
        ours = await alice.connect(BOB)
        yield ours, await bob.accept()


async def stream_pair(ours: Connection[str], theirs: Connection[str]) -> tuple[Stream, Stream]:
    """A stream seen from both sides; one byte has travelled to announce it."""
    mine = await ours.open_stream()
    await mine.send_all(b"!")
    other = await theirs.accept_stream()
    assert await other.receive_some(1) == b"!"
    return mine, other


async def read_all(stream: Stream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def echo(stream: Stream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


async def serve_echo(endpoint: Endpoint[Any]) -> None:
    """Echo on all streams of all connections, until cancelled."""

    async def serve(connection: Connection[Any]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    nursery.start_soon(echo, await connection.accept_stream())
        except* (QuicError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(serve, await endpoint.accept())


async def ask(connection: Connection[Any], data: bytes) -> bytes:
    """Send data on a new stream and return the echo of it."""
    async with await connection.open_stream() as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        return await read_all(stream)
