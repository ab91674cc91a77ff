"""Pods of a StatefulSet on real nodes on the loopback, each with its pass, its election, its RPC, and an app that checks."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import trio
from attrs import define, field

from magik_mesh import MeshError, Node, NodeConfig, open_node
from magik_proto import signing
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import BootstrapPeer, Identity, PeerId
from magik_proto.invites import RootKey
from magik_proto.leadership import LeadershipConfig
from magik_proto.leadership_wire import stored_from_bytes
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import Award, ResourceId
from magik_proto.passes import PassPolicy, PodIdentity, issue_pass
from magik_proto.records import ServiceRecord
from magik_proto.wire import encode_message
from workplane.catalog import Catalog, Visibility
from workplane.leadership import FOUNDER_FILE, LeaderElection
from workplane.leaderview import LeaderBoard
from workplane.local import LocalApi, open_local_api
from workplane.localhttp import Answer, Asked, Refused, serve
from workplane.rpc import Rpc

ROOT = RootKey.from_seed(b"r" * 32)
OWNER, MACHINE = (Identity.from_seed(bytes([n]) * 32) for n in (91, 92))
LEASE_S = 1.5
CONFIG = LeadershipConfig(lease_s=LEASE_S, heartbeat_s=0.25, election_s=0.3)
UID = UUID(int=1 << 64)


def wall() -> int:
    return int(time.time() * 1000)


def key_of(name: str, life: int = 0) -> Identity:
    return Identity.from_seed(f"{name} {life}".encode().ljust(32, b"."))


def pass_of(pod: str, key: Identity, *, kind: str = "StatefulSet", uid: UUID = UID) -> bytes:
    name, _, number = pod.rpartition("-")
    ordinal = int(number) if kind == "StatefulSet" else None
    award = Award(
        tender_id=UUID(int=3 << 64),
        owner_identity=OWNER.peer_id,
        owner_pubkey=OWNER.peer_id.raw,
        winner=MACHINE.peer_id,
        resource=ResourceId("default", kind, name),
        uid=uid,
        generation=1,
        replicas=9,
        ordinals=tuple(range(9)) if kind == "StatefulSet" else (),
        manifest_digest=bytes(32),
        sealed_digest=bytes(32),
        timestamp=wall(),
        nonce=1,
    )
    return issue_pass(
        MACHINE,
        encode_message(signing.sign(award, OWNER)),
        ROOT.invite(wall() - 60_000).accept(OWNER, wall()).encode(),
        pod=key.peer_id,
        pod_uid=UUID(int=9 << 64),
        pod_name=pod,
        ordinal=ordinal,
        now_ms=wall(),
    )


class App:
    """Writes only with a token that is not below the highest one it has seen, as a storage should."""

    def __init__(self) -> None:
        self.highest = (0, 0)
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.headers: dict[str, str] = {}
        self.failures = 0

    async def handle(self, asked: Asked) -> Answer:
        wish = json.loads(asked.body) if asked.body else {}
        self.calls.append((asked.path, wish))
        self.headers = dict(asked.headers)
        if asked.path == "/hook" and self.failures:
            self.failures -= 1
            raise Refused(503, "not now")
        if asked.path == "/slow":
            await trio.sleep_forever()
        if asked.path == "/write":
            generation, _, term = wish["token"].partition(".")
            token = (int(generation), int(term))
            if token < self.highest:
                raise Refused(409, f"stale token {token}, seen {self.highest}")
            self.highest = token
        return Answer.of({"echo": wish})


@define(eq=False)
class Pod:
    name: str
    identity: Identity
    node: Node
    catalog: Catalog
    rpc: Rpc
    scope: trio.CancelScope
    election: LeaderElection | None
    board: LeaderBoard | None
    app: App
    api_port: int
    socket: Path
    gone: trio.Event = field(factory=trio.Event)


class Pods:
    """A fabric of pods that grows and shrinks; all know all, by their records."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self._nursery = nursery
        self.folder = folder
        self.pods: dict[str, Pod] = {}
        self.cut: set[str] = set()
        self.lives = 0

    async def start(
        self, name: str, *, replicas: int = 3, founder: bool = False, kind: str = "StatefulSet", **extra: Any
    ) -> Pod:
        state = self.folder / name
        if not state.exists():
            state.mkdir()
            if founder:
                (state / FOUNDER_FILE).touch()
        pod: Pod = await self._nursery.start(self._run, name, state, replicas, kind, extra)
        return pod

    async def stop(self, name: str) -> None:
        """As when the agent is killed; returns when nothing of it is left."""
        pod = self.pods.pop(name)
        pod.scope.cancel()
        await pod.gone.wait()

    async def _run(
        self,
        name: str,
        state: Path,
        replicas: int,
        kind: str,
        extra: dict[str, Any],
        task_status: trio.TaskStatus[Pod],
    ) -> None:
        self.lives += 1
        identity = key_of(name, self.lives)
        policy = PassPolicy(MembershipPolicy(ROOT.peer_id), "default")
        shown = pass_of(
            name, identity, kind=kind, uid=extra.pop("uid", UID if kind == "StatefulSet" else UUID(int=5))
        )
        others = tuple(BootstrapPeer(p.node.id, *p.node.address) for p in self.pods.values())
        config = NodeConfig(
            host="127.0.0.1",
            port=0,
            identity=identity,
            policy=policy,
            plane="magik-workload/1",
            member=shown,
            subject=f"default/{kind}/{name}",
            bootstrap=others,
        )
        visibility = Visibility(namespace="default", **extra.pop("visibility", {}))
        catalog = Catalog(visibility, life_ms=3_600_000)
        with trio.CancelScope() as scope:
            async with open_node(config) as node, AsyncExitStack() as stack:
                nursery = await stack.enter_async_context(trio.open_nursery())

                def identify(peer: PeerId) -> PodIdentity | None:
                    shown = node.shown(peer)
                    try:
                        return policy.check(peer, shown, wall()) if shown else None
                    except RemoteProtocolError:
                        return None

                own = identify(node.id)
                assert own is not None
                common: dict[str, Any] = {
                    "node": node,
                    "own": own,
                    "catalog": catalog,
                    "wall": wall,
                    "identify": identify,
                    "follow": self._follow,
                }
                election = board = None
                if kind == "StatefulSet":
                    election = LeaderElection(
                        **common, state=state, config=CONFIG, on_change=lambda _: board.show()
                    )
                    board = LeaderBoard(
                        lambda: election.view, path=state / "leader", hook=extra.pop("hook", None)
                    )
                app = App()
                app_port = await self._serve(nursery, app)
                rpc = Rpc(
                    **common,
                    leads=election,
                    health=lambda: {"ready": True, "healthy": True},
                    app_port=extra.pop("app_port", app_port),
                    choose=lambda _: 0,
                )
                self._cuttable(node, name)
                api = LocalApi(
                    rpc=rpc,
                    catalog=catalog,
                    board=board,
                    namespace="default",
                    wall=wall,
                    follow=self._follow,
                    service=extra.pop("service", _no_service),
                    health=lambda: {"ready": True, "healthy": True},
                    metrics=lambda: "workplane_up 1\n",
                )
                socket = self.folder / f"{name}.sock"
                port = await stack.enter_async_context(open_local_api(api, port=0, path=socket))
                pod = Pod(name, identity, node, catalog, rpc, scope, election, board, app, port, socket)
                self.pods[name] = pod
                self.announce(own)
                if election is not None and board is not None:
                    nursery.start_soon(board.run)
                    nursery.start_soon(election.run, 1, replicas)
                task_status.started(pod)
                await trio.sleep_forever()
        pod.gone.set()

    async def _serve(self, nursery: trio.Nursery, app: App) -> int:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(lambda task_status: serve(listeners, app.handle, task_status=task_status))
        return int(listeners[0].socket.getsockname()[1])

    async def _follow(self, workload: str) -> None:
        await trio.lowlevel.checkpoint()

    def _cuttable(self, node: Node, name: str) -> None:
        """Who is cut off calls nobody, and nobody calls it."""
        real = node.call

        async def call(peer: PeerId, method: str, body: Any = None, *, timeout: float = 30.0) -> Any:
            there = next((p.name for p in self.pods.values() if p.node.id == peer), None)
            if name in self.cut or there in self.cut:
                await trio.sleep(0.05)
                raise MeshError("cut off")
            return await real(peer, method, body, timeout=timeout)

        node.call = call  # type: ignore[method-assign]

    def announce(self, own: PodIdentity, **caps: Any) -> None:
        for other in self.pods.values():
            self.tell(other, own, **caps)
        mine = next(p for p in self.pods.values() if p.node.id == own.peer)
        for pod in list(self.pods.values()):
            if pod is not mine:
                self.tell(mine, _identity(pod))

    def tell(self, pod: Pod, own: PodIdentity, **caps: Any) -> None:
        resource = own.resource
        record = ServiceRecord(
            workload_id=str(resource),
            namespace=resource.namespace,
            workload_kind=resource.kind,
            workload_name=resource.name,
            peer_id=own.peer,
            pod_name=own.pod_name,
            ordinal=own.ordinal,
            caps=caps,
            version=wall(),
            ts=wall(),
            ready=True,
            healthy=True,
            nonce=1,
        )
        pod.catalog.take([record], wall())
        there = next((p.node for p in self.pods.values() if p.node.id == own.peer), None)
        if there is not None:  # as discovery does with a record's addresses
            pod.node.introduce(BootstrapPeer(own.peer, *there.address))

    def leaders(self) -> list[Pod]:
        return [p for p in self.pods.values() if p.election and p.election.standing.token is not None]

    async def leader(self, within: float) -> Pod:
        """The one with a token, as soon as there is one; never two on the way."""
        await self.until(lambda: len(self.leaders()) == 1, within)
        return self.leaders()[0]

    async def until(self, condition: Callable[[], bool], within: float = 20.0) -> None:
        with trio.fail_after(within):
            while not condition():
                assert len(self.leaders()) <= 1, "two hold a lease"
                await trio.sleep(0.02)

    async def formed(self) -> Pod:
        """The leader of a set in which all have stored that all vote."""
        await self.until(lambda: all(self.voters(name) == (len(self.pods),) for name in self.pods))
        return await self.leader(20)

    def voters(self, name: str) -> tuple[int, ...]:
        try:
            return stored_from_bytes((self.folder / name / "vote").read_bytes()).voters
        except FileNotFoundError:
            return ()


def _identity(pod: Pod) -> PodIdentity:
    return pod.rpc._own


async def _no_service(namespace: str, name: str) -> None:
    return None


@asynccontextmanager
async def stateful(folder: Path, size: int = 3, **extra: Any) -> AsyncIterator[Pods]:
    """Pods web-0, web-1 …; number 0 is the founder."""
    async with trio.open_nursery() as nursery:
        pods = Pods(nursery, folder)
        for number in range(size):
            await pods.start(f"web-{number}", replicas=size, founder=number == 0, **extra)
        yield pods
        nursery.cancel_scope.cancel()
