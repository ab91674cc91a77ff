"""An app calls another through two agents: what that adds, against a direct connection and against haproxy at both ends.

    python workplane/benchmarks/proxy.py [--seconds 3] [--rounds 3] [--profile out|in]

app → agent → QUIC → agent → app on one computer's loopback, every part a process of its own; haproxy, where it is
installed, is app → haproxy → mutual TLS over TCP → haproxy → app, one thread each. Prints one JSON object: microseconds of a
200-byte round trip on a connection that is kept, and of one with a connection of its own; MB/s of one upload in 64 KiB
pieces; and their ratios. All of a round run one after the other; ratios are medians of the rounds. ``--profile`` has one
agent's profile (``in``: the one at the serving app) written to stderr.
"""

import argparse
import cProfile
import json
import pstats
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import structlog
import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "traffic"))
from traffic_support import Machine, a_port, identity_of, introduce, pod, unique, wall

from magik_mesh.testing import peers_of, until
from magik_proto.identity import BootstrapPeer
from magik_proto.records import ServiceRecord

WEB = "default/Deployment/web"
REQUEST = b"e" * 200
PIECE = 64 << 10
Place = tuple[str, int]


# -- the serving app


def serve_app() -> None:
    """Say the port, then: a connection that begins with ``e`` is echoed, one with ``s`` is read to its end and counted."""
    server = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(server.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=_serve_one, args=(server.accept()[0],), daemon=True).start()


def _serve_one(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        data = connection.recv(PIECE)
        if data[:1] == b"s":
            count = len(data)
            while data := connection.recv(PIECE * 4):
                count += len(data)
            connection.sendall(b"%d" % count)
            return
        while data:
            connection.sendall(data)
            data = connection.recv(PIECE)


# -- the agents


async def agent_in(app: int, name: str, port: int, peer: str, at: int) -> None:
    """The agent of the serving pod; it knows the other one."""
    machine = Machine()
    machine.serve(name, port, workloads=(WEB,))
    client = (BootstrapPeer(type(identity_of(1).peer_id).parse(peer), "127.0.0.1", at),)
    async with pod(machine, 2, "web", bootstrap=client, ports={"app": app}):
        await trio.sleep_forever()


async def agent_out(name: str, port: int) -> None:
    """The agent of the calling pod. Says its peer id and UDP port, and once it is ready its service's address."""
    machine = Machine()
    machine.serve(name, port, workloads=(WEB,))
    async with pod(machine, 1, "client") as made:
        print(made.node.id, made.node.address[1], flush=True)
        await until(lambda: bool(peers_of(made.node)), 60)
        record = ServiceRecord(
            workload_id=WEB,
            namespace="default",
            workload_kind="Deployment",
            workload_name="web",
            peer_id=identity_of(2).peer_id,
            pod_name="web-2",
            version=1,
            ts=wall(),
            ready=True,
            healthy=True,
            nonce=1,
        )
        made.catalog.life_ms = 1 << 40
        made.catalog.take([record], wall())
        introduce(made)
        (address,) = await made.resolve(f"{name}.default")
        print(address, flush=True)
        await trio.sleep_forever()


def run_agent(main: Callable[..., Any], profiled: bool, *args: Any) -> None:
    """Until SIGTERM."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(40),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    profile = cProfile.Profile()
    try:
        if profiled:
            profile.enable()
        trio.run(_until_told, main, args)
    finally:
        if profiled:
            profile.disable()
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)


async def _until_told(main: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(main, *args)
            async for _ in told:
                nursery.cancel_scope.cancel()
                return


# -- processes


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process, ended with the context."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def line(process: subprocess.Popen[str]) -> list[str]:
    """What it says next."""
    assert process.stdout is not None
    return process.stdout.readline().split()


@contextmanager
def agents(app: int, profiled: str) -> Iterator[Place]:
    """Both agents; where the calling app connects."""
    name, port = unique("web"), str(a_port())
    me = (sys.executable, __file__, "--profile", profiled)
    with started(*me, "--be", "out", name, port) as out:
        peer, at = line(out)
        with started(*me, "--be", "in", str(app), name, port, peer, at):
            (address,) = line(out)
            yield address, int(port)


HAPROXY = """
global
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen proxy
    bind 127.0.0.1:{listen} {bind}
    server next 127.0.0.1:{to} {server}
"""


@contextmanager
def haproxies(app: int) -> Iterator[Place]:
    """Two of them, with certificates of each other's."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pem = folder / "both.pem"
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=bench -days 2"
        subprocess.run(
            [*make.split(), "-keyout", str(folder / "key"), "-out", str(folder / "cert")],
            check=True,
            capture_output=True,
        )
        pem.write_text((folder / "key").read_text() + (folder / "cert").read_text())
        tls = f"ssl crt {pem} ca-file {folder / 'cert'} verify required"
        outer, inner = a_port(), a_port()
        for number, (listen, to, bind, server) in enumerate(((inner, app, tls, ""), (outer, inner, "", tls))):
            config = folder / f"{number}.cfg"
            config.write_text(HAPROXY.format(listen=listen, to=to, bind=bind, server=server))
            stack.enter_context(started("haproxy", "-f", str(config)))
        _await_listener(("127.0.0.1", outer))
        yield "127.0.0.1", outer


def _await_listener(place: Place) -> None:
    for _ in range(100):
        try:
            round_trip(place)
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing answers at {place}")


# -- what is measured


def connect(place: Place) -> socket.socket:
    """A connection of the calling app."""
    connection = socket.create_connection(place, timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ask(connection: socket.socket) -> None:
    """One round trip."""
    connection.sendall(REQUEST)
    left = len(REQUEST)
    while left:
        data = connection.recv(left)
        if not data:
            raise ConnectionResetError("no answer")
        left -= len(data)


def round_trip(place: Place) -> None:
    """With a connection of its own."""
    with connect(place) as connection:
        ask(connection)


def microseconds(act: Callable[[], None], seconds: float) -> dict[str, float]:
    """p50 and p99 of doing something again and again."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        act()
        times.append((time.perf_counter() - began) * 1e6)
    times.sort()
    return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


def megabytes_per_second(place: Place, seconds: float) -> float:
    """Of an upload that the serving app has counted."""
    piece, sent = b"s" * PIECE, 0
    with connect(place) as connection:
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            connection.sendall(piece)
            sent += PIECE
        connection.shutdown(socket.SHUT_WR)
        if int(connection.recv(100)) != sent:
            raise SystemExit("bytes were lost")
        return sent / 1e6 / (time.perf_counter() - began)


def measure(place: Place, seconds: float) -> dict[str, float]:
    """All of it, at one place."""
    with connect(place) as connection:
        kept = microseconds(lambda: ask(connection), seconds)
    fresh = microseconds(lambda: round_trip(place), seconds)
    return {
        "kept_p50_us": kept["p50"],
        "kept_p99_us": kept["p99"],
        "fresh_p50_us": fresh["p50"],
        "fresh_p99_us": fresh["p99"],
        "upload_MB_s": megabytes_per_second(place, seconds),
    }


def compare(seconds: float, rounds: int, profiled: str) -> dict[str, Any]:
    """Rounds of all; medians, and ratios of the agents to the others."""
    with ExitStack() as stack:
        (port,) = line(stack.enter_context(started(sys.executable, __file__, "--be", "app")))
        places = {
            "direct": ("127.0.0.1", int(port)),
            "agents": stack.enter_context(agents(int(port), profiled)),
        }
        if shutil.which("haproxy"):
            places["haproxy"] = stack.enter_context(haproxies(int(port)))
        for place in places.values():
            round_trip(place)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in places}
        for _ in range(rounds):
            for name, place in places.items():
                found[name].append(measure(place, seconds))
    others = [name for name in places if name != "agents"]
    return {
        "benchmark": "proxy",
        "seconds": seconds,
        "rounds": rounds,
        **{name: _medians(results) for name, results in found.items()},
        **{f"agents/{other}": _ratios(found["agents"], found[other]) for other in others},
    }


def _medians(results: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(r[key] for r in results), 1) for key in results[0]}


def _ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    pairs = list(zip(ours, theirs, strict=True))
    return {key: round(statistics.median(a[key] / b[key] for a, b in pairs), 3) for key in ours[0]}


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="")
    parser.add_argument("--be", nargs="+", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    match options.be:
        case ["app"]:
            serve_app()
        case ["out", name, port]:
            run_agent(agent_out, options.profile == "out", name, int(port))
        case ["in", app, name, port, peer, at]:
            run_agent(agent_in, options.profile == "in", int(app), name, int(port), peer, int(at))
        case _:
            print(json.dumps(compare(options.seconds, options.rounds, options.profile)))


if __name__ == "__main__":
    main()
