"""The daemon, put together. Rooms never import each other: they meet here, and this is the picture of the program.

    signals ─┐                        ┌── podnet (bridge, addresses)
             │   kubeapi ── backend ──┤
    mesh ────┴── scheduling ── fabric ┴── runtime (zygote, shims, images) ── podagents ── agents (a socket for each pod)

From the API a manifest goes to `fabric` (guarded, acted for), from there as a job to `scheduling` (tender, bid, award), from
an award to `fabric.pods` and into the runtime; what the runtime sees goes back into the table that all machines mirror.
"""

import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any
from uuid import UUID

import structlog
import trio

from machineplane import __version__
from machineplane.agentdesk import ZONE, AgentDesk
from machineplane.backend import FabricBackend
from machineplane.config import Config
from machineplane.fabric.disposals import Disposals
from machineplane.fabric.endpoints import Endpoints
from machineplane.fabric.events import Events
from machineplane.fabric.follow import Follower
from machineplane.fabric.founding import Foundings
from machineplane.fabric.guardian import Guardian, Outcome
from machineplane.fabric.holdings import Holdings, HoldingsFull
from machineplane.fabric.index import IMAGE
from machineplane.fabric.manifests import Manifest, Object
from machineplane.fabric.nodes import Host, node_labels, node_object
from machineplane.fabric.objects import render
from machineplane.fabric.pods import Attachment, DeployError, Marks, PodKeeper, PodState
from machineplane.fabric.remote import LogQuery, LogUnavailable, Remote
from machineplane.fabric.scope import OF, resource_text
from machineplane.fabric.services import Services
from machineplane.fabric.sessions import ATTACH, EXEC, Sessions
from machineplane.fabric.table import Table
from machineplane.fabric.tombstones import Tombstones
from machineplane.fabric.view import ObjectKey, View
from machineplane.fabric.wide import Wide
from machineplane.imagepeers import ImagePeers
from machineplane.keys import Credentials
from machineplane.kubeapi.auth import load_credentials as load_api_credentials
from machineplane.kubeapi.server import ApiAddresses, ApiConfig, serve_api
from machineplane.linux.addresses import own_addresses
from machineplane.linux.files import replace_file
from machineplane.podaccess import PodAccess
from machineplane.podagents import PodAgents, wrong_annotation
from machineplane.references import MAX_RECORDS, References, pack, records_in, references_of
from machineplane.runtime import (
    EngineStatus,
    HostPolicy,
    LogOptions,
    PodError,
    PodEvent,
    PodGone,
    PodSpecError,
    PodStatus,
    Runtime,
    check_spec,
    pod_status_json,
)
from machineplane.runtime.images.handout import Handout
from machineplane.scheduling.capacity import architecture, read_capacity
from machineplane.scheduling.letters import Job
from machineplane.scheduling.market import DeployFailed, Market
from machineplane.scheduling.requirements import RequirementsError, priority_of, requirements_of
from machineplane.upkeep import Upkeep, Wanted
from magik_mesh import MeshError, Node, PeerDown, PeerUp
from magik_proto import bidder
from magik_proto.awards import Delivery
from magik_proto.clock import HybridClock
from magik_proto.errors import ProtocolError
from magik_proto.identity import PeerId, format_address
from magik_proto.placement import Capacity, MachineFacts, needs
from magik_proto.records import Workload, canonical_json
from magik_proto.replay import ReplayFilter

RESERVE_READ_S = 30.0  # how often capacity is read again: disks fill, cgroup limits change
LOST_NODE_SHOWN_MS = 300_000  # how long a machine that is gone is shown as not ready


class DaemonError(Exception):
    """The daemon cannot start or go on; the text says what is wrong and what to do."""


def wall_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def is_any(host: str) -> bool:
    """Whether a listener on ``host`` takes connections to every address of the machine."""
    return ip_address(host).is_unspecified


def format_host(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def machine_addresses(config: Config) -> tuple[str, ...]:
    """Where others reach this machine, the best first."""
    host, subnet = config.rest_api_host, config.pod_subnet
    found = own_addresses(subnet) if is_any(host) and subnet else (host,)
    return found or ("127.0.0.1",)


class Machine:
    """All rooms of one daemon, joined. Made inside the daemon's nursery; `start` sets everything going."""

    def __init__(
        self,
        config: Config,
        credentials: Credentials,
        runtime: Runtime,
        node: Node,
        references: References,
        agents: PodAgents,
        nursery: trio.Nursery,
    ) -> None:
        self.config = config
        self.agents = agents
        self.credentials = credentials
        self.runtime = runtime
        self.node = node
        self.nursery = nursery
        self.log = structlog.get_logger()
        self.addresses = machine_addresses(config)
        self.default_runtime = self._pick_default_runtime()
        self.facts = self._read_facts()
        own = credentials.identity.peer_id
        clock = HybridClock(wall_ms)
        self.table = Table(clock.now)
        self.view = View(own, clock)
        self.view.render = self._render
        self.view.on_change = self._view_changed
        self.services = Services(self.view)
        self.endpoints = Endpoints(self.view, self.services)
        self.references = references
        references.known = self.view
        self.holdings = Holdings()
        self.events = Events(self.table, wall_ms, config.node_name)
        self.follower = Follower(node, self.table, self.view)
        self.desk = self._make_desk()
        self.keeper = self._make_keeper()
        self.market = self._make_market()
        self.disposals = self._make_disposals()
        self.tombstones = Tombstones(node, self.disposals.remembered, self.disposals.learn)
        self.guardian = self._make_guardian()
        self.remote = Remote(
            node, guard=self.guardian.guard, stop=self.keeper.stop, open_log=self._open_log, look=self._look
        )
        self.wide = self._make_wide()
        self.upkeep = Upkeep(
            self.wide.outlook, lambda: node.size_estimate() if node.large else 0, self._pods_want
        )
        self.image_peers = self._make_image_peers()
        runtime.join_peers(self.image_peers)
        access = PodAccess(runtime)
        self.sessions = Sessions(node, {EXEC: access.execute, ATTACH: access.attach}, access.connect)
        self.backend = self._make_backend()
        agents.join(self.desk)
        node.on_revocations(lambda _: self._tell_agents(None))

    # -- rooms, each given what it needs of the others

    def _make_desk(self) -> AgentDesk:
        return AgentDesk(
            runtime=self.runtime,
            node=self.node,
            view=self.view,
            services=self.services,
            holdings=self.holdings,
            identity=self.credentials.identity,
            policy=self.credentials.policy,
            addresses=self.addresses,
            zone=dict(self.config.labels).get(ZONE),
            wall=wall_ms,
            look=self._ask_actor,
            read_service=lambda namespace, name: self.upkeep.service(namespace, name),
        )

    def _make_keeper(self) -> PodKeeper:
        return PodKeeper(
            runtime=_PodRuntime(self.runtime, self.desk.marks),
            table=self.table,
            events=self.events,
            own=self.node.id,
            node_name=self.config.node_name,
            address=self.addresses[0],
            wall=wall_ms,
            nursery=self.nursery,
            rng=random.SystemRandom(),
        )

    def _make_market(self) -> Market:
        return Market(
            node=self.node,
            identity=self.credentials.identity,
            sealing_key=self.credentials.sealing_key,
            bidder=bidder.Bidder(self.facts),
            replay=ReplayFilter(wall_ms()),
            wall=wall_ms,
            deploy=self._deploy,
            disposed=lambda disposal: self.disposals.obey(disposal),
            nursery=self.nursery,
        )

    def _make_disposals(self) -> Disposals:
        return Disposals(
            identity=self.credentials.identity,
            wall=wall_ms,
            holdings=self.holdings,
            table=self.table,
            view=self.view,
            stop=self.keeper.stop_workload,
            publish=self.market.dispose,
            roles=self.node.roles,
            member=lambda: self.node.member_to_show,
        )

    def _make_guardian(self) -> Guardian:
        return Guardian(
            view=self.view,
            table=self.table,
            holdings=self.holdings,
            events=self.events,
            alive=self._alive,
            settle=self.follower.settle,
            tender=self._tender,
            retire=lambda peer, pod: self.remote.retire(peer, pod),
            dispose=self.disposals.dispose,
            roles=self.node.roles,
            foundings=Foundings(self.config.state_dir / "foundings"),
        )

    def _make_wide(self) -> Wide:
        def tell(peer: PeerId, disposal: bytes) -> None:
            if self.node.large:
                self.nursery.start_soon(self.tombstones.tell, peer, disposal)

        self.disposals.tell = tell
        return Wide(
            node=self.node,
            identity=self.credentials.identity,
            wall=wall_ms,
            rng=random.SystemRandom(),
            table=self.table,
            view=self.view,
            holdings=self.holdings,
            follower=self.follower,
            guardian=self.guardian,
            remote=self.remote,
            others=lambda: ((IMAGE, ident) for ident in self.image_peers.told),
        )

    def _make_image_peers(self) -> ImagePeers:
        return ImagePeers(
            self.node,
            Handout(self.runtime.images, self.runtime.own_images),
            random.SystemRandom(),
            self._image_holders,
        )

    async def _image_holders(self, ident: str) -> tuple[PeerId, ...]:
        """Whom to ask for an image beside those with a connection: in a small fabric there are no others."""
        return await self.wide.index.holders(IMAGE, ident) if self.node.large else ()

    def _make_backend(self) -> FabricBackend:
        return FabricBackend(
            identity=self.credentials.identity,
            wall=wall_ms,
            view=self.view,
            outlook=self.wide.outlook,
            guardian=self.guardian,
            remote=self.remote,
            sessions=self.sessions,
            dispose=self.disposals.dispose,
            check=self._check_manifest,
        )

    # -- start

    async def start(self) -> None:
        """Adopt what runs, start every room's task, open the API, and say that the machine is ready."""
        for workload in self.keeper.adopt():
            self.guardian.hold(workload)
        for state in self.runtime.pods():
            self.nursery.start_soon(self._hold_records, state.uid)
        self._count_capacity()
        self._show_node()
        start_soon = self.nursery.start_soon
        for task in (self.follower.run, self.guardian.run, self.market.run, self.disposals.run):
            start_soon(task)
        for task in (
            self.wide.run,
            self.image_peers.run,
            self.upkeep.run,
            self._watch_runtime,
            self._watch_peers,
            self._read_again,
        ):
            start_soon(task)
        self._announce(await self.nursery.start(serve_api, self._api_config(), self.backend))

    def _api_config(self) -> ApiConfig:
        names = (self.config.node_name, *self.addresses)
        directory = self.config.state_dir / "api"
        try:
            api = load_api_credentials(directory, names)
        except (OSError, ValueError) as error:
            raise DaemonError(f"{directory}: the API's keys cannot be used: {error}") from error
        return ApiConfig(
            http_port=self.config.rest_api_port,
            tls_host=self.config.rest_api_host,
            tls_port=self.config.rest_api_tls_port,
            certificate=api.certificate,
            key=api.key,
            token=api.token,
            release=__version__,
        )

    def _announce(self, api: ApiAddresses) -> None:
        port = (api.tls or "").rpartition(":")[2]
        ready = {
            "pid": os.getpid(),
            "identity": str(self.node.id),
            "mesh": self._mesh_address(),
            "api": f"https://{format_host(self.addresses[0])}:{port}",
            "http": api.http,
            "node_name": self.config.node_name,
        }
        replace_file(self.config.ready_file, json.dumps(ready).encode() + b"\n")
        self.log.info("ready", **{k: v for k, v in ready.items() if k != "pid"}, version=__version__)

    def _mesh_address(self) -> str:
        host, port = self.node.address[:2]
        return format_address(self.addresses[0] if is_any(host) else host, port)

    async def _hold_records(self, uid: str) -> None:
        """What an adopted pod refers to is given to the fabric again: nobody else may have it any more."""
        with suppress(PodError, HoldingsFull):
            for record in records_in(await self.runtime.records(uid)):
                self.guardian.hold(record)

    # -- what this machine is

    def _engines(self) -> dict[str, EngineStatus]:
        return {engine.name: engine for engine in self.runtime.engines()}

    def _pick_default_runtime(self) -> str:
        """``--runtime``, or crun where krun does not work and nobody asked for it by name (protocol.md, Labels)."""
        engines = self._engines()
        for engine in engines.values():
            if engine.reason:
                word = "runtime-limited" if engine.available else "runtime-unavailable"
                self.log.warning(word, runtime=engine.name, reason=engine.reason)
        wanted = self.config.runtime
        if engines[wanted].available or self.config.runtime_given or not engines["crun"].available:
            return wanted
        self.log.warning("runtime-default", using="crun", instead_of=wanted, reason=engines[wanted].reason)
        return "crun"

    def _read_facts(self) -> MachineFacts:
        works = {name: engine.available for name, engine in self._engines().items()}
        peer = self.credentials.identity.peer_id
        arch = architecture()
        labels = node_labels(self.config.node_name, str(peer), arch, works) | dict(self.config.labels)
        return MachineFacts(
            peer=peer,
            capacity=read_capacity(self.config.state_dir),
            architecture=arch,
            runtimes=frozenset(name for name, available in works.items() if available),
            labels=labels,
        )

    def _show_node(self) -> None:
        engines = self._engines().values()
        host = Host(
            name=self.config.node_name,
            addresses=self.addresses,
            mesh=self._mesh_address(),
            runtimes=tuple((e.name, e.version) for e in engines if e.available),
            version=__version__,
            started_ms=self.table.epoch >> 16,
        )
        obj = node_object(self.facts, host)
        of = resource_text(self.config.node_name, "Node", self.config.node_name)
        self.table.put(("node", str(self.node.id)), {"json": canonical_json(obj), OF: of})

    async def _read_again(self) -> None:
        while True:
            await trio.sleep(RESERVE_READ_S)
            self.facts = self._read_facts()
            self.market.capacity_changed(bidder.FactsChanged(self.facts))
            self.events.expire()
            self.view.forget_lost_nodes((wall_ms() - LOST_NODE_SHOWN_MS) << 16)

    def _count_capacity(self) -> None:
        used = Capacity()
        for pod in self.keeper.settled():
            used += needs(requirements_of(pod["spec"], {}, self.default_runtime))
        self.market.capacity_changed(bidder.CapacityChanged(used))

    # -- from room to room

    def _alive(self) -> tuple[PeerId, ...]:
        return (self.node.id, *(info.id for info in self.node.peers() if info.connected))

    def _render(self, group: str) -> Mapping[ObjectKey, Object]:
        derived = group.startswith("endpoints/")
        return self.endpoints.render(group) if derived else render(self.view, group)

    def _view_changed(self, group: str) -> None:
        self.backend.view_changed()
        kind, _, ident = group.partition("/")
        if kind == "workload":
            self.guardian.wake(ident)
        if namespace := self.services.changed(group):
            self.view.refresh(self.endpoints.changed(group, namespace))
            self._tell_agents(namespace)

    def _tell_agents(self, namespace: str | None) -> None:
        """Something may be news to the agents of a namespace, or of all."""
        here = {pod.uid: pod.namespace for pod in self.runtime.pods()}
        for uid in self.agents.uids():
            if namespace is None or here.get(uid) == namespace:
                self.agents.changed(uid)

    def _pods_want(self) -> Iterator[Wanted]:
        """What pods refer to; and for those with an agent their workload, its Services, and what else there is beside."""
        with_agent = set(self.agents.uids())
        for pod in self.runtime.pods():
            for kind, name in references_of(pod.pod["spec"]):
                yield Wanted(pod.namespace, kind, name)
            if pod.uid in with_agent:
                yield Wanted(pod.namespace)
                with suppress(ProtocolError, ValueError, KeyError):
                    resource = Attachment.from_bytes(pod.attachment).workload.resource
                    yield Wanted(resource.namespace, resource.kind, resource.name)

    def _look(self, uid: UUID) -> bool:
        """Look at a workload that this machine acts for; whether it is disposed of."""
        self.guardian.wake(str(uid))
        return self.holdings.is_disposed(uid, trio.current_time())

    async def _ask_actor(self, uid: UUID) -> bool:
        manifest = self.view.manifest(str(uid))
        if manifest is None:
            return False
        try:
            return await self.remote.ask_actor(manifest.record, self.guardian.actor_of(manifest.record))
        except MeshError as error:  # who acts may be about to be found dead; then another one is asked
            self.log.info("look-lost", workload=str(uid), error=str(error))
            return False

    async def _watch_peers(self) -> None:
        alone = False  # not at the start: then the daemon's own grace counts
        async for event in self.node.subscribe_peers():
            match event:
                case PeerDown(id=peer, reason=reason):
                    if not reason.startswith("dropped"):  # for room, or as not needed: it is alive
                        self.market.peer_gone(peer)
                    alone = len(self._alive()) == 1
                case PeerUp(info=info):
                    if alone:
                        alone = False
                        self.nursery.start_soon(self.guardian.rejoin)
                    self.nursery.start_soon(self.tombstones.met, info.id)
            self.guardian.wake_all()

    async def _watch_runtime(self) -> None:
        async for change in self.runtime.changes():
            if isinstance(change, PodGone):
                self.keeper.gone(change.uid)
            elif isinstance(change, PodEvent):
                self.keeper.tell(change.uid, change.kind, change.reason, change.message)
                continue
            else:
                self.keeper.report(change)
                self.agents.changed(change.uid)
            self._count_capacity()

    def _check_manifest(self, manifest: Manifest) -> str | None:
        """Why no machine could ever run this manifest's pods; None where one might."""
        if not manifest.runs_pods:
            return None
        spec = manifest.template["spec"]
        if wrong := wrong_annotation(manifest.annotations):
            return wrong
        try:
            requirements_of(spec, manifest.annotations, self.default_runtime)
            priority_of(spec)
            check_spec(spec, HostPolicy.everything())
        except (RequirementsError, PodSpecError) as error:
            said, inner = str(error), "spec." if manifest.kind == "Pod" else "spec.template.spec."
            return said.replace("spec.", inner, 1) if said.startswith("spec.") else said
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return f"spec is malformed: {error!r}"
        return None

    async def _tender(
        self, manifest: Manifest, replicas: int, taken: dict[PeerId, int], ordinals: tuple[int, ...]
    ) -> Outcome:
        spec = manifest.template["spec"]
        try:
            requirements = requirements_of(spec, manifest.annotations, self.default_runtime)
            priority = priority_of(spec)
        except RequirementsError as error:
            return Outcome({}, replicas, (str(error),))
        await self._read_references(manifest.record.resource.namespace, spec)
        objects = self.references.collect(manifest.record.resource.namespace, spec)
        job = Job(
            manifest.record,
            requirements,
            replicas,
            taken,
            ordinals,
            objects=objects,
            priority=priority,
            founding=self.guardian.founding(manifest.uid),
        )
        finished = await self.market.place(job)
        return Outcome(dict(finished.placed), finished.unplaced, finished.reasons)

    async def _read_references(self, namespace: str, spec: dict[str, Any]) -> None:
        """In a large fabric what pods refer to is elsewhere as a rule."""
        if self.node.large:
            async with trio.open_nursery() as nursery:
                for kind, name in references_of(spec)[:MAX_RECORDS]:
                    nursery.start_soon(self.wide.outlook.one, kind, namespace, name)

    async def _deploy(
        self, delivery: Delivery, workload: Workload, receipt: bytes, objects: tuple[Workload, ...]
    ) -> list[str]:
        award = delivery.award
        if self.holdings.is_disposed(workload.uid, trio.current_time()):
            raise DeployFailed(f"{workload.resource} was disposed of", begun=False)
        try:
            manifest = Manifest.of(workload)
            spec = manifest.template.get("spec") or {}
            engine = requirements_of(spec, manifest.annotations, self.default_runtime).runtime
        except ValueError as error:  # RequirementsError is one
            raise DeployFailed(str(error), begun=False) from error
        if self.node.large:
            with suppress(HoldingsFull):
                self.guardian.hold(workload)
        try:
            records, member = pack(objects), self.node.shown(award.owner_identity)
            return await self.keeper.deploy(
                workload, award, receipt, engine, records, member, founder=delivery.founder
            )
        except DeployError as error:
            raise DeployFailed(str(error), begun=error.begun) from error

    @asynccontextmanager
    async def _open_log(self, query: LogQuery) -> AsyncIterator[AsyncIterator[bytes]]:
        options = LogOptions(
            follow=bool(query.get("follow")),
            tail=_whole(query, "tail_lines"),
            since_s=_whole(query, "since_seconds"),
            timestamps=bool(query.get("timestamps")),
            previous=bool(query.get("previous")),
            limit_bytes=_whole(query, "limit_bytes"),
        )
        try:
            uid, container = str(query.get("uid", "")), str(query.get("container", ""))
            yield self.runtime.logs(uid, container, options)
        except PodError as error:
            raise LogUnavailable(str(error)) from error


def _whole(query: Mapping[str, Any], name: str) -> int | None:
    value = query.get(name)
    return value if isinstance(value, int) else None


class _PodRuntime:
    """The runtime as `fabric.pods` knows it."""

    def __init__(self, runtime: Runtime, marks: Callable[[PodStatus], Marks]) -> None:
        self._runtime = runtime
        self.marks = marks
        self.stop_pod = runtime.stop_pod
        self.pods = runtime.pods

    async def run_pod(
        self, pod: dict[str, Any], attachment: bytes, *, engine: str, records: bytes
    ) -> PodState:
        try:
            return await self._runtime.run_pod(pod, attachment, engine=engine, records=records)
        except PodError as error:
            raise DeployError(str(error)) from error

    def status(self, state: Any) -> dict[str, Any]:
        return pod_status_json(state)
