"""The listeners: plain HTTP on loopback, TLS with a token on the network; both by hypercorn under Trio."""

import errno
import socket
from pathlib import Path
from typing import Any, Final, cast

import trio
from attrs import frozen
from hypercorn.config import Config, Sockets
from hypercorn.trio.run import worker_serve
from hypercorn.utils import wrap_app

from .app import create_app
from .backend import Backend
from .context import Api
from .errors import PortTaken
from .guard import Application, Guard, check_loopback, check_token
from .streams import with_streams

BACKLOG: Final = 100
#: Seconds that an idle connection is kept; Go's clients keep theirs for 90.
KEEP_ALIVE: Final = 75.0
#: Seconds for a TLS handshake.
HANDSHAKE: Final = 10.0
#: Bytes of a WebSocket message; a longer one ends its connection. kubectl sends 32 KiB at most.
MAX_MESSAGE: Final = 2 * 1024 * 1024
_LOOPBACKS: Final = ("127.0.0.1", "::1")


@frozen
class ApiConfig:
    """Where and how to serve.

    ``http_port``: plain HTTP on loopback (0 = any free port, None = not at all). ``tls_host``, ``tls_port``:
    TLS with ``certificate`` and ``key`` (PEM files) for who knows ``token`` (``tls_port`` None = not at all).
    ``release`` is Magik's version, for ``/version``.
    """

    http_port: int | None
    tls_host: str = "0.0.0.0"
    tls_port: int | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str = ""
    release: str = "0"


@frozen
class ApiAddresses:
    """Where the API listens now: base URLs; the TLS one names the bound host."""

    http: str | None
    tls: str | None


async def serve_api(
    config: ApiConfig,
    backend: Backend,
    *,
    task_status: trio.TaskStatus[ApiAddresses] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. Raises PortTaken before it starts, if an address cannot be had.

    ``task_status`` gets the addresses when connections are accepted.
    """
    api = Api(backend, release=config.release)
    app = with_streams(api, cast(Application, create_app(api)))
    plain, secure = _open_plain(config), _open_secure(config)
    try:
        async with trio.open_nursery() as nursery:
            if plain:
                sockets = Sockets([], plain, [])
                await nursery.start(_serve, Guard(app, check_loopback), _hypercorn(), sockets)
            if secure:
                sockets = Sockets(secure, [], [])
                await nursery.start(
                    _serve, Guard(app, check_token(config.token)), _hypercorn(config), sockets
                )
            task_status.started(ApiAddresses(_url("http", plain), _url("https", secure)))
    finally:
        for sock in plain + secure:
            sock.close()


async def _serve(
    app: Guard, config: Config, sockets: Sockets, *, task_status: trio.TaskStatus[list[str]]
) -> None:
    wrapped = wrap_app(cast(Any, app), config.wsgi_max_body_size, "asgi")
    await worker_serve(wrapped, config, sockets=sockets, task_status=task_status)


def _hypercorn(tls: ApiConfig | None = None) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE
    config.websocket_max_message_size = MAX_MESSAGE
    config.ssl_handshake_timeout = HANDSHAKE
    # One request a connection at a time: watches and logs then have a connection each, and slow readers of
    # one cannot hold up another, which HTTP/2's shared flow control would allow.
    config.alpn_protocols = ["http/1.1"]
    if tls is not None:
        config.certfile, config.keyfile = str(tls.certificate), str(tls.key)
    return config


def _url(scheme: str, sockets: list[socket.socket]) -> str | None:
    if not sockets:
        return None
    host, port = sockets[0].getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _open_plain(config: ApiConfig) -> list[socket.socket]:
    if config.http_port is None:
        return []
    first = _listen(_LOOPBACKS[0], config.http_port, "--rest-api-port")
    sockets = [first]
    try:
        sockets.append(_listen(_LOOPBACKS[1], first.getsockname()[1], "--rest-api-port"))
    except PortTaken as error:
        # No IPv6 loopback here is fine; somebody else on its port, when the port was asked for, is not.
        if config.http_port and error.errno == errno.EADDRINUSE:
            first.close()
            raise
    return sockets


def _open_secure(config: ApiConfig) -> list[socket.socket]:
    if config.tls_port is None:
        return []
    if not (config.certificate and config.key and config.token):
        raise ValueError("the TLS listener needs a certificate, a key and a token")
    return [_listen(config.tls_host, config.tls_port, "--rest-api-tls-port")]


def _listen(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _taken(option, host, port, error) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _taken(option, host, port, error) from error
    return sock


_WHY: Final[dict[int, str]] = {
    errno.EADDRINUSE: "another program listens there; stop it or choose another port",
    errno.EACCES: "ports under 1024 need privileges; choose a higher one",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


def _taken(option: str, host: str, port: int, error: OSError) -> PortTaken:
    why = _WHY.get(error.errno or 0, error.strerror or str(error))
    return PortTaken(f"{option}: cannot listen on {host} port {port}: {why}", error.errno or 0)
