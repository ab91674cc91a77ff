"""What `mesh.py` measures of py-libp2p's QUIC: run by the interpreter of an environment that has it (PyPI `libp2p`).

    python shared-proto/benchmarks/peers/libp2p_quic.py --count 200

Two hosts in this process over loopback: round trips of 200 bytes on a new stream each, handshakes one after the other,
and one long stream there and back. Its last line is one JSON object of figures, or {"error": why}.
"""

import argparse
import json
import logging
import time
from typing import Any

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr

ECHO = TProtocol("/bench/echo/1.0.0")
REQUEST = b"x" * 200
BULK = 1_000_000
LISTEN = "/ip4/127.0.0.1/udp/{port}/quic-v1"


async def echo(stream: Any) -> None:
    """Send back what comes: as many bytes as the first eight say. It ends of itself, since this library may lose an end of
    stream (its issue 1521), and then opens no further stream.
    """
    left = int.from_bytes(await stream.read(8), "big")
    while left:
        chunk = await stream.read(min(left, 65536))
        if not chunk:
            break
        left -= len(chunk)
        await stream.write(chunk)
    await stream.close()


async def ask(host: Any, peer: Any, data: bytes) -> None:
    """One stream's round trip."""
    stream = await host.new_stream(peer, [ECHO])
    await stream.write(len(data).to_bytes(8, "big") + data)
    got = 0
    while got < len(data):
        chunk = await stream.read(65536)
        if not chunk:
            raise RuntimeError(f"{got} bytes of {len(data)} came back")
        got += len(chunk)
    await stream.close()


async def rates(host: Any, peer: Any, flight: int, count: int) -> dict[str, float]:
    """Round trips a second with so many under way, of processor and of wall time, and how long they took."""
    times: list[float] = []

    async def worker() -> None:
        for _ in range(count // flight):
            start = time.perf_counter()
            await ask(host, peer, REQUEST)
            times.append(time.perf_counter() - start)

    cpu, wall = time.process_time(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(flight):
            nursery.start_soon(worker)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    times.sort()
    return {
        f"calls_{flight}": len(times) / cpu,
        f"calls_{flight}_wall": len(times) / wall,
        f"p50_ms_{flight}": times[len(times) // 2] * 1000,
        f"p99_ms_{flight}": times[len(times) * 99 // 100] * 1000,
    }


async def measure(count: int) -> dict[str, float]:
    """All figures."""
    server = new_host(key_pair=create_new_key_pair(), enable_quic=True)
    client = new_host(key_pair=create_new_key_pair(), enable_quic=True)
    out: dict[str, float] = {}
    async with (
        server.run(listen_addrs=[multiaddr.Multiaddr(LISTEN.format(port=0))]),
        client.run(listen_addrs=[multiaddr.Multiaddr(LISTEN.format(port=0))]),
    ):
        server.set_stream_handler(ECHO, echo)
        address = server.get_addrs()[0]
        info = info_from_p2p_addr(address)
        await client.connect(info)
        await ask(client, info.peer_id, REQUEST)
        for flight in (1, 64):
            out |= await rates(client, info.peer_id, flight, max(count, 2 * flight))
        cpu = time.process_time()
        await ask(client, info.peer_id, bytes(BULK))
        out["bulk_mb"] = BULK / 1e6 / (time.process_time() - cpu)
        cpu, times = time.process_time(), 5
        for _ in range(times):
            await client.disconnect(info.peer_id)
            await client.connect(info)
        out["handshakes"] = times / (time.process_time() - cpu)
    return out


def _causes(error: BaseException) -> str:
    """What happened, without the groups around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}; {error.__cause__!r}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=200)
    count = parser.parse_args().count
    logging.disable(logging.CRITICAL)

    async def bounded() -> dict[str, float]:
        with trio.fail_after(60):
            return await measure(count)

    try:
        print(json.dumps(trio.run(bounded)))
    except BaseException as error:  # noqa: BLE001 - whatever stops the peer library is told, not hidden
        print(json.dumps({"error": _causes(error)[:400]}))


if __name__ == "__main__":
    main()
