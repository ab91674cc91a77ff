"""The two cores of trio_quic side by side: the same endpoints, streams and sockets over aioquic's core and over qh3's.

    python shared-proto/benchmarks/cores.py [--seconds 2] [--rounds 3]

Both ends of each run are in one process, on loopback. The last line is one JSON object: medians of the rounds, and as ratios
native / aioquic, of which both of a round were measured one after the other. `cpu_ms` is processor time of both ends for
one echo of 200 bytes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import trio
from quic import credentials, trio_echo_server

from trio_quic import AioquicCore, Connection, Endpoint, MakeCore, Stream, open_endpoint
from trio_quic.native import NativeCore

REQUEST = b"x" * 200
BULK = 8_000_000
UNITS = {"echo_1": "1/s", "echo_64": "1/s", "cpu_ms": "ms", "bulk_mb": "MB/s", "connects": "1/s"}


async def ask(connection: Connection[object]) -> None:
    """One small round trip."""
    async with await connection.open_stream() as stream:
        await stream.send_last(REQUEST)
        assert len(await stream.receive_all(1000)) == len(REQUEST)


async def rate(step: Callable[[], Awaitable[None]], flight: int, seconds: float) -> float:
    """Steps a second with so many under way."""
    count, end = 0, time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await step()
            count += 1

    async with trio.open_nursery() as nursery:
        for _ in range(flight):
            nursery.start_soon(worker)
    return count / seconds


async def bulk(connection: Connection[object]) -> float:
    """MB/s of one stream, one way and back."""
    start, received = time.perf_counter(), 0
    async with await connection.open_stream() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(send_whole, stream)
        async for chunk in stream:
            received += len(chunk)
    assert received == BULK
    return BULK / 1e6 / (time.perf_counter() - start)


async def send_whole(stream: Stream) -> None:
    """Send and end."""
    await stream.send_all(bytes(BULK))
    await stream.send_eof()


def opened(name: str, core: MakeCore) -> AbstractAsyncContextManager[Endpoint[object]]:
    """An endpoint with a fresh identity."""
    return open_endpoint(
        "127.0.0.1",
        0,
        credentials=credentials(name),
        alpn="bench/1",
        verify_peer=lambda certificate: certificate,
        core=core,
    )


async def measure(core: MakeCore, seconds: float) -> dict[str, float]:
    """All figures of one core."""
    async with (
        opened("a", core) as alice,
        opened("b", core) as bob,
        trio.open_nursery() as nursery,
    ):

        async def serve_all() -> None:
            while True:
                nursery.start_soon(trio_echo_server, await bob.accept())

        async def connect() -> None:
            await (await alice.connect(bob.local_address)).aclose()

        nursery.start_soon(serve_all)
        connection = await alice.connect(bob.local_address)
        out = {"echo_1": await rate(lambda: ask(connection), 1, seconds)}
        begun = time.process_time()
        out["echo_64"] = await rate(lambda: ask(connection), 64, seconds)
        out["cpu_ms"] = (time.process_time() - begun) * 1000 / (out["echo_64"] * seconds)
        out["bulk_mb"] = await bulk(connection)
        out["connects"] = await rate(connect, 1, seconds)
        nursery.cancel_scope.cancel()
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"aioquic": [], "native": []}
    for _ in range(options.rounds):
        for name, core in (("aioquic", AioquicCore), ("native", NativeCore)):
            runs[name].append(trio.run(measure, core, options.seconds))
            print(name, {key: round(value, 2) for key, value in runs[name][-1].items()})
    figures = {
        f"{key}_{name}": round(statistics.median(run[key] for run in of), 2)
        for key in UNITS
        for name, of in runs.items()
    }
    ratios = {
        f"{key}_native_vs_aioquic": round(
            statistics.median(b[key] / a[key] for a, b in zip(runs["aioquic"], runs["native"], strict=True)),
            2,
        )
        for key in UNITS
    }
    print(json.dumps({"name": "cores", "ratios": ratios, "figures": figures, "units": UNITS}))


if __name__ == "__main__":
    main()
