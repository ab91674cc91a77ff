"""Checks against real servers on the loopback: answers, redirects, silence, nonsense, and gRPC's own library."""

import concurrent.futures
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import grpc
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from trio_quic import make_certificate
from workplane.checks import Result, carry_out
from workplane.probes import Check, Exec, Grpc, HttpGet, Probe, TcpSocket

Answer = Callable[[str], bytes]


async def no_commands(command: tuple[str, ...], timeout: float) -> Result:
    raise AssertionError("no command was to be run")


async def ask(check: Check, timeout: float = 5.0) -> Result:
    return await carry_out(Probe(check=check, timeout=timeout), no_commands)


@asynccontextmanager
async def serving(
    answer: Answer, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[str]]]:
    """A server that answers each request's head; its port, and the heads that it got."""
    heads: list[str] = []

    async def serve(stream: trio.abc.Stream) -> None:
        if context is not None:
            stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(4096)
        heads.append(head.decode(errors="replace"))
        with suppress(trio.BrokenResourceError):  # who asked may have had enough
            await stream.send_all(answer(head.decode(errors="replace").split()[1]))
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1], heads
        nursery.cancel_scope.cancel()


def status(code: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code} X", "Content-Length: 0", *headers, "", ""]).encode()


@pytest.mark.parametrize(
    ("code", "well"), [(200, True), (204, True), (302, True), (399, True), (400, False), (503, False)]
)
async def test_2xx_and_3xx_are_well(code: int, well: bool) -> None:
    async with serving(lambda path: status(code)) as (port, heads):
        result = await ask(HttpGet(port, "/ready?x=1", headers=(("X-Asked", "yes"), ("Host", "app"))))
        assert (result.well, result.message) == (well, f"HTTP status {code}")
        assert heads[0].startswith("GET /ready?x=1 HTTP/1.1\r\n")
        assert "X-Asked: yes" in heads[0] and "Host: app" in heads[0] and heads[0].count("Host:") == 1


async def test_redirects_are_followed_within_the_pod_only() -> None:
    def answer(path: str) -> bytes:
        away = {"/out": "http://192.0.2.1/", "/in": "/bad", "/name": "http://localhost.example.org/"}
        return status(302, f"Location: {away[path]}") if path in away else status(500)

    async with serving(answer) as (port, heads):
        assert (await ask(HttpGet(port, "/in"))).message == "HTTP status 500"
        for path in ("/out", "/name"):
            assert await ask(HttpGet(port, path)) == Result(True, "HTTP status 302")
    assert [head.split()[1] for head in heads] == ["/in", "/bad", "/out", "/name"]


async def test_a_circle_of_redirects_ends() -> None:
    async with serving(lambda path: status(301, "Location: /again")) as (port, heads):
        assert not (await ask(HttpGet(port))).well
        assert len(heads) == 11


async def test_tls_is_not_verified(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate = make_certificate(key, common_name="app")
    (tmp_path / "key").write_bytes(key.private_bytes(*form))
    (tmp_path / "certificate").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    async with serving(lambda path: status(200), context) as (port, _):
        assert (await ask(HttpGet(port, tls=True))).well


@pytest.mark.parametrize("nonsense", [b"SSH-2.0-x\r\n\r\n", b"", b"HTTP/1.1 20", b"\0" * 100])
async def test_nonsense_is_a_failure(nonsense: bytes) -> None:
    async with serving(lambda path: nonsense) as (port, _):
        assert not (await ask(HttpGet(port))).well


async def rude(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"220 no TLS here\r\n")
    await stream.aclose()


@pytest.mark.parametrize("make", [partial(HttpGet, tls=True), Grpc])
async def test_another_protocol_is_a_failure(make: Callable[[int], Check]) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, rude, 0, host="127.0.0.1"))
        result = await ask(make(listeners[0].socket.getsockname()[1]))
        assert not result.well and "no answer within" not in result.message
        nursery.cancel_scope.cancel()


async def silent(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("make", [HttpGet, Grpc])
async def test_silence_ends_with_the_time_out(make: Callable[[int], Check], autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        assert (await ask(make(port), timeout=3)).message == "no answer within 3 s"
        nursery.cancel_scope.cancel()


async def test_a_port_is_open_or_not() -> None:
    async with serving(lambda path: b"") as (port, _):
        assert (await ask(TcpSocket(port))).well
    for check in (TcpSocket(port), HttpGet(port), Grpc(port)):
        assert not (await ask(check)).well


async def test_a_command_is_run_by_the_machine() -> None:
    async def execute(command: tuple[str, ...], timeout: float) -> Result:
        return Result(command == ("true",) and timeout == 2, "exit code 1")

    probe = Probe(check=Exec(("true",)), timeout=2)
    assert (await carry_out(probe, execute)).well


# -- gRPC, as its own library serves it


class Health(grpc.GenericRpcHandler):
    """The health service: "" and "up" are SERVING, "down" is not, others are not known."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(self._check)

    def _check(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        known = {b"": b"\x08\x01", b"\x0a\x02up": b"\x08\x01", b"\x0a\x04down": b"\x08\x02"}
        if request not in known:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return known[request]


@pytest.fixture
def health() -> Iterator[int]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((Health(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("service", "well", "told"),
    [("", True, ""), ("up", True, ""), ("down", False, "not SERVING"), ("x" * 200, False, "gRPC status 5")],
)
async def test_grpc_is_well_if_it_is_serving(health: int, service: str, well: bool, told: str) -> None:
    result = await ask(Grpc(health, service))
    assert result.well == well and (well or told in result.message)


async def test_a_server_without_the_health_service_is_not_well() -> None:
    async with serving(lambda path: status(200)) as (port, _):
        assert not (await ask(Grpc(port), timeout=2)).well
