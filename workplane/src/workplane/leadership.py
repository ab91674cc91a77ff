"""A replica's election over the mesh: who is who, whom to send to, what is kept between two lives of the agent.

What decides is `magik_proto.leadership`, driven by `workplane.election`. Here messages go to the agents that the catalogue
names for an ordinal, and are taken only from a connection whose pass proves a replica of this very workload.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from magik_mesh import Call, CallRefused, MeshError, Node
from magik_proto import leadership as lead
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.leadership_types import MAX_VOTERS
from magik_proto.leadership_wire import from_value, to_value
from magik_proto.machine import RandomSource
from magik_proto.passes import PodIdentity
from workplane.catalog import Catalog
from workplane.election import Election, FileStorage, Standing, boot_time
from workplane.leaderview import LeaderView

LEAD: Final = "/workplane/lead/1.0.0"
SEND_S: Final = 3.0
"""A message that is on its way for longer than a lease is of no use to anybody."""
MAX_FLYING: Final = 8
"""Messages on their way to one agent: more than the heartbeats of a lease. At it the next is lost. A guess."""
MAX_NAMESAKES: Final = 3
"""Agents to which a message for one ordinal goes, where several say that they are it; the newest records first. A guess."""
FOLLOW_S: Final = 5.0
"""How often the own workload is asked for in the table: as often as records are announced."""
VOTE_FILE: Final = "vote"
FOUNDER_FILE: Final = "founder"

Identify = Callable[[PeerId], PodIdentity | None]
Follow = Callable[[str], Awaitable[None]]


class LeaderElection:
    """Run it with `run`, and register it before the first await: it serves `LEAD` of its node.

    ``state`` is a folder that outlives the agent and goes with the pod. ``own`` is what the own
    pass proves, of a pod with an ordinal.
    """

    def __init__(
        self,
        *,
        node: Node,
        own: PodIdentity,
        catalog: Catalog,
        wall: Callable[[], int],
        identify: Identify,
        follow: Follow,
        state: Path,
        on_change: Callable[[Standing], None],
        config: lead.LeadershipConfig | None = None,
        rng: RandomSource | None = None,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        if own.ordinal is None:
            raise ValueError(f"{own.pod_name} has no ordinal: only a StatefulSet has a leader")
        self._node = node
        self._own = own
        self._ordinal = own.ordinal
        self._catalog = catalog
        self._wall = wall
        self._identify = identify
        self._follow = follow
        self._state = state
        self._heard: dict[int, PeerId] = {}
        self._flying: Counter[PeerId] = Counter()
        self._log = structlog.get_logger(part="leadership", ordinal=own.ordinal)
        self.lost_messages = 0
        self.failed = False
        self._election = Election(
            own.ordinal,
            FileStorage(state / VOTE_FILE),
            self._transmit,
            rng or random.SystemRandom(),
            on_change=on_change,
            config=config,
            clock=clock,
        )
        node.handle(LEAD, self._on_message)

    @property
    def standing(self) -> Standing:
        """Who leads, as things are now; with a token while it is this replica, and its lease holds."""
        return self._election.standing

    @property
    def view(self) -> LeaderView:
        """The same, by the names of pods."""
        standing = self.standing
        leader = None if standing.leader is None else f"{self._own.resource.name}-{standing.leader}"
        return LeaderView(self._own.pod_name, leader, standing.token)

    def changed(self, generation: int, replicas: int) -> None:
        """The workload has a newer manifest. With 0 replicas, or more than can vote, who votes stays as it is."""
        if 1 <= replicas <= MAX_VOTERS:
            self._election.changed(generation, replicas)

    async def run(self, generation: int, replicas: int) -> None:
        """Take part until cancelled. Returns where there is no part to take: the replica goes on, and never leads."""
        if not 1 <= replicas <= MAX_VOTERS or self._ordinal >= MAX_VOTERS:
            self._log.warning("no-leadership", replicas=replicas, most=MAX_VOTERS)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_following)
            try:
                await self._election.run(generation, replicas, fresh=await self._fresh())
            except OSError as error:
                # Who cannot remember what it promised must not promise.
                self.failed = True
                self._log.error("leadership-ends", state=str(self._state), error=str(error))
            nursery.cancel_scope.cancel()

    async def _fresh(self) -> lead.Stored | None:
        """What a founder begins with. The mark goes when it is kept: a folder with neither has lost something."""
        mark = trio.Path(self._state / FOUNDER_FILE)
        if not await mark.exists():
            return None
        storage = FileStorage(self._state / VOTE_FILE)
        stored = await storage.read() or lead.new_voter(0, 1)
        await storage.write(stored)
        await mark.unlink()
        return stored

    async def _keep_following(self) -> None:
        while True:
            await self._follow(str(self._own.resource))
            await trio.sleep(FOLLOW_S)

    # -- messages

    async def _on_message(self, call: Call) -> None:
        ordinal = self._replica(call.peer)
        if ordinal is None:
            raise CallRefused("not-a-replica", f"no other replica of {self._own.resource} by its pass")
        try:
            message, life = from_value(call.body)
        except RemoteProtocolError as error:
            raise CallRefused(error.rule, error.detail) from error
        self._heard[ordinal] = call.peer
        self._election.receive(ordinal, message, life)

    def _replica(self, peer: PeerId) -> int | None:
        """The ordinal that a connected peer proved; None for whoever is no other replica of this workload's uid."""
        who = self._identify(peer)
        if who is None or who.uid != self._own.uid or who.ordinal in (None, self._ordinal):
            return None
        return who.ordinal

    async def _transmit(self, to: int, message: lead.Message, life: lead.Life) -> None:
        async with trio.open_nursery() as nursery:
            for peer in self.peers_of(to):
                nursery.start_soon(self._send, to, peer, to_value(message, life))

    async def _send(self, to: int, peer: PeerId, body: dict[str, Any]) -> None:
        if self._flying[peer] >= MAX_FLYING:
            self.lost_messages += 1
            return
        self._flying[peer] += 1
        try:
            await self._node.call(peer, LEAD, body, timeout=SEND_S)
        except MeshError as error:
            self.lost_messages += 1
            self._log.debug("message-lost", to=to, peer=str(peer), error=str(error))
            self._misheard(to, peer)
        else:
            if self._replica(peer) != to:
                self._catalog.forget(peer, str(self._own.resource))
                self._misheard(to, peer)
        finally:
            self._flying[peer] -= 1
            if not self._flying[peer]:
                del self._flying[peer]

    def _misheard(self, ordinal: int, peer: PeerId) -> None:
        if self._heard.get(ordinal) == peer:
            del self._heard[ordinal]

    def peers_of(self, ordinal: int) -> tuple[PeerId, ...]:
        """The agents that say, or have proved, that they are the replica of an ordinal; the most likely first."""
        records = [
            record
            for record in self._catalog.replicas(str(self._own.resource), self._wall())
            if record.ordinal == ordinal and record.peer_id != self._own.peer
        ]
        records.sort(key=lambda record: record.ts, reverse=True)
        heard = [self._heard[ordinal]] if ordinal in self._heard else []
        return tuple(dict.fromkeys([*heard, *(record.peer_id for record in records)]))[:MAX_NAMESAKES]

    def leader_peers(self) -> tuple[PeerId, ...]:
        """Where the leader may be asked; none where nobody is known to lead, or it is this replica."""
        leader = self.standing.leader
        return () if leader is None or leader == self._ordinal else self.peers_of(leader)
