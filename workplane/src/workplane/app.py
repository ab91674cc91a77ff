"""The agent, put together. Rooms never import each other: they meet here, and this is the picture of the program.

    signals ──┐                    ┌── feed ◀── the machine
              │                    ├── standing (health) ──▶ the machine
    mesh ─────┼── discovery ───────┴── catalog
              └── replicas: leadership, calls, healing, local API ◀── the app

The machine says what the pod is and what runs in it; health finds how it stands; discovery tells the others, and is
told of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import attrs
import structlog
import trio
from attrs import define

from magik_mesh import CannotListen, MeshLimits, Node, NodeConfig, open_node
from magik_mesh import ConfigError as MeshConfigError
from magik_proto.dht_kinds import service_kind
from magik_proto.errors import RemoteProtocolError
from magik_proto.membership import MembershipPolicy
from magik_proto.passes import PassPolicy
from workplane import __version__
from workplane.answers import State
from workplane.belief import Beliefs
from workplane.catalog import Catalog, Visibility
from workplane.clock import wall_ms
from workplane.config import Config
from workplane.credentials import Credentials
from workplane.discovery import Discovery
from workplane.ending import DISPOSED, Ending, end_with_pass, watch_signals
from workplane.feed import Feed
from workplane.healing import Wanted
from workplane.inbound import MAX_OF_PEER
from workplane.logs import configure
from workplane.machine import MachineError
from workplane.metrics import (
    Family,
    Source,
    catalog_metrics,
    counter,
    exposition,
    identity_metrics,
    mesh_metrics,
    probe_metrics,
)
from workplane.naming import serve_names
from workplane.podfacts import own_record
from workplane.replicas import Around, Replicas
from workplane.services import Service, Services, selecting
from workplane.standing import Standing
from workplane.start import Origin, StartError, find_origin
from workplane.traffic import Seams, open_traffic

PLANE: Final = "magik-workload/1"
STREAMS: Final = MAX_OF_PEER + 64
"""Of one connection: those of traffic, and the mesh's and leadership's calls, which are to find room beside them."""
DRAIN_S: Final = 20.0
"""For calls under way at the end. A guess: two thirds of the grace that a pod has unless it says otherwise."""

Drain = Callable[[], Awaitable[None]]
"""Takes nothing new from when it is called, and returns when what was under way is done."""


@define
class Role:
    """What logs and metrics call this replica: ``replica``; of a StatefulSet ``leader`` or ``follower``."""

    name: str = "replica"


async def run(config: Config, credentials: Credentials | None) -> int:
    """Be the agent of one pod until told to end; the exit status."""
    ending, role = Ending(), Role()
    configure(config.pod, lambda: role.name)
    log = structlog.get_logger()
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_signals, ending)
        try:
            with trio.CancelScope() as starting:
                nursery.start_soon(_give_up, ending, starting)
                origin = await find_origin(config, credentials)
            if not starting.cancelled_caught:
                await _live(config, origin, role, ending)
        except (StartError, CannotListen, MeshConfigError) as error:
            log.error("cannot-start", error=str(error))
            ending.code = 1
        nursery.cancel_scope.cancel()
    return ending.code


async def _give_up(ending: Ending, starting: trio.CancelScope) -> None:
    """Before there is a node nothing has to be ended in order."""
    await ending.told.wait()
    starting.cancel()


# -- the node


async def _live(config: Config, origin: Origin, role: Role, ending: Ending) -> None:
    root = origin.passport.root if origin.passport else None
    policy = PassPolicy(
        MembershipPolicy(root), config.namespace, cross_namespace=config.allow_cross_namespace
    )
    own = (config.workload_id, origin.passport.uid) if origin.passport else None
    beliefs = Beliefs(policy, wall_ms, own)
    async with open_node(node_config(config, origin, beliefs)) as node:
        await Agent(config, origin, beliefs, node, role, ending).live()


def node_config(config: Config, origin: Origin, beliefs: Beliefs) -> NodeConfig:
    """The agent as a node of the workload plane."""
    passport = origin.passport
    host, port = config.listen
    return NodeConfig(
        host=host,
        port=port,
        identity=origin.identity,
        policy=beliefs.policy,
        plane=PLANE,
        member=passport.shown if passport else None,
        subject=config.workload_id,
        bootstrap=config.bootstrap_peers,
        advertise=passport.advertise if passport else (),
        limits=MeshLimits(calls_per_peer=STREAMS, streams=STREAMS),
        kinds=(attrs.evolve(service_kind(beliefs.admit), life_ms=int(config.dht_ttl * 1000)),),
    )


class Agent:
    """All parts of one agent, joined.

    Made as soon as the node is open, before anything is awaited: parts register their handlers.
    """

    def __init__(
        self, config: Config, origin: Origin, beliefs: Beliefs, node: Node, role: Role, ending: Ending
    ) -> None:
        self.config = config
        self.origin = origin
        self.node = node
        self.role = role
        self.ending = ending
        self.machine = origin.machine
        self.drains: list[Drain] = []
        self.sources: list[Source] = [self._own_metrics]
        self.log = structlog.get_logger()
        self.services: tuple[Service, ...] = ()
        self.known_services = Services(self._service)
        self.visibility = Visibility(
            namespace=config.namespace,
            allow=config.allow_workloads,
            deny=config.deny_workloads,
            cross_namespace=config.allow_cross_namespace,
        )
        self.catalog = Catalog(self.visibility, life_ms=int(config.dht_ttl * 1000))
        self.own = own_record(config, origin, beliefs)
        self.discovery = Discovery(
            node,
            self.own,
            self.catalog,
            beliefs,
            wall_ms,
            heartbeat_s=config.dht_heartbeat,
        )
        self.standing = Standing(
            origin.pod,
            origin.machine,
            node.id,
            node.address[1],
            lambda ready, healthy: self.discovery.change(ready=ready, healthy=healthy),
        )

        self.replicas = self._make_replicas(beliefs)

    def _make_replicas(self, beliefs: Beliefs) -> Replicas | None:
        """What is done together with the others: only by who can prove which replica it is."""
        passport = self.origin.passport
        own = beliefs.identify(self.node.id, passport.shown) if passport else None
        if passport is None or own is None:
            self.log.warning("no-pass", missing="leadership, calls between replicas, healing, the local API")
            return None
        if own.ordinal is not None:
            self.role.name = "follower"
        around = Around(
            node=self.node,
            own=own,
            catalog=self.catalog,
            wall=wall_ms,
            identify=lambda peer: beliefs.identify(peer, self.node.shown(peer)),
            follow=self.discovery.follow,
            service=self.known_services.get,
            tell_caps=lambda caps: self.discovery.change(caps=caps),
            tell_machine=self._lead,
            health=lambda: {"ready": self.standing.ready, "healthy": self.standing.healthy},
            metrics=self.metrics,
            heal=self.machine.heal if self.machine else None,
            end=lambda: self.ending.tell(DISPOSED, "the workload is disposed of"),
        )
        replicas = Replicas(
            around,
            self.origin.pod,
            Wanted(passport.generation, passport.replicas),
            state=self.config.state_folder,
            app=self.config.app_folder,
            listen=self.config.local_api,
            check_s=self.config.replica_check_interval,
        )
        self.sources.append(replicas.metrics)
        return replicas

    def _lead(self, leader: Mapping[str, int] | None) -> None:
        self.role.name = "follower" if leader is None else "leader"
        self.standing.lead(leader)

    async def _service(self, namespace: str, name: str) -> Service | None:
        """As the machine knows it now. Raises MachineError, also for an answer that cannot be understood."""
        if self.machine is None:
            raise MachineError(f"Service {namespace}/{name}", "there is no machine that knows Services")
        found = await self.machine.service(namespace, name)
        try:
            return None if found is None else Service.of(found)
        except ValueError as error:
            raise MachineError(
                f"Service {namespace}/{name}, as the machine told of it", str(error)
            ) from error

    def _traffic_seams(self) -> Seams:
        caps = self.own.caps
        return Seams(
            node=self.node,
            catalog=self.catalog,
            visibility=self.visibility,
            wall=wall_ms,
            follow=self.discovery.follow,
            identify=self.discovery.identify,
            services=self.known_services,
            own_services=lambda: self.services,
            own_ports=lambda: self.own.ports,
            ready=lambda: self.standing.ready and self.standing.healthy,
            redirect_port=self.config.redirect_port,
            machine=str(caps.get("machine", "")),
            zone=str(caps.get("zone", "")),
        )

    async def live(self) -> None:
        """Run all parts until told to end, then end them in order: gone from the others' sight, drained, parted."""
        async with open_traffic(self._traffic_seams()) as traffic, trio.open_nursery() as nursery:
            self.drains.append(traffic.drain)
            self.sources.append(traffic.metrics)
            await nursery.start(self.discovery.run)
            nursery.start_soon(serve_names, traffic.lookup, self.config.dns_addr)
            if self.replicas is not None:
                await nursery.start(self.replicas.run)  # the app's door is there before its pod can be ready
            nursery.start_soon(self.standing.run)
            if self.origin.passport is not None:
                nursery.start_soon(end_with_pass, self.ending, self.origin.passport.shown)
            self._follow_machine(nursery)
            self.log.info("up", peer=str(self.node.id), port=self.node.address[1])
            await self.ending.told.wait()
            await self.discovery.withdraw()
            await self._drain()
            nursery.cancel_scope.cancel()

    def metrics(self) -> str:
        """All parts' metrics, for ``/metrics``."""
        return exposition(self.sources)

    def _own_metrics(self) -> Iterable[Family]:
        standing, workload = self.standing, self.config.workload_id
        yield from identity_metrics(
            __version__,
            workload,
            self.config.pod,
            self.node.id,
            self.role.name,
            ready=standing.ready,
            healthy=standing.healthy,
        )
        yield from mesh_metrics(self.node.peers(), self.node.stats)
        yield from catalog_metrics(self.catalog, workload, wall_ms())
        yield counter("announcements", "Own records put into the table.", self.discovery.announced)
        yield counter("records_refused", "Gossiped records that were not believed.", self.discovery.refused)
        yield from probe_metrics(standing.health.counts if standing.health else {})
        yield counter("restarts", "Restarts of containers asked for.", standing.restarts)

    def _follow_machine(self, nursery: trio.Nursery) -> None:
        if self.machine is None:
            self.standing.run_all("by hand")
            return
        feed = Feed(self.machine, self.standing.again)
        feed.listeners.append(self._on_state)
        nursery.start_soon(feed.run)

    def _on_state(self, state: State) -> None:
        self.standing.take(state)
        self.services = selecting(state.services)
        if self.replicas is not None:
            self.replicas.wanted(state.generation, state.replicas)
        self.discovery.introduce(state.bootstrap)
        if state.revocations is not None:
            try:
                self.node.revoke(state.revocations)
            except RemoteProtocolError as error:
                self.log.warning("revocations-refused", error=str(error))
        if state.disposed:
            self.ending.tell(DISPOSED, "the workload is disposed of")

    async def _drain(self) -> None:
        with trio.move_on_after(DRAIN_S):
            async with trio.open_nursery() as nursery:
                for drain in self.drains:
                    nursery.start_soon(drain)
