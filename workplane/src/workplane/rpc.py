"""Calls between replicas: served to the app behind one's own agent, and made to others'.

A call that only the leader may carry out goes on from a follower to the leader, once; the leader looks at its lease in the
moment in which it hands the call to the app, and the token goes along. A stateless replica serves any call itself.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import structlog
import trio
from attrs import evolve, frozen

from magik_mesh import Call, CallRefused, MeshError, Node, PeerUnreachable, RpcFailed, RpcTimeout
from magik_proto.identity import PeerId
from magik_proto.leadership_types import Token
from magik_proto.passes import PodIdentity
from magik_proto.records import ServiceRecord
from workplane.catalog import Catalog
from workplane.leaderview import LeaderView, token_text
from workplane.logs import Sparing, correlated, correlated_by
from workplane.loopback import AppFailed, post
from workplane.rpcwire import MAX_BODY, RPC, CallerName, CallFailed, RpcAnswer, RpcRequest

TIMEOUT_S: Final = 30.0
"""protocol.md: the longest that a call takes."""
MAX_AT_WORK: Final = 256
"""Calls that are with the app at one time, whoever made them; a peer has 64 at most (technical-spec §12.4). At it: `busy`. A
guess."""
MAX_MEETING_S: Final = 5.0
"""For getting to know a replica before it is sent anything. A guess: two handshakes on a bad network."""
TRIES: Final = 3
"""Replicas that are tried until one is met; what was sent to one is sent to no other."""


class Leads(Protocol):
    """What RPC needs of the workload's leadership; a stateless workload has none."""

    @property
    def view(self) -> LeaderView: ...

    def leader_peers(self) -> tuple[PeerId, ...]: ...


@frozen(kw_only=True)
class Target:
    """Which replica is called: of these workloads one of that pod, or of that ordinal, or any."""

    workloads: tuple[str, ...]
    pod: str | None = None
    ordinal: int | None = None

    def fits(self, record: ServiceRecord) -> bool:
        """Whether it is one of those."""
        return self.pod in (None, record.pod_name) and self.ordinal in (None, record.ordinal)


class Rpc:
    """Register it before the node's first await: it serves `RPC`.

    ``app_port`` is the port of the app's methods (None: it has none), ``health`` what `healthz` answers, ``choose`` an index
    below its argument at random.
    """

    def __init__(
        self,
        *,
        node: Node,
        own: PodIdentity,
        catalog: Catalog,
        wall: Callable[[], int],
        identify: Callable[[PeerId], PodIdentity | None],
        follow: Callable[[str], Awaitable[None]],
        leads: Leads | None,
        health: Callable[[], dict[str, Any]],
        app_port: int | None,
        choose: Callable[[int], int],
    ) -> None:
        self._node = node
        self._own = own
        self._name = CallerName(str(own.resource), own.pod_name)
        self._catalog = catalog
        self._wall = wall
        self._identify = identify
        self._follow = follow
        self._leads = leads
        self._health = health
        self._app_port = app_port
        self._choose = choose
        self._at_work = 0
        log = structlog.get_logger(part="rpc")
        self._refusals, self._failures = Sparing(log), Sparing(log)
        self.served = 0
        self.refused = 0
        self.proxied = 0
        node.handle(RPC, self._on_call)

    @property
    def own_workload(self) -> str:
        """The id of the own workload."""
        return self._name.workload

    # -- serving

    async def _on_call(self, call: Call) -> dict[str, Any]:
        with correlated_by(call.body):
            return await self._answer(call)

    async def _answer(self, call: Call) -> dict[str, Any]:
        try:
            request = RpcRequest.from_value(call.body)
            caller = self._caller(call.peer, request)
            answer = await self._serve(caller, request, call.remaining)
        except CallFailed as error:
            self.refused += 1
            self._refusals.info("call-refused", peer=str(call.peer), code=error.code, reason=error.message)
            raise CallRefused(error.code, error.message) from error
        return answer.to_value()

    def _caller(self, peer: PeerId, request: RpcRequest) -> CallerName:
        who = self._identify(peer)
        if who is None:
            raise CallFailed("denied", "the caller shows no pass")
        caller = CallerName(str(who.resource), who.pod_name)
        if request.forwarded is not None:
            if who.uid != self._own.uid:
                raise CallFailed(
                    "denied", f"{caller.workload} is no replica of {self._own.resource}: only those forward"
                )
            caller = request.forwarded
        if not self._catalog.visibility.admits(caller.workload):
            raise CallFailed("denied", f"{caller.workload} may not call {self._own.resource}")
        return caller

    async def _serve(self, caller: CallerName, request: RpcRequest, seconds: float) -> RpcAnswer:
        if request.leader_only and self._leads is not None and self._leads.view.token is None:
            return await self._to_leader(self._leads, caller, request, seconds)
        self.served += 1
        if request.method == "healthz":
            return self._said(self._health())
        if request.method == "leader":
            return self._said({} if self._leads is None else self._leads.view.to_json())
        return await self._to_app(caller, request, seconds)

    def _said(self, value: dict[str, Any]) -> RpcAnswer:
        return RpcAnswer(pod=self._own.pod_name, body=json.dumps(value).encode())

    async def _to_leader(
        self, leads: Leads, caller: CallerName, request: RpcRequest, seconds: float
    ) -> RpcAnswer:
        if request.forwarded is not None:
            raise CallFailed(
                "not-leader", f"{self._own.pod_name} does not lead, and was taken for the leader"
            )
        if leads.view.leader is None:
            raise CallFailed("leader-unknown", "nobody is known to lead now; try again")
        if leads.view.leader == self._own.pod_name:
            raise CallFailed("not-leader", f"the lease of {self._own.pod_name} has ended; try again")
        self.proxied += 1
        forwarded = evolve(request, forwarded=caller)
        deadline = trio.current_time() + min(seconds, TIMEOUT_S)
        for peer in leads.leader_peers():
            if await self._meet(peer, deadline, self._is_own):
                return await self._ask(peer, forwarded, deadline, "leader-unreachable")
        raise CallFailed("leader-unreachable", f"no way to {leads.view.leader}; the call was not carried out")

    def _is_own(self, who: PodIdentity) -> bool:
        return who.uid == self._own.uid

    async def _to_app(self, caller: CallerName, request: RpcRequest, seconds: float) -> RpcAnswer:
        if self._app_port is None:
            raise CallFailed(
                "no-app", f"{self._own.pod_name} takes no calls: no annotation magik.io/rpc-port"
            )
        if self._at_work >= MAX_AT_WORK:
            raise CallFailed("busy", f"{MAX_AT_WORK} calls are at work; try again later")
        self._at_work += 1
        try:
            with trio.fail_after(min(seconds, TIMEOUT_S)):
                return await self._post(self._app_port, caller, request)
        except trio.TooSlowError:
            raise CallFailed(
                "deadline", "the app did not answer in time; it may have carried the call out"
            ) from None
        except AppFailed as error:
            raise CallFailed("app-unreachable", str(error)) from error
        finally:
            self._at_work -= 1

    async def _post(self, port: int, caller: CallerName, request: RpcRequest) -> RpcAnswer:
        token: Token | None = None

        def headers() -> list[tuple[str, str]]:
            nonlocal token
            token = self._token(request)
            told = _headers(caller, request)
            return told if token is None else [*told, ("Magik-Token", token_text(token))]

        said = await post(port, f"/{request.method}", request.body, headers, most=MAX_BODY)
        return RpcAnswer(
            pod=self._own.pod_name, status=said.status, type=said.type or "-", body=said.body, token=token
        )

    def _token(self, request: RpcRequest) -> Token | None:
        """With which this replica writes now. Raises CallFailed where it must not."""
        token = self._leads.view.token if self._leads is not None else None
        if request.leader_only and self._leads is not None and token is None:
            raise CallFailed("not-leader", f"the lease of {self._own.pod_name} has just ended; try again")
        return token

    # -- calling

    async def call(self, target: Target, request: RpcRequest, timeout: float = TIMEOUT_S) -> RpcAnswer:
        """Have one replica carry `request` out. Raises CallFailed; what has been sent is never sent again."""
        with correlated(request.id):
            try:
                return await self._call_in_time(target, request, timeout)
            except CallFailed as error:
                self._failures.info(
                    "call-failed", method=request.method, code=error.code, reason=error.message
                )
                raise

    async def _call_in_time(self, target: Target, request: RpcRequest, timeout: float) -> RpcAnswer:
        deadline = trio.current_time() + min(timeout, TIMEOUT_S)
        try:
            with trio.fail_at(deadline):
                return await self._call(target, request, deadline)
        except trio.TooSlowError:
            raise CallFailed(
                "deadline", f"no answer within {timeout:g} s; it may have been carried out"
            ) from None

    async def _call(self, target: Target, request: RpcRequest, deadline: float) -> RpcAnswer:
        hidden = [w for w in target.workloads if not self._catalog.visibility.admits(w)]
        if hidden:
            raise CallFailed("denied", f"{hidden[0]} is not among the workloads that this pod may see")
        for workload in target.workloads:
            await self._follow(workload)
        for record in self._candidates(target, request.leader_only)[:TRIES]:
            if record.peer_id == self._own.peer:
                return await self._serve(self._name, request, deadline - trio.current_time())
            if await self._meet(record.peer_id, deadline, partial(_proves, record)):
                return await self._ask(record.peer_id, request, deadline, "unreachable")
            self._catalog.forget(record.peer_id, record.workload_id)
        raise CallFailed(
            "no-replica", f"no replica of {', '.join(target.workloads)} that fits can be reached"
        )

    def _candidates(self, target: Target, leader_only: bool) -> Sequence[ServiceRecord]:
        """Who may be asked, the best first: where only the leader will do, who says that it leads; then at random."""
        now = self._wall()
        ready = [r for w in target.workloads for r in self._catalog.ready(w, now) if target.fits(r)]
        shuffled = [ready.pop(self._choose(len(ready))) for _ in range(len(ready))]
        if leader_only:
            shuffled.sort(key=lambda record: record.caps.get("leader") is not True)
        return shuffled

    async def _meet(self, peer: PeerId, deadline: float, is_it: Callable[[PodIdentity], bool]) -> bool:
        """Connect, and see by the pass who it is, before anything is told to it."""
        if self._identify(peer) is None:
            hello = RpcRequest(method="healthz").to_value()
            seconds = min(MAX_MEETING_S, deadline - trio.current_time())
            try:
                await self._node.call(peer, RPC, hello, timeout=max(0.001, seconds))
            except RpcFailed:
                pass  # it answered: there is a connection
            except MeshError:
                return False
        who = self._identify(peer)
        return who is not None and is_it(who)

    async def _ask(self, peer: PeerId, request: RpcRequest, deadline: float, unreachable: str) -> RpcAnswer:
        seconds = max(0.001, deadline - trio.current_time())
        try:
            return RpcAnswer.from_value(await self._node.call(peer, RPC, request.to_value(), timeout=seconds))
        except RpcFailed as error:
            raise CallFailed(error.code, error.message) from error
        except (PeerUnreachable, RpcTimeout) as error:
            raise CallFailed(unreachable, f"{error}; the call may have been carried out") from error


def _headers(caller: CallerName, request: RpcRequest) -> list[tuple[str, str]]:
    return [
        ("Content-Type", request.type),
        ("Magik-Caller", caller.workload),
        ("Magik-Caller-Pod", caller.pod),
        ("Magik-Request-Id", request.id),
        ("Magik-Leader-Only", "true" if request.leader_only else "false"),
    ]


def _proves(record: ServiceRecord, who: PodIdentity) -> bool:
    return (str(who.resource), who.pod_name, who.ordinal) == (
        record.workload_id,
        record.pod_name,
        record.ordinal,
    )
