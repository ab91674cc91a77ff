"""A machine as its agents see it: the API of workplane-spec on Unix sockets, in the test's own process.

It signs real passes and keeps what agents tell it; tests say which containers run, and what commands come to.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import h11
import trio
from attrs import define, field

from magik_proto import signing
from magik_proto.identity import Identity, PeerId
from magik_proto.invites import RootKey
from magik_proto.messages import Award, ResourceId
from magik_proto.passes import MAX_PASS_LIFE_MS, issue_pass
from magik_proto.wire import encode_message

ROOT, OWNER, MACHINE = RootKey.generate(), Identity.generate(), Identity.generate()
UID = UUID(int=7 << 64)
WEB = ResourceId("default", "Deployment", "web")


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def award_of(resource: ResourceId, uid: UUID = UID, machine: Identity = MACHINE, **changes: Any) -> bytes:
    made = Award(
        tender_id=UUID(int=3 << 64),
        owner_identity=OWNER.peer_id,
        owner_pubkey=OWNER.peer_id.raw,
        winner=machine.peer_id,
        resource=resource,
        uid=uid,
        generation=1,
        replicas=changes.pop("replicas", 9),
        ordinals=changes.pop("ordinals", ()),
        manifest_digest=bytes(32),
        sealed_digest=bytes(32),
        timestamp=changes.pop("now"),
        nonce=1,
    )
    return encode_message(signing.sign(made, OWNER))


def pass_of(key: PeerId, name: str, resource: ResourceId = WEB, **changes: Any) -> bytes:
    """A pass as an honest machine would sign it."""
    root, life_ms = changes.pop("root", ROOT), changes.pop("life_ms", MAX_PASS_LIFE_MS)
    now = changes.pop("now", wall_ms())
    ordinal = int(name.rpartition("-")[2]) if resource.kind == "StatefulSet" else None
    if ordinal is not None:
        changes.setdefault("ordinals", (ordinal,))
        changes.setdefault("replicas", 1)
    return issue_pass(
        MACHINE,
        award_of(resource, now=now, **changes),
        root.invite(now).accept(OWNER, now).encode(),
        pod=key,
        pod_uid=UUID(int=hash(name) % (1 << 100)),
        pod_name=name,
        ordinal=ordinal,
        now_ms=now,
        life_ms=life_ms,
    )


@define(eq=False)
class PodApi:
    """The machine's side of one pod's socket."""

    name: str
    folder: Path
    containers: list[dict[str, Any]]
    resource: ResourceId = WEB
    annotations: dict[str, str] = field(factory=dict)
    replicas: int = 2
    token: str = "a token of this pod"
    state: dict[str, Any] = field(factory=dict)
    key: PeerId | None = None
    life_ms: int = MAX_PASS_LIFE_MS
    zone: str | None = None
    services: dict[str, dict[str, Any]] = field(factory=dict)
    statuses: list[dict[str, Any]] = field(factory=list)
    doors: list[bool] = field(factory=list)
    restarts: list[tuple[str, str]] = field(factory=list)
    execute: Callable[[str, list[str]], int] = lambda container, command: 0
    refusals: int = 0
    heals: list[dict[str, Any]] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        running = {container["name"]: f"{container['name']}-1" for container in self.containers}
        self.state = {"version": 1, "containers": running, "generation": 1, "replicas": self.replicas}

    @property
    def socket(self) -> Path:
        return self.folder / "machine.sock"

    @property
    def credentials(self) -> Path:
        return self.folder / "credentials"

    def hand_over(self) -> None:
        self.credentials.write_text(json.dumps({"token": self.token, "unknown": 1}))

    def change(self, **fields: Any) -> None:
        """Something is news."""
        self.state = {**self.state, **fields, "version": self.state["version"] + 1}
        self._news.set()
        self._news = trio.Event()

    @property
    def status(self) -> dict[str, Any]:
        return self.statuses[-1] if self.statuses else {}

    @property
    def peer(self) -> str:
        """``ID@IP:PORT`` of the agent."""
        return f"{self.status['agent']['peer']}@127.0.0.1:{self.status['agent']['port']}"

    def ready(self) -> bool:
        told = self.status.get("containers", {})
        return len(told) == len(self.containers) and all(c["ready"] for c in told.values())

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled, as a daemon does that may come and go."""
        self.socket.unlink(missing_ok=True)
        listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await listening.bind(str(self.socket))
        listening.listen(16)
        try:
            await trio.serve_listeners(
                self._connection, [trio.SocketListener(listening)], task_status=task_status
            )
        finally:
            self.socket.unlink(missing_ok=True)

    async def _connection(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        request, body = None, b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(65_536)))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return
        assert request is not None
        try:
            status, answer = await self._answer(request, json.loads(body) if body else None)
            content = b"" if answer is None else json.dumps(answer).encode()
            response = h11.Response(status_code=status, headers=[("Content-Length", str(len(content)))])
            for part in (response, h11.Data(data=content), h11.EndOfMessage()):
                await stream.send_all(connection.send(part) or b"")
        except trio.BrokenResourceError:
            pass

    async def _answer(self, request: h11.Request, body: Any) -> tuple[int, Any]:
        if dict(request.headers).get(b"authorization") != f"Bearer {self.token}".encode():
            return 401, {"kind": "Status", "message": "no such token"}
        path, _, query = request.target.decode().partition("?")
        match (request.method.decode(), *path.strip("/").split("/")):
            case ("POST", "v1", "pass"):
                return self._pass(PeerId.parse(body["key"]))
            case ("GET", "v1", "state"):
                with trio.move_on_after(30):
                    while self.state["version"] <= int(query.removeprefix("since=")):
                        await self._news.wait()
                return 200, self.state
            case ("PUT", "v1", "status"):
                self.statuses.append(body)
                self.doors.append((self.folder / "app/agent.sock").is_socket())
                return 204, None
            case ("POST", "v1", "containers", name, "restart"):
                self.restarts.append((name, body["reason"]))
                return 204, None
            case ("POST", "v1", "containers", name, "exec"):
                return 200, {"exit_code": self.execute(name, body["command"]), "output": "as told"}
            case ("GET", "v1", "services", namespace, name):
                if (found := self.services.get(f"{namespace}/{name}")) is not None:
                    return 200, found
            case ("POST", "v1", "heal"):
                self.heals.append(body)
                return 200, {"disposed": self.state.get("disposed", False)}
        return 404, {"kind": "Status", "message": f"nothing at {path}"}

    def _pass(self, key: PeerId) -> tuple[int, Any]:
        if self.key not in (None, key):
            self.refusals += 1
            return 409, {"kind": "Status", "message": "another key has this pod's pass"}
        self.key = key
        metadata = {
            "name": self.name,
            "namespace": self.resource.namespace,
            "annotations": self.annotations,
        }
        return 200, {
            "pass": base64.b64encode(pass_of(key, self.name, self.resource, life_ms=self.life_ms)).decode(),
            "root": str(ROOT.peer_id),
            "advertise": [],
            "pod": {"metadata": metadata, "spec": {"containers": self.containers}},
            "uid": str(UID),
            "generation": 1,
            "replicas": self.replicas,
            "zone": self.zone,
            "new_in_a_later_version": True,
        }


@define(eq=False)
class Agent:
    """A real agent process."""

    api: PodApi
    process: trio.Process
    lines: list[dict[str, Any]] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event)

    async def read(self) -> None:
        """Its log, line by line."""
        rest = b""
        assert self.process.stderr is not None
        async for data in self.process.stderr:
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                print(line.decode(errors="replace"))  # pytest shows it where a test fails
                self.lines.append(json.loads(line) if line.startswith(b"{") else {"event": line.decode()})
            self._news.set()
            self._news = trio.Event()

    async def said(self, event: str, seconds: float = 20.0, **fields: Any) -> dict[str, Any]:
        """Wait for a line of the log."""
        with trio.fail_after(seconds):
            while True:
                for line in self.lines:
                    if line.get("event") == event and fields.items() <= line.items():
                        return line
                await self._news.wait()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def command_of(api: PodApi, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "workplane"),
        *("--namespace", api.resource.namespace, "--workload", api.resource.name, "--pod", api.name),
        *("--workload-kind", api.resource.kind, "--listen-addrs", "127.0.0.1:0"),
        *("--dns-addr", "127.0.0.1:0"),
        *("--machine-api", f"unix:{api.socket}", "--credentials", str(api.credentials)),
        *("--local-api", "127.0.0.1:0", "--run-folder", str(api.folder)),
        *more,
    ]


@asynccontextmanager
async def agent(api: PodApi, *more: str) -> AsyncIterator[Agent]:
    """A process for as long as the context lasts; its machine is the test's to serve."""
    environment = {"PATH": os.environ["PATH"]}
    start = partial(
        trio.lowlevel.open_process, command_of(api, *more), stderr=subprocess.PIPE, env=environment
    )
    process = await start()
    made = Agent(api, process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.read)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.kill()
            await process.wait()


@asynccontextmanager
async def pod(
    folder: Path,
    name: str = "web-1",
    *more: str,
    containers: list[dict[str, Any]] | None = None,
    **fields: Any,
) -> AsyncIterator[Agent]:
    """A pod with its machine's API served and its agent running."""
    (folder / name).mkdir(exist_ok=True)
    api = PodApi(name, folder / name, containers or [{"name": "app"}], **fields)
    api.hand_over()
    async with trio.open_nursery() as nursery:
        await nursery.start(api.serve)
        async with agent(api, *more) as started:
            yield started
        nursery.cancel_scope.cancel()
