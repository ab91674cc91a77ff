"""WebSocket requests: ``pods/<name>/exec`` and its kin. The route table of what is no plain request and answer."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qs

import structlog

from .calls import Call, Target
from .context import Api
from .errors import ApiError
from .execs import serve_attach, serve_exec
from .forwards import TUNNEL, serve_forward
from .guard import Application
from .targets import find_target
from .websocket import ClientGone, Receive, Scope, Send, WebSocket, refuse

#: Serves an accepted socket under the subprotocol that was agreed on.
Serve = Callable[[Api, Call, Target, WebSocket, str], Awaitable[None]]

CHANNELS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")

#: For a subresource of pods: the subprotocols, best first, and who speaks them.
ROUTES: Final[Mapping[str, tuple[Sequence[str], Serve]]] = MappingProxyType(
    {
        "attach": (CHANNELS, serve_attach),
        "exec": (CHANNELS, serve_exec),
        "portforward": ((TUNNEL, CHANNELS[1]), serve_forward),
    }
)

_log = structlog.get_logger("kubeapi")


def with_streams(api: Api, app: Application) -> Application:
    """``app`` for plain requests, and the streams of ``api`` for WebSockets."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await serve_websocket(api, scope, receive, send)
        else:
            await app(scope, receive, send)

    return route


async def serve_websocket(api: Api, scope: Scope, receive: Receive, send: Send) -> None:
    """One WebSocket from its handshake to its end."""
    try:
        call, target, serve, subprotocol = _plan(api, scope)
    except ApiError as error:
        await refuse(send, error)
        return
    socket = WebSocket(receive, send)
    try:
        await socket.accept(subprotocol or None)
        await serve(api, call, target, socket, subprotocol)
        await socket.close()
    except* ClientGone:
        _log.debug("stream.client-gone", path=scope["path"])
    except* Exception as error:
        # The server drops the connection for it, and says nothing.
        _log.error("stream.failed", path=scope["path"], exc_info=error)
        raise


def _plan(api: Api, scope: Scope) -> tuple[Call, Target, Serve, str]:
    match [part for part in scope["path"].split("/") if part]:
        case ["api", version, *rest] if rest:
            target = find_target(api.kinds, "", version, rest)
        case _:
            raise ApiError.no_such_path()
    spoken, serve = ROUTES.get(target.subresource or "", ((), None))
    if target.kind.kind != "Pod" or serve is None:
        raise ApiError.bad_request("this path is no stream: ask for it without an upgrade to WebSockets")
    offered = scope.get("subprotocols") or ()
    chosen = next((name for name in spoken if name in offered), None)
    if chosen is None and target.subresource == "portforward" and not offered:
        chosen = ""  # some clients of the channels' form name none
    if chosen is None:
        raise ApiError.bad_request(
            f"pods/{target.subresource} speaks the subprotocols {', '.join(spoken)}; offered: {', '.join(offered) or 'none'}"
        )
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    words = {name: tuple(values) for name, values in query.items()}
    return (
        Call("GET", {name: values[0] for name, values in words.items()}, words=words),
        target,
        serve,
        chosen,
    )
