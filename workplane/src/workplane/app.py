"""The agent, put together. Rooms never import each other: they meet here, and this is the picture of the program.

    signals ──┐                    ┌── feed ◀── the machine
              │                    ├── standing (health) ──▶ the machine
    mesh ─────┴── discovery ───────┴── catalog

The machine says what the pod is and what runs in it; health finds how it stands; discovery tells the others, and is
told of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import attrs
import structlog
import trio
from attrs import frozen

from magik_mesh import CannotListen, Node, NodeConfig, open_node
from magik_mesh import ConfigError as MeshConfigError
from magik_proto.credentials import MembershipError
from magik_proto.dht_kinds import service_kind
from magik_proto.errors import RemoteProtocolError
from magik_proto.fields import PORT_NAME
from magik_proto.identity import Identity
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import ResourceId
from magik_proto.passes import PassPolicy
from workplane.answers import Passport, State
from workplane.belief import Beliefs
from workplane.catalog import Catalog, Visibility
from workplane.config import Config
from workplane.credentials import Credentials
from workplane.discovery import Discovery
from workplane.ending import DISPOSED, Ending, watch_signals
from workplane.feed import Feed
from workplane.logs import configure
from workplane.machine import CONFLICT, Machine, MachineError, patiently
from workplane.manual import manual_pod
from workplane.ownrecord import Caps, OwnRecord
from workplane.standing import Standing

PLANE: Final = "magik-workload/1"
DRAIN_S: Final = 20.0
"""For calls under way at the end. A guess: two thirds of the grace that a pod has unless it says otherwise."""
VERSION_LABEL: Final = "app.kubernetes.io/version"

Drain = Callable[[], Awaitable[None]]
"""Takes nothing new from when it is called, and returns when what was under way is done."""


class StartError(Exception):
    """The agent cannot start; the text says why and what to do."""


def wall_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@frozen(kw_only=True)
class Origin:
    """Who this agent is and who answers for it. By hand there is no machine, and no pass."""

    identity: Identity
    machine: Machine | None
    passport: Passport | None
    pod: Mapping[str, Any]


async def run(config: Config, credentials: Credentials | None) -> int:
    """Be the agent of one pod until told to end; the exit status."""
    ending, role = Ending(), ["replica"]
    configure(config.pod, lambda: role[0])
    log = structlog.get_logger()
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_signals, ending)
        try:
            with trio.CancelScope() as starting:
                nursery.start_soon(_give_up, ending, starting)
                origin = await _origin(config, credentials)
            if not starting.cancelled_caught:
                await _live(config, origin, ending)
        except (StartError, CannotListen, MeshConfigError) as error:
            log.error("cannot-start", error=str(error))
            ending.code = 1
        nursery.cancel_scope.cancel()
    return ending.code


# -- before there is a node


async def _give_up(ending: Ending, starting: trio.CancelScope) -> None:
    await ending.told.wait()
    starting.cancel()


async def _origin(config: Config, credentials: Credentials | None) -> Origin:
    if credentials is None:
        if config.identity is None:
            raise StartError("without a machine a key is needed: --privkey (BEE_PRIVATE_KEY_B64)")
        structlog.get_logger().warning(
            "no-machine",
            missing="a pass (so only open fabrics admit this agent), exec probes, restarts, Services, healing",
        )
        return Origin(identity=config.identity, machine=None, passport=None, pod=manual_pod(config))
    identity = config.identity or credentials.identity or Identity.generate()
    machine = Machine(config.machine_api, credentials.token)
    try:
        passport = await patiently(lambda: _ask_for_pass(config, identity, machine), unless=CONFLICT)
    except MachineError as error:
        raise StartError(
            f"{error}. This pod's token has been used for another key: whoever did so is not this agent; delete the pod"
        ) from error
    return Origin(identity=identity, machine=machine, passport=passport, pod=passport.pod)


async def _ask_for_pass(config: Config, identity: Identity, machine: Machine) -> Passport:
    """A pass that holds by our own check: with another the others would refuse us, and nobody here would know why."""
    passport = await machine.passport(identity.peer_id)
    if passport.shown is None and passport.root is None:
        return passport
    policy = PassPolicy(MembershipPolicy(passport.root), config.namespace)
    try:
        proved = policy.check(identity.peer_id, passport.shown, wall_ms())
    except MembershipError as error:
        raise MachineError("the machine's pass", str(error)) from error
    if (str(proved.resource), proved.pod_name) != (config.workload_id, config.pod):
        raise MachineError("the machine's pass", f"it is of {proved.pod_name} of {proved.resource}")
    return passport


# -- the node


async def _live(config: Config, origin: Origin, ending: Ending) -> None:
    root = origin.passport.root if origin.passport else None
    policy = PassPolicy(
        MembershipPolicy(root), config.namespace, cross_namespace=config.allow_cross_namespace
    )
    own = (config.workload_id, origin.passport.uid) if origin.passport else None
    beliefs = Beliefs(policy, wall_ms, own)
    async with open_node(node_config(config, origin, beliefs)) as node:
        await Agent(config, origin, beliefs, node, ending).live()


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
        kinds=(attrs.evolve(service_kind(beliefs.admit), life_ms=int(config.dht_ttl * 1000)),),
    )


class Agent:
    """All parts of one agent, joined.

    Made as soon as the node is open, before anything is awaited: parts register their handlers.
    """

    def __init__(self, config: Config, origin: Origin, beliefs: Beliefs, node: Node, ending: Ending) -> None:
        self.config = config
        self.origin = origin
        self.node = node
        self.ending = ending
        self.machine = origin.machine
        self.drains: list[Drain] = []
        self.log = structlog.get_logger()
        visibility = Visibility(
            namespace=config.namespace,
            allow=config.allow_workloads,
            deny=config.deny_workloads,
            cross_namespace=config.allow_cross_namespace,
        )
        self.catalog = Catalog(visibility, life_ms=int(config.dht_ttl * 1000))
        self.discovery = Discovery(
            node,
            own_record(config, origin, beliefs),
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

    async def live(self) -> None:
        """Run all parts until told to end, then end them in order: gone from the others' sight, drained, parted."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.discovery.run)
            nursery.start_soon(self.standing.run)
            self._follow_machine(nursery)
            self.log.info("up", peer=str(self.node.id), port=self.node.address[1])
            await self.ending.told.wait()
            await self.discovery.withdraw()
            await self._drain()
            nursery.cancel_scope.cancel()

    def _follow_machine(self, nursery: trio.Nursery) -> None:
        if self.machine is None:
            self.standing.run_all("by hand")
            return
        feed = Feed(self.machine, self.standing.again)
        feed.listeners.append(self._on_state)
        nursery.start_soon(feed.run)

    def _on_state(self, state: State) -> None:
        self.standing.take(state)
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


# -- what the pod says of itself


def own_record(config: Config, origin: Origin, beliefs: Beliefs) -> OwnRecord:
    """The replica's record as it starts: not ready."""
    passport = origin.passport
    return OwnRecord(
        identity=origin.identity,
        resource=ResourceId(config.namespace, config.workload_kind, config.workload),
        pod_name=config.pod,
        ordinal=config.ordinal,
        wall=wall_ms,
        random=os.urandom,
        member=passport.shown if passport else None,
        addrs=passport.advertise[:16] if passport else (),
        ports=ports_of(origin.pod),
        caps=_caps(origin, beliefs),
    )


def _caps(origin: Origin, beliefs: Beliefs) -> Caps:
    """Where the replica runs, and which version of the app it is: for whoever chooses among replicas."""
    passport = origin.passport
    caps: dict[str, bool | int | str] = {}
    if passport is None:
        return caps
    proved = beliefs.identify(origin.identity.peer_id, passport.shown)
    if proved is not None:
        caps["machine"] = str(proved.machine)
    if passport.zone is not None:
        caps["zone"] = passport.zone[:256]
    version = (origin.pod["metadata"].get("labels") or {}).get(VERSION_LABEL)
    if isinstance(version, str):
        caps["app_version"] = version[:256]
    return caps


def ports_of(pod: Mapping[str, Any]) -> dict[str, int]:
    """The named ports of a pod's containers, and ``tcp-80`` for one without a name."""
    found: dict[str, int] = {}
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or ():
            number = port.get("containerPort")
            name = port.get("name") or f"{str(port.get('protocol') or 'tcp').lower()}-{number}"
            if isinstance(number, int) and 0 < number < 65_536 and PORT_NAME.fullmatch(str(name)):
                found[str(name)] = number
    return dict(list(found.items())[:64])
