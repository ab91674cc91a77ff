"""``pods/<name>/exec`` and ``attach`` in the ``channel.k8s.io`` protocols: each message is a channel's number and its bytes.

The result is a ``Status`` on channel 3, then the socket closes. Version 5 differs from 4 in that it can end stdin.
"""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import trio

from machineplane import channels
from machineplane.channels import Session, SessionRefused

from .backend import AttachOptions, ExecOptions, Object
from .calls import Call, Target
from .context import Api
from .errors import ApiError, Cause
from .logs import chosen_container
from .websocket import ClientGone, WebSocket

V5: Final = "v5.channel.k8s.io"

SUCCESS: Final[dict[str, Any]] = {"metadata": {}, "status": "Success"}

Opened = Callable[[str], AbstractAsyncContextManager[Session]]


async def serve_exec(api: Api, call: Call, target: Target, socket: WebSocket, subprotocol: str) -> None:
    """Run a command. Whatever is wrong is said on the result's channel: the socket is accepted already."""

    def opened(container: str) -> AbstractAsyncContextManager[Session]:
        return api.backend.execute(str(target.namespace), str(target.name), container, exec_options(call))

    await serve_session(api, call, target, socket, subprotocol, opened)


async def serve_attach(api: Api, call: Call, target: Target, socket: WebSocket, subprotocol: str) -> None:
    """Show a container's output, and give it stdin. A terminal is not offered: no container here has one."""

    def opened(container: str) -> AbstractAsyncContextManager[Session]:
        return api.backend.attach(str(target.namespace), str(target.name), container, attach_options(call))

    await serve_session(api, call, target, socket, subprotocol, opened)


async def serve_session(
    api: Api, call: Call, target: Target, socket: WebSocket, subprotocol: str, opened: Opened
) -> None:
    """Join a socket and the session that ``opened`` gives for a container."""
    try:
        pod = await api.existing(target)
        container = chosen_container(pod, call.query.get("container") or None)
        _check_alive(pod)
        async with opened(container) as session:
            status = exit_status(await _relay(session, socket, subprotocol))
    except* (ApiError, SessionRefused) as group:
        status = _said(group)
    await socket.send(bytes([channels.RESULT]) + json.dumps(status).encode())


def _said(error: BaseException) -> dict[str, Any]:
    """The ``Status`` of the first error in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    found = error if isinstance(error, ApiError) else ApiError.internal(str(error))
    return found.status()


def attach_options(call: Call) -> AttachOptions:
    """From the query. Raises ApiError 400."""
    if call.flag("tty"):
        raise ApiError.bad_request("containers have no terminals in this version: attach without --tty (-t)")
    return AttachOptions(**_wanted(call))


def _wanted(call: Call) -> dict[str, bool]:
    flags = {name: call.flag(name) for name in ("stdin", "stdout", "stderr")}
    if not any(flags.values()):
        raise ApiError.bad_request("you must specify at least one of stdin, stdout, stderr")
    return flags


def exec_options(call: Call) -> ExecOptions:
    """From the query. Raises ApiError 400."""
    command = call.words.get("command", ())
    if not command or not command[0]:
        raise ApiError.bad_request("you must specify at least one command for the container")
    return ExecOptions(command, **_wanted(call), tty=call.flag("tty"))


def _check_alive(pod: Object) -> None:
    phase = (pod.get("status") or {}).get("phase")
    if phase in ("Succeeded", "Failed"):
        raise ApiError.bad_request(
            f"the containers of a completed pod cannot be entered; current phase is {phase}"
        )


def exit_status(code: int) -> dict[str, Any]:
    """How a command ended, as clients understand it."""
    if code == 0:
        return SUCCESS
    error = ApiError(
        500,
        "NonZeroExitCode",
        f"command terminated with non-zero exit code: {code}",
        causes=[Cause("ExitCode", str(code))],
    )
    return error.status()


async def _relay(session: Session, socket: WebSocket, subprotocol: str) -> int:
    """Both ways until the result; its exit code. Raises SessionRefused, ClientGone."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_inward, session, socket, subprotocol == V5, nursery.cancel_scope)
        while True:
            channel, payload = await session.receive()
            if channel == channels.RESULT:
                nursery.cancel_scope.cancel()
                return channels.parse_result(payload)
            await socket.send(bytes([channel]) + payload)
    raise ClientGone  # the other task has cancelled this one


async def _inward(session: Session, socket: WebSocket, can_close: bool, leaving: trio.CancelScope) -> None:
    """What the client sends; at its leaving all is cancelled."""
    try:
        while True:
            for channel, payload in client_frames(await socket.receive(), can_close=can_close):
                await session.send(channel, payload)
    except ClientGone:
        leaving.cancel()


def client_frames(message: bytes, *, can_close: bool) -> list[channels.Frame]:
    """A client's message as frames; what is not understood is left out, as Kubernetes does."""
    if len(message) < 2:
        return []  # empty messages only keep the connection alive
    channel, payload = message[0], message[1:]
    if channel == channels.STDIN:
        cuts = range(0, len(payload), channels.MAX_PAYLOAD)
        return [(channels.STDIN, payload[cut : cut + channels.MAX_PAYLOAD]) for cut in cuts]
    if channel == channels.RESIZE:
        return _resized(payload)
    if can_close and (channel, payload) == channels.END_OF_STDIN:
        return [channels.END_OF_STDIN]
    return []


def _resized(payload: bytes) -> list[channels.Frame]:
    try:
        size = json.loads(payload)
        return [channels.resize(int(size["Width"]), int(size["Height"]))]
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return []
