"""The mesh's calls and the transport below, side by side with what others use, in one run.

    python shared-proto/benchmarks/mesh.py [--count 2000] [--rounds 3]

Measured, each over loopback with both ends in this process, one after the other in every round:

- ``rpc``: a unary call of magik_mesh (200 bytes there and back), on a new stream each;
- ``rpc_plain``: the same of a method that is a plain function (``Node.answer``), and so needs no task;
- ``rpc_native``: ``rpc`` over the native core, if the extra ``native`` is installed;
- ``stream``: an echo of 200 bytes on a new stream of trio_quic, without the mesh, handshakes, and one long stream;
- ``bare_core``: the same echo between two stock aioquic cores pumped in memory, no socket and no event loop, plus
  what its datagrams would cost in ``sendto`` and ``recvfrom``: the ceiling;
- ``aioquic_asyncio``: aioquic's own asyncio client and server, with certificates on both sides: a task answers each
  stream, as a task answers ``rpc``;
- ``aioquic_callback``: the same server without streams and tasks: the protocol's callback sends back what has come. It is to
  ``rpc_plain`` what the other is to ``rpc``;
- ``grpc_mtls``: grpc.aio with mutual TLS, if the package ``grpcio`` is installed;
- ``py_libp2p``: two hosts of py-libp2p over QUIC, in a process of the interpreter that the environment variable
  LIBP2P_PYTHON names, since it wants versions of its own of much (`nox -s bench` makes one).

Rates are per second of *processor time*: wall times of shared machines vary twofold. The wall-clock rates and the times
that calls took are in the figures beside them. The last line is one JSON object; a ratio above 1 is in our favour; null
was not measured, and ``notes`` says why.
"""

import argparse
import asyncio  # noqa: TID251
import datetime
import importlib.util
import json
import logging
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
import trio
from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.events import QuicEvent, StreamDataReceived
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from magik_mesh import Call, NodeConfig, open_node
from magik_mesh.testing import peers_of, until
from magik_proto.identity import BootstrapPeer, Identity
from magik_proto.membership import MembershipPolicy
from trio_quic import open_endpoint
from trio_quic.core import AioquicCore
from trio_quic.interface import MakeCore

sys.path.insert(0, str(Path(__file__).parent))
import quic
from peers import bare_core
from peers.apart import libp2p_figures

METHOD = "/bench/echo/1.0.0"
FLIGHTS = (1, 64)
LIBP2P_LIMIT_S = 600  # of py-libp2p's process; it takes tens of seconds here
Ask = Callable[[], Awaitable[Any]]
Figures = dict[str, float]
THEIRS = ("bare_core", "aioquic_asyncio", "aioquic_callback", "py_libp2p", "grpc_mtls")


class Stopwatch:
    """Processor and wall seconds since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def rates(self, name: str, count: float) -> Figures:
        """``count`` per second of either kind."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return {name: count / cpu, f"{name}_wall": count / wall}


def latencies(flight: int, seconds: list[float]) -> Figures:
    """The median and the 99th percentile of how long calls took, in milliseconds."""
    seconds.sort()
    return {
        f"p50_ms_{flight}": seconds[len(seconds) // 2] * 1000,
        f"p99_ms_{flight}": seconds[len(seconds) * 99 // 100] * 1000,
    }


async def trio_rates(ask: Ask, count: int) -> Figures:
    """Round trips with 1 and 64 under way."""
    out: Figures = {}
    for flight in FLIGHTS:
        times: list[float] = []

        async def worker(share: int = count // flight, times: list[float] = times) -> None:
            for _ in range(share):
                start = time.perf_counter()
                await ask()
                times.append(time.perf_counter() - start)

        await worker(20)
        times.clear()
        watch = Stopwatch()
        async with trio.open_nursery() as nursery:
            for _ in range(flight):
                nursery.start_soon(worker)
        out |= watch.rates(f"calls_{flight}", len(times)) | latencies(flight, times)
    return out


async def asyncio_rates(ask: Ask, count: int) -> Figures:
    """The same for asyncio."""
    out: Figures = {}
    for flight in FLIGHTS:
        times: list[float] = []

        async def worker(share: int = count // flight, times: list[float] = times) -> None:
            for _ in range(share):
                start = time.perf_counter()
                await ask()
                times.append(time.perf_counter() - start)

        await worker(20)
        times.clear()
        watch = Stopwatch()
        await asyncio.gather(*(worker() for _ in range(flight)))
        out |= watch.rates(f"calls_{flight}", len(times)) | latencies(flight, times)
    return out


async def measure_rpc(count: int, core: MakeCore = AioquicCore, *, plain: bool = False) -> Figures:
    """Unary calls between two mesh nodes, of a method that is a handler, or a plain function."""
    policy = MembershipPolicy(root=None)

    async def answer(call: Call) -> Any:
        return call.body

    first = NodeConfig(host="127.0.0.1", port=0, identity=Identity.generate(), policy=policy, core=core)
    async with open_node(first) as bob:
        if plain:
            bob.answer(METHOD, lambda call: call.body)
        else:
            bob.handle(METHOD, answer)
        known = (BootstrapPeer(bob.id, *bob.address),)
        config = NodeConfig(
            host="127.0.0.1",
            port=0,
            identity=Identity.generate(),
            policy=MembershipPolicy(root=None),
            bootstrap=known,
            core=core,
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


class EchoProtocol(QuicConnectionProtocol):
    """Sends back what comes, from the callback that tells of it."""

    def quic_event_received(self, event: QuicEvent) -> None:
        """See aioquic; what is queued here leaves when the datagram is dealt with."""
        if isinstance(event, StreamDataReceived):
            self._quic.send_stream_data(event.stream_id, event.data, event.end_stream)


async def measure_callback(count: int) -> Figures:
    """Echoes of aioquic's asyncio driver with a server of callbacks."""
    server = await serve(
        "127.0.0.1",
        0,
        configuration=quic.asyncio_configuration("b", is_client=False),
        create_protocol=lambda connection, **options: quic.demanding(connection, EchoProtocol, **options),
    )
    port = server._transport.get_extra_info("sockname")[1]  # type: ignore[union-attr]
    client = quic.asyncio_configuration("a", is_client=True)
    async with connect("127.0.0.1", port, configuration=client) as protocol:
        out = await asyncio_rates(lambda: quic.asyncio_ask(protocol, quic.REQUEST), count)
    server.close()
    return out


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


def one_round(count: int) -> dict[str, dict[str, Any]]:
    """Everything once."""
    out: dict[str, dict[str, Any]] = {
        "rpc": trio.run(measure_rpc, count),
        "rpc_plain": trio.run(lambda: measure_rpc(count, plain=True)),
        "aioquic_callback": asyncio.run(measure_callback(count)),
        "stream": trio.run(measure_stream, count),
        "aioquic_asyncio": asyncio.run(measure_asyncio(count)),
        "bare_core": bare_core.measure(count, FLIGHTS),
        "py_libp2p": libp2p_figures("libp2p_quic.py", LIBP2P_LIMIT_S, count=count // 10),
    }
    if importlib.util.find_spec("qh3") is not None:
        from trio_quic.native import NativeCore

        out["rpc_native"] = trio.run(measure_rpc, count, NativeCore)
    if importlib.util.find_spec("grpc") is not None:
        out["grpc_mtls"] = asyncio.run(measure_grpc(count))
    return out


Rounds = list[dict[str, dict[str, Any]]]


def ratio(rounds: Rounds, ours: str, theirs: str, name: str) -> float | None:
    """The median of ours / theirs, over the rounds that have both."""
    values = [
        figures[ours][name] / figures[theirs][name]
        for figures in rounds
        if name in figures.get(ours, {}) and name in figures.get(theirs, {})
    ]
    return round(statistics.median(values), 2) if values else None


def ratios(rounds: Rounds) -> dict[str, float | None]:
    """Calls by `rpc_vs_…`, with one and (`_at_64`) with 64 under way; the rest by what it is."""
    out: dict[str, float | None] = {}
    for ours in ("rpc", "rpc_plain", "rpc_native", "stream"):
        for theirs in THEIRS:
            out[f"{ours}_vs_{theirs}"] = ratio(rounds, ours, theirs, "calls_1")
            out[f"{ours}_vs_{theirs}_at_64"] = ratio(rounds, ours, theirs, "calls_64")
    for theirs in ("aioquic_asyncio", "py_libp2p"):
        out[f"handshakes_vs_{theirs}"] = ratio(rounds, "stream", theirs, "handshakes")
        out[f"bulk_vs_{theirs}"] = ratio(rounds, "stream", theirs, "bulk_mb")
    return out


def figures(rounds: Rounds) -> dict[str, dict[str, float]]:
    """Medians over the rounds, by who and what."""
    return {
        who: {
            name: round(statistics.median(it[who][name] for it in rounds if name in it[who]), 2)
            for name in rounds[0][who]
            if name != "error"
        }
        for who in rounds[0]
    }


def report(rounds: Rounds) -> dict[str, Any]:
    """The JSON object."""
    notes = [
        f"{who}: {it['error']}" for figures in rounds[:1] for who, it in figures.items() if "error" in it
    ]
    if "grpc_mtls" not in rounds[0]:
        notes.append("grpc_mtls: not installed: pip install grpcio")
    if "rpc_native" not in rounds[0]:
        notes.append("rpc_native: not installed: pip install magik-proto[native]")
    return {"name": "mesh", "ratios": ratios(rounds), "figures": {**figures(rounds), "notes": notes}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=2000, help="round trips of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(json.dumps(report([one_round(options.count) for _ in range(options.rounds)])))


if __name__ == "__main__":
    main()
