"""What 100 peers that send a byte a second on 64 streams each do to an honest one.

    python shared-proto/benchmarks/slow.py [--seconds 8] [--peers 100] [--streams 64]

Three processes on loopback: the server, the slow peers, and an honest peer that calls one after the other. Measured is its
99th percentile without and with the slow ones, for each core, and the share of a processor that the server takes; the last
line is one JSON object with the ratios. With fewer than three idle processors the processes wait for each other, too: then a
ratio says more of the machine than of the server.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe

import trio
from cores import ask, opened

from trio_quic import AioquicCore, Connection, Endpoint, MakeCore, QuicError, Stream
from trio_quic.native import NativeCore

CORES: dict[str, MakeCore] = {"aioquic": AioquicCore, "native": NativeCore}


async def answer(stream: Stream) -> None:
    """Answer a request when it is whole, as calls are."""
    async with stream:
        await stream.send_last(await stream.receive_all(64 * 1024))


async def serve(connection: Connection[object]) -> None:
    """Answer on every stream until the connection ends."""
    try:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(answer, await connection.accept_stream())
    except* (QuicError, trio.ClosedResourceError):
        pass


async def serve_all(core: str, pipe: Pipe) -> None:
    """The server: tells its address, and serves until it is told to end."""
    async with opened("server", CORES[core]) as endpoint, trio.open_nursery() as nursery:
        pipe.send(endpoint.local_address)

        async def accept() -> None:
            while True:
                nursery.start_soon(serve, await endpoint.accept())

        nursery.start_soon(accept)
        while await trio.to_thread.run_sync(pipe.recv, abandon_on_cancel=True) != "end":
            pipe.send(time.process_time())
        nursery.cancel_scope.cancel()


async def drip_all(core: str, pipe: Pipe) -> None:
    """The slow peers: connect, tell so, and send a byte a second on each stream until told to end."""
    os.nice(10)  # it is the server's work that is to be seen, not how processes share a processor
    address, peers, streams = pipe.recv()
    sent = 0

    async def drip(endpoint: Endpoint[object], number: int, *, task_status: trio.TaskStatus[None]) -> None:
        nonlocal sent
        connection = await endpoint.connect(address)
        own = [await connection.open_stream() for _ in range(streams)]
        task_status.started()
        await trio.sleep(number / peers)
        while True:
            for stream in own:
                await stream.send_all(b"x")
                sent += 1
            await trio.sleep(1)

    async def one(number: int, *, task_status: trio.TaskStatus[None]) -> None:
        # An endpoint and an identity each, as different machines have.
        async with opened(f"slow {number}", CORES[core]) as endpoint:
            await drip(endpoint, number, task_status=task_status)

    async with trio.open_nursery() as nursery:
        for number in range(peers):
            await nursery.start(one, number)
        pipe.send("all connected")
        while await trio.to_thread.run_sync(pipe.recv, abandon_on_cancel=True) != "end":
            pipe.send(sent)
        nursery.cancel_scope.cancel()


async def call_for(core: str, address: tuple[str, int], seconds: float) -> list[float]:
    """The times of an honest peer's calls, in ms."""
    times = []
    async with opened("honest", CORES[core]) as endpoint:
        connection = await endpoint.connect(address)
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            await ask(connection)
            times.append((time.perf_counter() - begun) * 1000)
            await trio.sleep(0.002)
    return sorted(times)


def start(target: Callable[..., object], core: str) -> tuple[multiprocessing.Process, Pipe]:
    """A process with a pipe to it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=trio_run, args=(target, core, theirs))
    process.start()
    return process, ours


def trio_run(target: Callable[..., object], core: str, pipe: Pipe) -> None:
    """The beginning of such a process."""
    trio.run(target, core, pipe)  # type: ignore[arg-type]


def p99(times: list[float]) -> float:
    """The 99th percentile."""
    return times[int(len(times) * 0.99)]


def observe(core: str, address: tuple[str, int], to_server: Pipe, seconds: float) -> tuple[float, float]:
    """The honest p99 in ms, and the share of a processor that the server takes meanwhile."""
    to_server.send("cpu")
    begun = to_server.recv()
    times = trio.run(call_for, core, address, seconds)
    to_server.send("cpu")
    return p99(times), (to_server.recv() - begun) / seconds


def measure(core: str, options: argparse.Namespace) -> dict[str, float]:
    """All figures of one core."""
    server, to_server = start(serve_all, core)
    address = to_server.recv()
    alone, idle = observe(core, address, to_server, options.seconds)
    slow, to_slow = start(drip_all, core)
    to_slow.send((address, options.peers, options.streams))
    to_slow.recv()
    to_slow.send("sent")
    before = to_slow.recv()
    beside, busy = observe(core, address, to_server, options.seconds)
    to_slow.send("sent")
    slow_bytes = (to_slow.recv() - before) / options.seconds
    for process, pipe in ((slow, to_slow), (server, to_server)):
        pipe.send("end")
        process.join(20)
    return {
        "p99_ms_alone": alone,
        "p99_ms_beside": beside,
        "server_cpu_alone": idle,
        "server_cpu_beside": busy,
        "slow_bytes_per_s": slow_bytes,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--streams", type=int, default=64)
    options = parser.parse_args()
    figures, ratios = {}, {}
    for core in CORES:
        found = measure(core, options)
        figures |= {f"{name}_{core}": round(value, 2) for name, value in found.items()}
        ratios[f"p99_beside_vs_alone_{core}"] = round(found["p99_ms_beside"] / found["p99_ms_alone"], 2)
    print(json.dumps({"name": "slow", "ratios": ratios, "figures": figures}))


if __name__ == "__main__":
    main()
