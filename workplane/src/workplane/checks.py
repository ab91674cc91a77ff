"""Carrying out one check of a probe against the own pod: HTTP, a TCP connection, or gRPC's health service.

Protocols are those of the libraries h11 and h2, which do no I/O; the I/O is Trio's, to 127.0.0.1 alone. Whatever the app
answers, or does not, is a result; nothing it sends is kept but the first bytes.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urljoin, urlsplit

import h11
import trio
from attrs import evolve, frozen

from workplane.probes import LOOPBACK, Check, Exec, Grpc, HttpGet, Probe, TcpSocket

HOST: Final = "127.0.0.1"
MAX_REDIRECTS: Final = 10
"""As the kubelet's HTTP client; at more the check has failed."""
READ_BYTES: Final = 16_384


@frozen
class Result:
    """What a check came to; `message` says why not."""

    well: bool
    message: str = ""


Execute = Callable[[tuple[str, ...], float], Awaitable[Result]]
"""Runs a command in the container, in as many seconds at most."""


async def carry_out(probe: Probe, execute: Execute) -> Result:
    """One check within the probe's time-out. Never raises for what the app does."""
    with trio.move_on_after(probe.timeout):
        try:
            return await _check(probe.check, probe.timeout, execute)
        except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
            return Result(False, str(error))
        except h11.RemoteProtocolError as error:
            return Result(False, f"malformed answer: {error}")
    return Result(False, f"no answer within {probe.timeout:g} s")


async def _check(check: Check, timeout: float, execute: Execute) -> Result:
    match check:
        case HttpGet():
            return await _http(check)
        case TcpSocket(port):
            await (await trio.open_tcp_stream(HOST, port)).aclose()
            return Result(True)
        case Grpc(port, service):
            # Few pods have such probes, and h2 takes a megabyte.
            from workplane.grpc import ask_health

            return Result(*await ask_health(port, service))
        case Exec(command):
            return await execute(command, timeout)


# -- HTTP


async def _http(check: HttpGet) -> Result:
    """Redirects are followed on the pod's loopback; one that leads elsewhere is an answer, as for the kubelet."""
    for _ in range(MAX_REDIRECTS + 1):
        status, location = await _get(check)
        there = _inside(check, location) if 300 <= status < 400 and location else None
        if there is None:
            return Result(200 <= status < 400, f"HTTP status {status}")
        check = there
    return Result(False, f"more than {MAX_REDIRECTS} redirects")


def _inside(check: HttpGet, location: str) -> HttpGet | None:
    """Where a redirect leads within the pod; None where it leads out of it."""
    scheme = "https" if check.tls else "http"
    try:
        target = urlsplit(urljoin(f"{scheme}://{HOST}:{check.port}{check.path}", location))
        port = target.port or (443 if target.scheme == "https" else 80)
    except ValueError:
        return None
    if target.scheme not in ("http", "https") or (target.hostname or "") not in LOOPBACK:
        return None
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    return evolve(check, port=port, path=path, tls=target.scheme == "https")


async def _get(check: HttpGet) -> tuple[int, str]:
    """Status and Location of an answer; its body is not read."""
    stream: trio.abc.Stream = await trio.open_tcp_stream(HOST, check.port)
    if check.tls:
        stream = trio.SSLStream(stream, _unverified(), server_hostname=HOST, https_compatible=True)
    async with stream:
        connection = h11.Connection(h11.CLIENT)
        for event in (_request(check), h11.EndOfMessage()):
            await stream.send_all(connection.send(event) or b"")
        while True:
            found = connection.next_event()
            if isinstance(found, h11.Response):
                location = dict(found.headers).get(b"location", b"")
                return found.status_code, location.decode("ascii", errors="replace")
            if found is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(READ_BYTES)))


def _request(check: HttpGet) -> h11.Request:
    own = {name.lower() for name, _ in check.headers}
    common = (("Host", f"{HOST}:{check.port}"), ("User-Agent", "magik-probe/1"), ("Accept", "*/*"))
    headers = [
        *check.headers,
        *(pair for pair in common if pair[0].lower() not in own),
        ("Connection", "close"),
    ]
    return h11.Request(method="GET", target=check.path, headers=headers)


def _unverified() -> ssl.SSLContext:
    """Probes verify no certificate, as the kubelet's do: the app is asked whether it answers, not who it is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
