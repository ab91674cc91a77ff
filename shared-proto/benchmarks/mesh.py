"""The mesh's calls and the transport below, side by side with what others use, in one run.

    python shared-proto/benchmarks/mesh.py [--count 2000] [--rounds 3]

Measured, each over loopback with both ends in this process, one after the other in every round:

- ``rpc``: a unary call of magik_mesh (200 bytes there and back), on a new stream each;
- ``stream``: an echo of 200 bytes on a new stream of trio_quic, without the mesh;
- ``bare_core``: the same echo between two stock aioquic cores pumped in memory, no socket and no event loop, plus
  what its datagrams would cost in ``sendto`` and ``recvfrom``: the ceiling;
- ``aioquic_asyncio``: aioquic's own asyncio client and server, with certificates on both sides;
- ``grpc_mtls``: grpc.aio with mutual TLS, if the package ``grpcio`` is installed.

Rates are per second of *processor time*: wall times of shared machines vary twofold. The wall-clock rates are in the
figures beside them. The last line is one JSON object; a ratio above 1 is in our favour, null was not measured.
"""

import argparse
import asyncio  # noqa: TID251
import datetime
import importlib.util
import json
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from aioquic.asyncio import connect, serve
from aioquic.quic import events
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from magik_mesh import Call, NodeConfig, open_node
from magik_mesh.testing import peers_of, until
from magik_proto.identity import BootstrapPeer, Identity
from magik_proto.membership import MembershipPolicy
from trio_quic import open_endpoint

sys.path.insert(0, str(Path(__file__).parent))
import quic

METHOD = "/bench/echo/1.0.0"
FLIGHTS = (1, 64)
Ask = Callable[[], Awaitable[Any]]
Figures = dict[str, float]


class Stopwatch:
    """Processor and wall seconds since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def rates(self, name: str, count: float) -> Figures:
        """``count`` per second of either kind."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return {name: count / cpu, f"{name}_wall": count / wall}


async def trio_rates(ask: Ask, count: int) -> Figures:
    """Round trips with 1 and 64 under way."""
    out: Figures = {}
    for flight in FLIGHTS:

        async def worker(share: int = count // flight) -> None:
            for _ in range(share):
                await ask()

        await worker(20)
        watch = Stopwatch()
        async with trio.open_nursery() as nursery:
            for _ in range(flight):
                nursery.start_soon(worker)
        out |= watch.rates(f"calls_{flight}", count // flight * flight)
    return out


async def asyncio_rates(ask: Ask, count: int) -> Figures:
    """The same for asyncio."""
    out: Figures = {}
    for flight in FLIGHTS:

        async def worker(share: int = count // flight) -> None:
            for _ in range(share):
                await ask()

        await worker(20)
        watch = Stopwatch()
        await asyncio.gather(*(worker() for _ in range(flight)))
        out |= watch.rates(f"calls_{flight}", count // flight * flight)
    return out


async def measure_rpc(count: int) -> Figures:
    """Unary calls between two mesh nodes."""
    policy = MembershipPolicy(root=None)

    async def answer(call: Call) -> Any:
        return call.body

    first = NodeConfig(host="127.0.0.1", port=0, identity=Identity.generate(), policy=policy)
    async with open_node(first) as bob:
        bob.handle(METHOD, answer)
        known = (BootstrapPeer(bob.id, *bob.address),)
        config = NodeConfig(
            host="127.0.0.1",
            port=0,
            identity=Identity.generate(),
            policy=MembershipPolicy(root=None),
            bootstrap=known,
        )
        async with open_node(config) as alice:
            await until(lambda: bool(peers_of(alice)))
            return await trio_rates(lambda: alice.call(bob.id, METHOD, quic.REQUEST), count)


async def measure_stream(count: int) -> Figures:
    """Echoes, handshakes and bulk of trio_quic."""
    common: dict[str, Any] = {"alpn": quic.ALPN, "verify_peer": lambda certificate: certificate}
    async with (
        open_endpoint("127.0.0.1", 0, credentials=quic.credentials("a"), **common) as alice,
        open_endpoint("127.0.0.1", 0, credentials=quic.credentials("b"), **common) as bob,
        trio.open_nursery() as nursery,
    ):

        async def serve_all() -> None:
            while True:
                nursery.start_soon(quic.trio_echo_server, await bob.accept())

        nursery.start_soon(serve_all)
        connection = await alice.connect(bob.local_address)
        out = await trio_rates(lambda: quic.trio_ask(connection, quic.REQUEST), count)
        watch = Stopwatch()
        await quic.trio_ask(connection, bytes(quic.BULK))
        out |= watch.rates("bulk_mb", quic.BULK / 1e6)
        watch = Stopwatch()
        handshakes = max(20, count // 50)
        for _ in range(handshakes):
            await (await alice.connect(bob.local_address)).aclose()
        out |= watch.rates("handshakes", handshakes)
        nursery.cancel_scope.cancel()
    return out


async def measure_asyncio(count: int) -> Figures:
    """The same of aioquic's asyncio driver."""
    handlers = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            writer.write(await reader.read(65536))
        writer.write_eof()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(echo(reader, writer))
        handlers.add(task)
        task.add_done_callback(handlers.discard)

    server = await serve(
        "127.0.0.1",
        0,
        configuration=quic.asyncio_configuration("b", is_client=False),
        stream_handler=handle,
        create_protocol=quic.demanding,
    )
    port = server._transport.get_extra_info("sockname")[1]  # type: ignore[union-attr]
    client = quic.asyncio_configuration("a", is_client=True)
    async with connect("127.0.0.1", port, configuration=client) as protocol:
        out = await asyncio_rates(lambda: quic.asyncio_ask(protocol, quic.REQUEST), count)
        watch = Stopwatch()
        await quic.asyncio_ask(protocol, bytes(quic.BULK))
        out |= watch.rates("bulk_mb", quic.BULK / 1e6)
    watch = Stopwatch()
    handshakes = max(20, count // 50)
    for _ in range(handshakes):
        async with connect("127.0.0.1", port, configuration=client, wait_connected=True) as protocol:
            protocol.close()
    out |= watch.rates("handshakes", handshakes)
    server.close()
    return out


def measure_bare(count: int) -> Figures:
    """Echoes between two stock cores in memory, with system calls added by the datagram."""
    out: Figures = {}
    cost = syscall_seconds()
    for flight in FLIGHTS:
        watch = Stopwatch()
        datagrams = pump_echoes(flight, count)
        seconds = count / watch.rates("x", count)["x"] + datagrams * cost
        out |= {f"calls_{flight}": count / seconds, f"datagrams_{flight}": datagrams / count}
    return out


def syscall_seconds() -> float:
    """What it costs to send and to receive one datagram of 250 bytes over loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        address, rounds, start = one.getsockname(), 5000, time.process_time()
        for _ in range(rounds):
            one.sendto(bytes(250), address)
            one.recvfrom(65536)
    return (time.process_time() - start) / rounds


def pump_echoes(flight: int, count: int) -> int:
    """Echo on ``count`` streams, ``flight`` at a time; returns the datagrams that it took. Time is half a millisecond a
    round.
    """
    client = QuicConnection(configuration=quic.asyncio_configuration("a", is_client=True))
    server = QuicConnection(
        configuration=quic.asyncio_configuration("b", is_client=False),
        original_destination_connection_id=client.original_destination_connection_id,
    )
    now, datagrams, started, done = 0.0, 0, 0, 0
    client.connect(("b", 1), now)
    while done < count:
        now += 0.0005
        while started - done < flight and started < count and client._handshake_confirmed:
            client.send_stream_data(client.get_next_available_stream_id(), quic.REQUEST, True)
            started += 1
        for source, target, name in ((client, server, "a"), (server, client, "b")):
            if source._network_paths:
                for data, _ in source.datagrams_to_send(now):
                    datagrams += 1
                    target.receive_datagram(data, (name, 1), now)
                if (due := source.get_timer()) is not None and due <= now:
                    source.handle_timer(now)
        while (event := server.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                server.send_stream_data(event.stream_id, event.data, event.end_stream)
        while (event := client.next_event()) is not None:
            done += isinstance(event, events.StreamDataReceived) and event.end_stream
    return datagrams


def tls_pair() -> tuple[bytes, bytes]:
    """A self-signed P-256 certificate for localhost and its key, as PEM (gRPC takes no Ed25519)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), secret


async def measure_grpc(count: int) -> Figures:
    """Unary calls of grpc.aio with certificates on both sides."""
    import grpc

    certificate, key = tls_pair()

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Echo": handler}),))
    port = server.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True),
    )
    await server.start()
    credentials = grpc.ssl_channel_credentials(certificate, key, certificate)
    options = [("grpc.ssl_target_name_override", "localhost")]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        call = channel.unary_unary("/bench/Echo")
        out = await asyncio_rates(lambda: call(quic.REQUEST), count)
    await server.stop(None)
    return out


def one_round(count: int) -> dict[str, Figures]:
    """Everything once."""
    out = {
        "rpc": trio.run(measure_rpc, count),
        "stream": trio.run(measure_stream, count),
        "aioquic_asyncio": asyncio.run(measure_asyncio(count)),
        "bare_core": measure_bare(count),
    }
    if importlib.util.find_spec("grpc") is not None:
        out["grpc_mtls"] = asyncio.run(measure_grpc(count))
    return out


def ratio(rounds: list[dict[str, Figures]], ours: str, theirs: str, name: str) -> float | None:
    """The median over the rounds of ours / theirs."""
    if any(name not in figures.get(who, {}) for figures in rounds for who in (ours, theirs)):
        return None
    return round(statistics.median(figures[ours][name] / figures[theirs][name] for figures in rounds), 2)


def report(rounds: list[dict[str, Figures]]) -> dict[str, Any]:
    """The JSON object."""
    ratios: dict[str, float | None] = {}
    for ours in ("rpc", "stream"):
        for theirs in ("bare_core", "aioquic_asyncio", "grpc_mtls"):
            for flight in FLIGHTS:
                label = f"{ours}_vs_{theirs}_{flight}"
                ratios[label] = ratio(rounds, ours, theirs, f"calls_{flight}")
    for name in ("bulk_mb", "handshakes", "calls_1_wall", "calls_64_wall"):
        ratios[f"stream_vs_aioquic_asyncio_{name}"] = ratio(rounds, "stream", "aioquic_asyncio", name)
    ratios["rpc_vs_py_libp2p"] = None
    figures = {
        who: {name: round(statistics.median(it[who][name] for it in rounds), 1) for name in rounds[0][who]}
        for who in rounds[0]
    }
    notes = ["py-libp2p is not measured here"]
    if "grpc_mtls" not in figures:
        notes.append("grpcio is not installed: pip install grpcio")
    return {"name": "mesh", "ratios": ratios, "figures": figures, "notes": notes}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=2000, help="round trips of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(report([one_round(options.count) for _ in range(options.rounds)])))


if __name__ == "__main__":
    main()
