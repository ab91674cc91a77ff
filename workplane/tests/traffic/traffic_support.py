"""Pods on this computer's loopback: real nodes with passes, real apps, and a machine that knows some Services."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import attrs
import trio
from dnslib import DNSRecord
from trio import socket

from magik_mesh import MeshLimits, Node, NodeConfig, open_node
from magik_mesh.testing import peers_of, until
from magik_proto import signing
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import BootstrapPeer, Identity, PeerId
from magik_proto.invites import RootKey
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import Award, ResourceId
from magik_proto.passes import PassPolicy, PodIdentity, issue_pass
from magik_proto.records import ServiceRecord
from magik_proto.wire import encode_message
from workplane.catalog import Catalog, Visibility
from workplane.resolver import Resolver
from workplane.services import Service, Services
from workplane.traffic import Seams, Traffic, open_traffic

ROOT = RootKey.from_seed(b"r" * 32)
OWNER, MACHINE = (Identity.from_seed(bytes([n]) * 32) for n in (91, 92))


def wall() -> int:
    return time.time_ns() // 1_000_000


def identity_of(seed: int) -> Identity:
    return Identity.from_seed(bytes([seed]) * 32)


def pass_of(seed: int, resource: ResourceId) -> bytes:
    award = Award(
        tender_id=UUID(int=3 << 64),
        owner_identity=OWNER.peer_id,
        owner_pubkey=OWNER.peer_id.raw,
        winner=MACHINE.peer_id,
        resource=resource,
        uid=UUID(int=1 << 64),
        generation=1,
        replicas=9,
        manifest_digest=bytes(32),
        sealed_digest=bytes(32),
        timestamp=wall(),
        nonce=1,
    )
    return issue_pass(
        MACHINE,
        encode_message(signing.sign(award, OWNER)),
        ROOT.invite(wall()).accept(OWNER, wall()).encode(),
        pod=identity_of(seed).peer_id,
        pod_uid=UUID(int=(9 << 64) + seed),
        pod_name=f"{resource.name}-{seed}",
        ordinal=None,
        now_ms=wall(),
    )


@attrs.define(eq=False)
class Machine:
    """What the pods' machines know: Services. `asked` counts questions, `away` has it answer none."""

    services: dict[tuple[str, str], dict[str, Any]] = attrs.field(factory=dict)
    asked: int = 0
    away: bool = False

    def serve(self, name: str, port: int, *, workloads: tuple[str, ...], **changes: Any) -> None:
        ports = [{"name": "main", "port": port, "protocol": "TCP", "target": "app"}]
        given = {
            "name": name,
            "namespace": "default",
            "ports": ports,
            "workloads": list(workloads),
            "headless": False,
            "annotations": {},
        }
        self.services["default", name] = {**given, **changes}

    async def ask(self, namespace: str, name: str) -> Service | None:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.away:
            raise OSError("the machine is away")
        found = self.services.get((namespace, name))
        return None if found is None else Service.of(found)

    def selecting(self, workload_id: str) -> list[Service]:
        return [Service.of(s) for s in self.services.values() if workload_id in s["workloads"]]


@attrs.define(eq=False)
class Pod:
    seed: int
    resource: ResourceId
    node: Node
    catalog: Catalog
    ports: dict[str, int]
    traffic: Traffic
    ready: list[bool]
    dns: tuple[str, int]

    @property
    def workload(self) -> str:
        return str(self.resource)

    def record(self, **changes: Any) -> ServiceRecord:
        given: dict[str, Any] = {
            "workload_id": self.workload,
            "namespace": self.resource.namespace,
            "workload_kind": self.resource.kind,
            "workload_name": self.resource.name,
            "peer_id": self.node.id,
            "pod_name": f"{self.resource.name}-{self.seed}",
            "ports": self.ports,
            "version": 1,
            "ts": wall(),
            "ready": True,
            "healthy": True,
            "nonce": 1,
        }
        return ServiceRecord(**{**given, **changes})

    async def resolve(self, name: str, kind: str = "A") -> list[str]:
        """By DNS, as an app of this pod would; raises LookupError for what is no answer."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.connect(self.dns)
            await sock.send(DNSRecord.question(f"{name}.svc.cluster.local", kind).pack())
            reply = DNSRecord.parse(await sock.recv(4096))
        if reply.header.rcode:
            raise LookupError(reply.header.rcode)
        return [str(rr.rdata) for rr in reply.rr]

    async def connect(self, name: str, port: int) -> trio.SocketStream:
        (address, *_) = await self.resolve(name)
        return await trio.open_tcp_stream(address, port)


@asynccontextmanager
async def pod(
    machine: Machine,
    seed: int,
    workload: str,
    *,
    others: tuple[Pod, ...] = (),
    bootstrap: tuple[BootstrapPeer, ...] = (),
    ports: dict[str, int] | None = None,
    visibility: Visibility | None = None,
    open_fabric: bool = False,
    redirect_port: int | None = None,
) -> AsyncIterator[Pod]:
    """A pod of a Deployment, that knows the pods made before it and is known to them."""
    resource = ResourceId("default", "Deployment", workload)
    policy = PassPolicy(MembershipPolicy(None if open_fabric else ROOT.peer_id), "default")
    known = tuple(BootstrapPeer(p.node.id, *p.node.address) for p in others) + bootstrap
    config = NodeConfig(
        host="127.0.0.1",
        port=0,
        identity=identity_of(seed),
        policy=policy,
        member=None if open_fabric else pass_of(seed, resource),
        plane="magik-workload/1",
        bootstrap=known,
        limits=MeshLimits(calls_per_peer=1024, streams=1024),
    )
    visible = visibility or Visibility(namespace="default")
    catalog, ready, numbers = Catalog(visible), [True], dict(ports or {})
    async with open_node(config) as node:

        @functools.cache
        def check(peer: PeerId, shown: bytes | None) -> PodIdentity | None:
            try:
                return None if shown is None else policy.check(peer, shown, wall())
            except RemoteProtocolError:
                return None

        def identify(peer: PeerId) -> PodIdentity | None:
            return check(peer, node.shown(peer))

        async def follow(_: str) -> None:
            await trio.lowlevel.checkpoint()

        seams = Seams(
            node=node,
            catalog=catalog,
            visibility=visible,
            wall=wall,
            follow=follow,
            identify=identify,
            services=Services(machine.ask),
            own_services=lambda: machine.selecting(str(resource)),
            own_ports=lambda: numbers,
            ready=lambda: ready[0],
            redirect_port=redirect_port,
        )
        async with open_traffic(seams) as traffic, trio.open_nursery() as nursery:
            resolver = Resolver("cluster.local", traffic.lookup, ())
            dns = await nursery.start(resolver.serve, "127.0.0.1", 0)
            made = Pod(seed, resource, node, catalog, numbers, traffic, ready, dns)
            introduce(made, *others)
            if others:
                await until(lambda: {other.node.id for other in others} <= set(peers_of(node)), 30.0)
            yield made
            nursery.cancel_scope.cancel()


def introduce(*pods: Pod) -> None:
    """Have all of them know each other's records."""
    for one in pods:
        one.catalog.take((other.record() for other in pods), wall())


@asynccontextmanager
async def serving(handler: Callable[[trio.SocketStream], Any]) -> AsyncIterator[int]:
    """A TCP app; its port."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            nursery.start_soon(trio.serve_listeners, handler, [listener])
            yield listener.socket.getsockname()[1]
            nursery.cancel_scope.cancel()


def saying(text: bytes) -> Callable[[trio.SocketStream], Any]:
    """An app that says who it is and ends."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.send_all(text)

    return handler


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


def unique(name: str) -> str:
    """A name of which the loopback address is nobody else's on this computer."""
    return f"{name}-{random.SystemRandom().randrange(1 << 40):x}"


def a_port() -> int:
    """A service's port: below those that the kernel gives out. Only who listens at all addresses could have it."""
    return random.SystemRandom().randrange(20_000, 30_000)
