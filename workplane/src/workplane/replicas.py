"""What a replica does together with the others, joined: leadership, calls, healing, and the app's door to them.

mesh ── leadership ──▶ board (file, hook) ──▶ the app
 │          │ token        ▲
 ├──────── rpc ◀──────── local API ◀── the app
catalogue ─ healing ──▶ the machine
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from attrs import frozen

from magik_mesh import Node
from magik_proto.identity import PeerId
from magik_proto.passes import PodIdentity
from magik_proto.records import ServiceRecord
from workplane.catalog import Catalog
from workplane.election import Standing
from workplane.healer import Heal, Healer
from workplane.healing import Healing, Wanted
from workplane.leadership import LeaderElection
from workplane.leaderview import LeaderBoard
from workplane.local import HasWorkloads, LocalApi, open_local_api
from workplane.metrics import Family, counter, gauge
from workplane.rpc import Rpc

RPC_PORT: Final = "magik.io/rpc-port"
LEADER_HOOK: Final = "magik.io/leader-hook"
LEADER_FILE: Final = "leader"
SOCKET: Final = "agent.sock"


@frozen(kw_only=True)
class Around:
    """What is around: other parts of the agent, as plain functions.

    ``own`` is what the own pass proves. ``tell_caps`` and ``tell_machine`` hear of the own leadership, ``health`` is what is
    said of the pod, ``heal`` asks the machine (None: there is none), ``end`` ends the agent of a workload that is
    disposed of.
    """

    node: Node
    own: PodIdentity
    catalog: Catalog
    wall: Callable[[], int]
    identify: Callable[[PeerId], PodIdentity | None]
    follow: Callable[[str], Awaitable[None]]
    service: Callable[[str, str], Awaitable[HasWorkloads | None]]
    tell_caps: Callable[[Mapping[str, bool | int | str]], None]
    tell_machine: Callable[[Mapping[str, int] | None], None]
    health: Callable[[], dict[str, Any]]
    metrics: Callable[[], str]
    heal: Heal | None
    end: Callable[[], None]


class Replicas:
    """Made before the node's first await; `run` it for as long as the agent lives.

    ``pod`` is the v1 Pod, ``state`` and ``app`` are folders: the agent's own that lasts, and the one it shares with the app.
    """

    def __init__(
        self,
        around: Around,
        pod: Mapping[str, Any],
        wanted: Wanted,
        *,
        state: Path,
        app: Path,
        listen: tuple[str, int],
        check_s: float,
    ) -> None:
        self._around = around
        self._wanted = wanted
        self._app = app
        self._listen = listen
        self._log = structlog.get_logger(part="replicas")
        self.election = self._make_election(state)
        self.board = self._make_board(pod)
        self.rpc = self._make_rpc(pod)
        self.healer = self._make_healer(check_s)

    @property
    def leads(self) -> bool:
        """Whether this replica holds its workload's lease now."""
        return self.election is not None and self.election.standing.token is not None

    def metrics(self) -> Iterable[Family]:
        """As they are now."""
        yield counter("rpc_served", "Calls of others that were carried out here.", self.rpc.served)
        yield counter("rpc_refused", "Calls of others that were refused.", self.rpc.refused)
        yield counter("rpc_proxied", "Calls handed on to the leader.", self.rpc.proxied)
        if self.election is not None:
            token = self.election.standing.token
            yield gauge("leader", "Whether this replica holds the lease.", token is not None)
            yield gauge("leader_term", "Of the lease held.", 0 if token is None else token.term)
            lost = self.election.lost_messages
            yield counter("leadership_messages_lost", "Messages to replicas that did not arrive.", lost)
        if self.healer is not None:
            yield gauge("replicas_missing", "Fewer than wanted, as of the last look.", self.healer.missing)
            yield counter("heals", "Times that the machine was asked to heal.", self.healer.asked)
            yield counter("heal_replicas", "Replicas that it was asked for.", self.healer.asked_for)

    def wanted(self, generation: int, replicas: int) -> None:
        """The workload has this manifest, as far as the machine knows."""
        if generation <= self._wanted.generation:
            return
        self._wanted = Wanted(generation, replicas)
        if self.election is not None:
            self.election.changed(generation, replicas)
        if self.healer is not None:
            self.healer.wanted(generation, replicas)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started once the app finds its agent, or cannot."""
        async with trio.open_nursery() as nursery:
            if self.election is not None:
                nursery.start_soon(self.election.run, self._wanted.generation, self._wanted.replicas)
            if self.board is not None:
                nursery.start_soon(self.board.run)
            if self.healer is not None:
                nursery.start_soon(self.healer.run)
            await self._serve_app(task_status)

    # -- making

    def _make_election(self, state: Path) -> LeaderElection | None:
        around = self._around
        if around.own.ordinal is None:
            return None
        return LeaderElection(
            node=around.node,
            own=around.own,
            catalog=around.catalog,
            wall=around.wall,
            identify=around.identify,
            follow=around.follow,
            state=state,
            on_change=self._on_change,
        )

    def _make_board(self, pod: Mapping[str, Any]) -> LeaderBoard | None:
        election = self.election
        if election is None:
            return None
        path = self._app / LEADER_FILE if self._app.is_dir() else None
        return LeaderBoard(lambda: election.view, path=path, hook=self._hook(pod))

    def _make_rpc(self, pod: Mapping[str, Any]) -> Rpc:
        around = self._around
        return Rpc(
            node=around.node,
            own=around.own,
            catalog=around.catalog,
            wall=around.wall,
            identify=around.identify,
            follow=around.follow,
            leads=self.election,
            health=around.health,
            app_port=self._rpc_port(pod),
            choose=secrets.randbelow,
        )

    def _make_healer(self, check_s: float) -> Healer | None:
        around = self._around
        if around.heal is None:
            return None
        stateful = around.own.ordinal is not None
        healing = Healing(around.own.peer, stateful, self._wanted, check_s=check_s)
        return Healer(healing, self._look, around.heal, around.end)

    def _rpc_port(self, pod: Mapping[str, Any]) -> int | None:
        text = annotation(pod, RPC_PORT)
        port = None if text is None else port_of(pod, text)
        if text is not None and port is None:
            self._log.error(
                "annotation", name=RPC_PORT, value=text[:100], expected="a port, or a container port's name"
            )
        return port

    def _hook(self, pod: Mapping[str, Any]) -> tuple[int, str] | None:
        text = annotation(pod, LEADER_HOOK)
        if text is None:
            return None
        name, _, path = text.partition("/")
        port = port_of(pod, name)
        if port is None or not path.isascii() or not path.isprintable() or " " in path:
            self._log.error("annotation", name=LEADER_HOOK, value=text[:100], expected="PORT/PATH")
            return None
        return port, f"/{path}"

    # -- going on

    async def _look(self) -> tuple[ServiceRecord, ...]:
        workload = str(self._around.own.resource)
        await self._around.follow(workload)
        return self._around.catalog.replicas(workload, self._around.wall())

    def _on_change(self, standing: Standing) -> None:
        token = standing.token
        caps: dict[str, bool | int | str] = {"leader": token is not None}
        if token is not None:
            caps["leader_epoch"] = token.term
        self._around.tell_caps(caps)
        told = None if token is None else {"generation": token.generation, "term": token.term}
        self._around.tell_machine(told)
        self._log.info("leadership", leader=standing.leader, token=told)
        if self.board is not None:
            self.board.show()
        if self.healer is not None:
            self.healer.leading(token is not None)

    async def _serve_app(self, task_status: trio.TaskStatus[None]) -> None:
        around = self._around
        api = LocalApi(
            rpc=self.rpc,
            catalog=around.catalog,
            board=self.board,
            namespace=around.own.resource.namespace,
            wall=around.wall,
            follow=around.follow,
            service=around.service,
            health=around.health,
            metrics=around.metrics,
        )
        host, port = self._listen
        path = self._app / SOCKET if self._app.is_dir() else None
        try:
            async with open_local_api(api, host=host, port=port, path=path) as served:
                self._log.info("local-api", port=served, path=str(path))
                task_status.started()
                await trio.sleep_forever()
        except OSError as error:
            # The app may use that port itself: then it has no door to its agent, and all else goes on.
            self._log.error("no-local-api", host=host, port=port, path=str(path), error=str(error))
            task_status.started()
            await trio.sleep_forever()


def annotation(pod: Mapping[str, Any], name: str) -> str | None:
    """A pod's annotation of that name, if it is a text."""
    value = (pod.get("metadata", {}).get("annotations") or {}).get(name)
    return value if isinstance(value, str) else None


def port_of(pod: Mapping[str, Any], text: str) -> int | None:
    """The port of a number, or of a container port's name; None where there is none."""
    if text.isascii() and text.isdigit() and len(text) < 6:
        return int(text) if 0 < int(text) < 65_536 else None
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or ():
            if port.get("name") == text and isinstance(port.get("containerPort"), int):
                return int(port["containerPort"])
    return None
