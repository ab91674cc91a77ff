"""Lifecycle hooks: what a container's spec has done right after its start, and before its end."""

import socket
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import trio

from machineplane.runtime.errors import HelperError
from machineplane.runtime.insidesocket import socket_inside
from machineplane.runtime.live import LivePod
from machineplane.runtime.stdio import make_stdio

HTTP_TIMEOUT_S = 30.0
"""How long a hook's server may take to connect and answer; Kubernetes has no other bound than the pod's own, a guess."""

_MAX_HEAD = 64 * 1024
_SCHEMES = ("HTTP", "HTTPS")


def hook_of(container: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A container's ``postStart`` or ``preStop``, if it has one."""
    return (container.get("lifecycle") or {}).get(name) or None


async def run_hook(
    live: LivePod, container: Mapping[str, Any], container_id: str, hook: Mapping[str, Any]
) -> str:
    """Do what a hook says; why it failed, empty if it did not. Cancelling it ends the process of an ``exec``."""
    if hook.get("sleep") is not None:
        await trio.sleep(float(hook["sleep"].get("seconds") or 0))
        return ""
    try:
        if hook.get("exec") is not None:
            return await _execute(live, container_id, [str(word) for word in hook["exec"]["command"]])
        with trio.fail_after(HTTP_TIMEOUT_S):
            return await _get(live, container, hook["httpGet"])
    except trio.TooSlowError:
        return f"no answer within {HTTP_TIMEOUT_S:.0f} s"
    except (HelperError, OSError, trio.BrokenResourceError, ValueError) as error:
        return str(error)


async def _execute(live: LivePod, container_id: str, command: list[str]) -> str:
    stdio = make_stdio(frozenset())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(stdio.aclose)
        number = await stack.enter_async_context(live.link.execute(container_id, command, stdio.given))
        stdio.let_go()
        code = await live.link.wait_executed(number)
    return f"command {' '.join(command)} exited with {code}" if code else ""


def _port(container: Mapping[str, Any], wanted: object) -> int:
    for port in container.get("ports") or ():
        if port.get("name") == wanted:
            return int(port["containerPort"])
    try:
        return int(str(wanted))
    except ValueError as error:
        raise ValueError(f"the container has no port {wanted!r}") from error


async def _get(live: LivePod, container: Mapping[str, Any], get: Mapping[str, Any]) -> str:
    """A GET by a socket of the pod's own network; anything from 200 to 399 is good, as Kubernetes has it."""
    host, port = str(get.get("host") or live.book.status.ip), _port(container, get.get("port"))
    sock = await trio.to_thread.run_sync(socket_inside, live.book.record.infra_pid, socket.AF_INET)
    with sock:
        await sock.connect((host, port))
        stream: trio.abc.Stream = trio.SocketStream(sock)
        if str(get.get("scheme") or "HTTP").upper() == "HTTPS":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = (
                False,
                ssl.CERT_NONE,
            )  # as Kubernetes: pods sign themselves
            stream = trio.SSLStream(stream, context)
        await stream.send_all(_request(get, host, port))
        head = b""
        while b"\r\n" not in head and len(head) < _MAX_HEAD and (chunk := await stream.receive_some(4096)):
            head += chunk
    status = head.split(b"\r\n")[0].split(b" ")
    code = int(status[1]) if len(status) > 1 and status[1].isdigit() else 0
    return (
        ""
        if 200 <= code < 400
        else f"GET {get.get('path') or '/'} at {host}:{port} was answered by {code or 'nothing'}"
    )


def _request(get: Mapping[str, Any], host: str, port: int) -> bytes:
    headers = {"Host": f"{host}:{port}", "User-Agent": "magik", "Connection": "close"}
    headers |= {str(h.get("name")): str(h.get("value", "")) for h in get.get("httpHeaders") or ()}
    lines = [
        f"GET {get.get('path') or '/'} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if any(char in line for line in lines for char in "\r\n"):
        raise ValueError("the hook's path or headers hold a line break")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()
