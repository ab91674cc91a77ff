"""The app's own door to its agent: peers, calls, leadership, health and metrics, on the pod's loopback and a Unix socket.

Who reaches the pod's loopback is in the pod, so nothing is asked of the caller; nothing here reaches the machine.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import trio
from attrs import frozen

from magik_proto.records import ServiceRecord
from workplane.catalog import Catalog
from workplane.leaderview import LeaderBoard, token_text
from workplane.localhttp import Answer, Asked, Refused, serve
from workplane.metrics import CONTENT_TYPE
from workplane.rpc import TIMEOUT_S, Rpc, Target
from workplane.rpcwire import CallFailed, RpcAnswer, RpcRequest

HOST: Final = "127.0.0.1"
PORT: Final = 4700
"""A guess: free in what pods usually run."""
WATCH_S: Final = 30.0
"""The longest that a watch waits: as long as the machine's own feed."""
_WORKLOAD = re.compile(r"[-a-z0-9]{1,63}/[A-Za-z0-9]{1,63}/[-a-z0-9.]{1,253}")
_STATUS: Final = {
    "denied": 403,
    "no-replica": 503,
    "unreachable": 502,
    "leader-unreachable": 502,
    "app-unreachable": 502,
    "not-leader": 503,
    "leader-unknown": 503,
    "no-app": 501,
    "busy": 503,
    "deadline": 504,
    "request": 400,
    "too-large": 413,
}


class HasWorkloads(Protocol):
    """What is asked of a Service here: whose pods it selects, by the workloads' ids."""

    @property
    def workloads(self) -> tuple[str, ...]: ...


@frozen(kw_only=True)
class LocalApi:
    """``health`` is what `/v1/health` says (200 where its ``ready`` is true, else 503), ``metrics`` the exposition text.

    ``board`` is None for a workload that has no leader. ``service`` raises OSError where the machine does not tell.
    """

    rpc: Rpc
    catalog: Catalog
    board: LeaderBoard | None
    namespace: str
    wall: Callable[[], int]
    follow: Callable[[str], Awaitable[None]]
    service: Callable[[str, str], Awaitable[HasWorkloads | None]]
    health: Callable[[], dict[str, Any]]
    metrics: Callable[[], str]

    async def handle(self, asked: Asked) -> Answer:
        """Answer one request. Raises Refused."""
        routes: dict[str, tuple[str, Callable[[Asked], Awaitable[Answer]]]] = {
            "/v1/peers": ("GET", self._peers),
            "/v1/call": ("POST", self._call),
            "/v1/leader": ("GET", self._leader),
            "/v1/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
        }
        if asked.path not in routes:
            raise Refused(404, f"there is no {asked.path}: {', '.join(routes)}")
        method, answer = routes[asked.path]
        if asked.method != method:
            raise Refused(405, f"{asked.path} takes {method}")
        return await answer(asked)

    async def _health(self, asked: Asked) -> Answer:
        said = self.health()
        return Answer.of(said, 200 if said.get("ready") else 503)

    async def _metrics(self, asked: Asked) -> Answer:
        return Answer(200, self.metrics().encode(), CONTENT_TYPE)

    async def _leader(self, asked: Asked) -> Answer:
        if self.board is None:
            raise Refused(404, f"{self.rpc.own_workload} is no StatefulSet: it has no leader")
        if "watch" in asked.query:
            seen = _whole(asked.query, "watch", 0, 1 << 63)
            with trio.move_on_after(_whole(asked.query, "timeout", int(WATCH_S), int(WATCH_S))):
                await self.board.newer(seen)
        return Answer.of({**self.board.view.to_json(), "version": self.board.version})

    async def _peers(self, asked: Asked) -> Answer:
        workload = asked.query.get("workload") or self.rpc.own_workload
        if not _WORKLOAD.fullmatch(workload):
            raise Refused(400, f"workload {workload[:100]!r}: expected NAMESPACE/KIND/NAME")
        if not self.catalog.visibility.admits(workload):
            raise Refused(403, f"{workload} is not among the workloads that this pod may see")
        await self.follow(workload)
        peers = [_peer(record) for record in self.catalog.replicas(workload, self.wall())]
        return Answer.of({"workload": workload, "peers": peers})

    async def _call(self, asked: Asked) -> Answer:
        wish = asked.json()
        try:
            request, timeout = _request(wish), _timeout(wish)
            answer = await self.rpc.call(await self._target(wish), request, timeout)
        except CallFailed as error:
            raise Refused(_STATUS.get(error.code, 502), error.message, error.code) from error
        return Answer.of({"id": request.id, **_said(answer)})

    async def _target(self, wish: dict[str, Any]) -> Target:
        workload, service = _text(wish, "workload"), _text(wish, "service")
        pod, ordinal = _text(wish, "pod"), wish.get("ordinal")
        if (workload is None) == (service is None):
            raise Refused(400, "name a workload or a service, and not both")
        if ordinal is not None and type(ordinal) is not int:
            raise Refused(400, "ordinal: expected a whole number")
        if workload is not None and not _WORKLOAD.fullmatch(workload):
            raise Refused(400, f"workload {workload[:100]!r}: expected NAMESPACE/KIND/NAME")
        workloads = (workload,) if workload else await self._workloads(str(service), wish)
        return Target(workloads=workloads, pod=pod, ordinal=ordinal)

    async def _workloads(self, service: str, wish: dict[str, Any]) -> tuple[str, ...]:
        namespace = _text(wish, "namespace") or self.namespace
        try:
            found = await self.service(namespace, service)
        except OSError as error:
            raise Refused(502, f"the machine does not tell about services: {error}") from error
        if found is None or not found.workloads:
            raise Refused(404, f"there is no service {namespace}/{service} that selects a workload's pods")
        return found.workloads


@asynccontextmanager
async def open_local_api(
    api: LocalApi, *, host: str = HOST, port: int = PORT, path: Path | None = None
) -> AsyncIterator[int]:
    """Serve while the context lasts; the port of the TCP listener. Raises OSError where it cannot listen."""
    listeners = await trio.open_tcp_listeners(port, host=host)
    try:
        if path is not None:
            listeners.append(await _unix_listener(path))
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: serve(listeners, api.handle, task_status=task_status))
            yield listeners[0].socket.getsockname()[1]
            nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
        if path is not None:
            _remove(path)


async def _unix_listener(path: Path) -> trio.SocketListener:
    """A socket for all users of the pod: its containers share the folder and nothing else reaches it."""
    _remove(path)  # of an agent that was killed
    socket = trio.socket.socket(trio.socket.AF_UNIX)
    await socket.bind(str(path))
    os.chmod(path, 0o666)
    socket.listen()
    return trio.SocketListener(socket)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


def _peer(record: ServiceRecord) -> dict[str, Any]:
    return {
        "pod": record.pod_name,
        "ordinal": record.ordinal,
        "peer": str(record.peer_id),
        "ready": record.ready,
        "healthy": record.healthy,
        "leader": record.caps.get("leader") is True,
        "caps": dict(record.caps),
        "ports": dict(record.ports),
        "version": record.version,
        "ts": record.ts,
    }


def _said(answer: RpcAnswer) -> dict[str, Any]:
    """The app's answer, and whether it says that all went well."""
    well = 200 <= answer.status < 300
    said: dict[str, Any] = {"ok": well, "pod": answer.pod, "status": answer.status, "type": answer.type}
    said["error"] = None if well else {"code": "app", "message": f"the app answered HTTP {answer.status}"}
    said["token"] = None if answer.token is None else token_text(answer.token)
    with suppress(ValueError, RecursionError):
        if answer.type.partition(";")[0].strip().lower() == "application/json":
            return {**said, "body": json.loads(answer.body)}
    return {**said, "body_base64": base64.b64encode(answer.body).decode()}


def _request(wish: dict[str, Any]) -> RpcRequest:
    if "body" in wish and "body_base64" in wish:
        raise Refused(400, "give a body or a body_base64, and not both")
    leader_only = wish.get("leader_only", False)
    if type(leader_only) is not bool:
        raise Refused(400, "leader_only: expected true or false")
    kind = "application/octet-stream" if "body_base64" in wish else "application/json"
    return RpcRequest(
        method=_text(wish, "method") or "",
        body=_body(wish),
        type=_text(wish, "type") or kind,
        leader_only=leader_only,
        id=_text(wish, "id") or secrets.token_hex(8),
    )


def _body(wish: dict[str, Any]) -> bytes:
    if "body_base64" not in wish:
        return json.dumps(wish["body"]).encode() if "body" in wish else b""
    try:
        return base64.b64decode(_text(wish, "body_base64") or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"body_base64: {error}") from None


def _timeout(wish: dict[str, Any]) -> float:
    timeout = wish.get("timeout", TIMEOUT_S)
    if type(timeout) not in (int, float) or not 0 < timeout <= TIMEOUT_S:
        raise Refused(400, f"timeout: expected seconds, above 0 and at most {TIMEOUT_S:g}")
    return float(timeout)


def _text(wish: dict[str, Any], name: str) -> str | None:
    value = wish.get(name)
    if value is not None and not isinstance(value, str):
        raise Refused(400, f"{name}: expected a text")
    return value


def _whole(query: Any, name: str, default: int, most: int) -> int:
    text = query.get(name, "") or str(default)
    if not text.isascii() or not text.isdigit() or not 0 <= int(text[:20]) <= most:
        raise Refused(400, f"{name}: expected a whole number, at most {most}")
    return int(text)
