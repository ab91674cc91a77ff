"""Round trips and bytes per second of trio_quic over loopback, against aioquic's own asyncio driver in the same run.

    python shared-proto/benchmarks/quic.py [--seconds 3] [--rounds 3]

Prints one JSON object. Wall times of shared machines vary; the ratios (trio_quic / aioquic asyncio, median of the
rounds, both of a round measured one after the other) are what to compare. Both ends of each run are in one process.
"""

import argparse
import asyncio  # noqa: TID251
import json
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trio_quic import Connection, Credentials, QuicError, Stream, make_certificate, open_endpoint

ALPN = "bench/1"
REQUEST = b"x" * 200
BULK = 4_000_000


def credentials(name: str) -> Credentials:
    """A fresh identity."""
    key = Ed25519PrivateKey.generate()
    return Credentials(make_certificate(key, common_name=name), key)


async def echo(stream: Stream) -> None:
    """Send back what comes: a small request in one piece, a long one as it comes."""
    async with stream:
        chunk = await stream.receive_some()
        if stream.at_eof:
            await stream.send_last(chunk)
            return
        await stream.send_all(chunk)
        async for chunk in stream:
            await stream.send_all(chunk)


async def trio_echo_server(connection: Connection[object]) -> None:
    """Echo on every stream until the connection ends."""
    try:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(echo, await connection.accept_stream())
    except* (QuicError, trio.ClosedResourceError):
        pass


async def trio_ask(connection: Connection[object], data: bytes) -> int:
    """One stream's round trip; returns the bytes that came back."""
    async with await connection.open_stream() as stream:
        if len(data) < 1000:
            await stream.send_last(data)
            return len(await stream.receive_all(2 * len(data)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_whole, stream, data)
            return await count_all(stream)


async def send_whole(stream: Stream, data: bytes) -> None:
    """Send and end."""
    await stream.send_all(data)
    await stream.send_eof()


async def count_all(stream: Stream) -> int:
    """How many bytes come."""
    count = 0
    async for chunk in stream:
        count += len(chunk)
    return count


async def trio_run(seconds: float) -> dict[str, float]:
    """All measurements of trio_quic."""
    common = {"alpn": ALPN, "verify_peer": lambda certificate: certificate}
    async with (
        open_endpoint("127.0.0.1", 0, credentials=credentials("a"), **common) as alice,  # type: ignore[arg-type]
        open_endpoint("127.0.0.1", 0, credentials=credentials("b"), **common) as bob,  # type: ignore[arg-type]
        trio.open_nursery() as nursery,
    ):

        async def serve_all() -> None:
            while True:
                nursery.start_soon(trio_echo_server, await bob.accept())

        nursery.start_soon(serve_all)
        connection = await alice.connect(bob.local_address)
        out = {"echo_1": await trio_rate(connection, 1, seconds), "echo_64": 0.0}
        out["echo_64"] = await trio_rate(connection, 64, seconds)
        start = time.perf_counter()
        assert await trio_ask(connection, bytes(BULK)) == BULK
        out["bulk_mb"] = BULK / 1e6 / (time.perf_counter() - start)
        spent, count = 0.0, 0
        while spent < seconds:
            start = time.perf_counter()
            connection = await alice.connect(bob.local_address)
            spent += time.perf_counter() - start
            count += 1
            await connection.aclose()
        out["connects"] = count / spent
        nursery.cancel_scope.cancel()
    return out


async def trio_rate(connection: Connection[object], flight: int, seconds: float) -> float:
    """Round trips a second with so many under way."""
    count, end = 0, time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await trio_ask(connection, REQUEST)
            count += 1

    async with trio.open_nursery() as nursery:
        for _ in range(flight):
            nursery.start_soon(worker)
    return count / seconds


def asyncio_configuration(name: str, *, is_client: bool) -> QuicConfiguration:
    """The same kind of identity for aioquic's own driver."""
    own = credentials(name)
    return QuicConfiguration(
        alpn_protocols=[ALPN],
        is_client=is_client,
        verify_mode=ssl.CERT_NONE,
        certificate=own.certificate,
        private_key=own.private_key,
    )


def demanding(
    quic: QuicConnection, make: type[QuicConnectionProtocol] = QuicConnectionProtocol, **options: Any
) -> QuicConnectionProtocol:
    """A server's protocol that asks for the client's certificate, as ours does."""
    initialize = quic._initialize

    def initialize_and_ask(peer_cid: bytes) -> None:
        initialize(peer_cid)
        quic.tls._request_client_certificate = True

    quic._initialize = initialize_and_ask
    return make(quic, **options)


async def asyncio_ask(protocol: QuicConnectionProtocol, data: bytes) -> int:
    """One stream's round trip."""
    reader, writer = await protocol.create_stream()
    writer.write(data)
    writer.write_eof()
    return len(await reader.read())


async def asyncio_run(seconds: float) -> dict[str, float]:
    """All measurements of aioquic's asyncio driver."""
    handlers = set()

    async def echo_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            writer.write(await reader.read(65536))
        writer.write_eof()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(echo_all(reader, writer))
        handlers.add(task)
        task.add_done_callback(handlers.discard)

    server = await serve(
        "127.0.0.1",
        0,
        configuration=asyncio_configuration("b", is_client=False),
        stream_handler=handle,
        create_protocol=demanding,
    )
    port = server._transport.get_extra_info("sockname")[1]  # type: ignore[union-attr]
    out = {}
    async with connect(
        "127.0.0.1", port, configuration=asyncio_configuration("a", is_client=True)
    ) as protocol:
        for name, flight in (("echo_1", 1), ("echo_64", 64)):
            count, end = 0, time.perf_counter() + seconds

            async def worker() -> None:
                nonlocal count
                while time.perf_counter() < end:  # noqa: B023
                    await asyncio_ask(protocol, REQUEST)
                    count += 1

            await asyncio.gather(*(worker() for _ in range(flight)))
            out[name] = count / seconds
        start = time.perf_counter()
        assert await asyncio_ask(protocol, bytes(BULK)) == BULK
        out["bulk_mb"] = BULK / 1e6 / (time.perf_counter() - start)
    spent, count = 0.0, 0
    client = asyncio_configuration("a", is_client=True)
    while (
        spent < seconds / 3
    ):  # each one's end, which is not counted, takes this driver some tenths of a second
        start = time.perf_counter()
        async with connect("127.0.0.1", port, configuration=client):
            spent += time.perf_counter() - start
            count += 1
    out["connects"] = count / spent
    server.close()
    return out


Run = Callable[[float], Awaitable[dict[str, float]]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(trio.run(trio_run, options.seconds))
        theirs.append(asyncio.run(asyncio_run(options.seconds)))
    report = {
        name: {
            "trio_quic": round(statistics.median(run[name] for run in ours), 1),
            "aioquic_asyncio": round(statistics.median(run[name] for run in theirs), 1),
            "ratio": round(
                statistics.median(a[name] / b[name] for a, b in zip(ours, theirs, strict=True)), 2
            ),
        }
        for name in ours[0]
    }
    units = {"echo_1": "1/s", "echo_64": "1/s", "bulk_mb": "MB/s", "connects": "1/s"}
    print(json.dumps({"units": units, "rounds": options.rounds, "results": report}, indent=2))


if __name__ == "__main__":
    main()
