"""Replicas with which something is open: do they live? What is open with a dead one is torn down.

Whoever was sent something and is silent is asked; from the second round of questions on, so are others about it. Any byte of
it, and any answer, is a sign of life. `vigil` decides, here are the calls and the clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import structlog
import trio
from attrs import define, field, frozen

from magik_mesh import Call, MeshError, PeerInfo, RpcFailed
from magik_proto.identity import PeerId
from workplane.vigil import LAG_S, Inquiry, LocalHealth, Verdict

PING: Final = "/workplane/ping/1.0.0"
SILENCE_S: Final = 0.4
"""A replica that was sent something and has sent nothing for so long is asked whether it lives. A guess."""
ANSWER_S: Final = 12.0
"""A question waits so long at most: as all rounds of an inquiry that are as long as they get. Late answers count as well."""
WITNESSES: Final = 3
"""Others that are asked about a silent replica: the paper's k."""
TESTIMONY_S: Final = 1.0
"""For which who is asked about a third replica waits for that one's answer. A guess."""
MAX_TESTIMONIES: Final = 32
"""Questions about third replicas that are under way; of one more it says nothing. A guess."""


class Stream(Protocol):
    """Bytes both ways: to an app of this pod, or by a call to another's agent."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""

    async def send_eof(self) -> None:
        """End our half."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Some bytes; none at the end."""
        ...


class Asker(Protocol):
    """What is needed of `magik_mesh.Node`."""

    id: PeerId

    async def call(self, peer: PeerId, method: str, body: Any = None, *, timeout: float = 30.0) -> Any:
        """See `Node.call`."""

    def peers(self) -> Sequence[PeerInfo]:
        """See `Node.peers`."""
        ...


@define(eq=False)
class OpenWith:
    """What is open with a replica, and since when it lets us wait: inf while it does not."""

    scopes: set[trio.CancelScope] = field(factory=set)
    waits_since: float = float("inf")
    inquiry: Inquiry | None = None
    life: trio.Event = field(factory=trio.Event)

    def heard(self) -> None:
        """A sign of life."""
        self.waits_since = float("inf")
        if self.inquiry is not None:
            self.life.set()


@frozen(eq=False)
class _Heard:
    """A stream of which is known whether the other end lets us wait."""

    stream: Stream
    open_with: OpenWith

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.open_with.waits_since == float("inf"):
            self.open_with.waits_since = trio.current_time()
        await self.stream.send_all(data)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.stream.receive_some(max_bytes)
        self.open_with.heard()
        return data


class LifeSigns:
    """`dead` hears of a replica that is taken for dead. `nursery` has the questions."""

    def __init__(self, node: Asker, dead: Callable[[PeerId], None], nursery: trio.Nursery) -> None:
        self._node = node
        self._dead = dead
        self._nursery = nursery
        self._open: dict[PeerId, OpenWith] = {}
        self._log = structlog.get_logger(part="traffic")
        self.health = LocalHealth()
        self.torn_down = 0

    @contextmanager
    def open(self, peer: PeerId, scope: trio.CancelScope, stream: Stream) -> Iterator[Stream]:
        """A stream that is open with a replica; `scope` is cancelled when that is taken for dead."""
        open_with = self._open.setdefault(peer, OpenWith())
        open_with.scopes.add(scope)
        open_with.heard()  # it has just taken the connection
        try:
            yield _Heard(stream, open_with)
        finally:
            open_with.scopes.discard(scope)
            if not open_with.scopes:
                del self._open[peer]

    async def watch(self) -> None:
        """Ask those that let us wait, until cancelled."""
        due = trio.current_time() + SILENCE_S
        while True:
            await trio.sleep_until(due)
            now = trio.current_time()
            questioned = any(open_with.inquiry for open_with in self._open.values())
            if now - due >= LAG_S:
                self.health.late(now)
            elif not questioned:
                self.health.timely(now)
            for peer, open_with in self._open.items():
                if open_with.waits_since <= now - SILENCE_S:
                    self.doubt(peer)
            due = now + SILENCE_S

    def doubt(self, peer: PeerId) -> None:
        """Find out whether a replica lives, if anything of ours is open with it."""
        open_with = self._open.get(peer)
        if open_with is not None and open_with.inquiry is None and peer != self._node.id:
            open_with.inquiry, open_with.life = Inquiry(self.health), trio.Event()
            self._nursery.start_soon(self._inquire, peer, open_with, open_with.inquiry)

    async def _inquire(self, peer: PeerId, open_with: OpenWith, inquiry: Inquiry) -> None:
        witnesses: set[PeerId] = set()
        asked: set[PeerId] = set()
        try:
            async with trio.open_nursery() as nursery:
                while inquiry.verdict is Verdict.UNSURE and open_with.scopes:
                    until = inquiry.ask(trio.current_time())
                    nursery.start_soon(self._ask, peer, open_with)
                    if inquiry.seeks_witnesses:
                        for other in self._others(peer, asked):
                            nursery.start_soon(self._ask_about, peer, other, open_with, witnesses)
                    with trio.move_on_at(until):
                        await open_with.life.wait()
                    now = trio.current_time()
                    if open_with.life.is_set():
                        inquiry.alive(now)
                    else:
                        inquiry.silent(
                            now,
                            others_silent=self._others_silent(peer),
                            witnesses=len(witnesses),
                            asked=len(asked),
                        )
                nursery.cancel_scope.cancel()
        finally:
            open_with.inquiry = None
        if inquiry.verdict is Verdict.DEAD:
            self.torn_down += 1
            self._log.warning(
                "a replica does not answer: its connections are torn down",
                peer=str(peer),
                confirmed_by=len(witnesses),
                time_outs=self.health.multiplier,
            )
            self._dead(peer)
            for scope in open_with.scopes:
                scope.cancel()

    def _others_silent(self, peer: PeerId) -> bool:
        return any(other != peer and open_with.inquiry for other, open_with in self._open.items())

    def _others(self, peer: PeerId, asked: set[PeerId]) -> list[PeerId]:
        """Who may know of a silent replica: who is connected and not silent itself, and was not asked yet."""
        able = [
            info.id
            for info in self._node.peers()
            if info.connected and info.id != peer and info.id not in asked and not self._silent(info.id)
        ]
        chosen = random.sample(able, min(len(able), WITNESSES - len(asked)))
        asked.update(chosen)
        return chosen

    def _silent(self, peer: PeerId) -> bool:
        open_with = self._open.get(peer)
        return open_with is not None and open_with.inquiry is not None

    async def _ask(self, peer: PeerId, open_with: OpenWith) -> None:
        if await lives(self._node, peer, ANSWER_S):
            open_with.heard()

    async def _ask_about(
        self, peer: PeerId, other: PeerId, open_with: OpenWith, witnesses: set[PeerId]
    ) -> None:
        try:
            said = await self._node.call(other, PING, {"of": peer.raw}, timeout=ANSWER_S)
        except MeshError:
            return
        heard = said.get("heard") if isinstance(said, dict) else None
        if heard is True:
            open_with.heard()
        elif heard is False:
            witnesses.add(other)


@define(eq=False)
class Witness:
    """Answers `PING`: this agent lives; and asked about a third one with which it is connected, whether that does."""

    node: Asker
    _under_way: int = 0

    async def on_ping(self, call: Call) -> dict[str, Any]:
        """``heard`` is absent where nothing can be said. Nobody is dialled for it."""
        of = call.body.get("of") if isinstance(call.body, dict) else None
        if of is None or self._under_way >= MAX_TESTIMONIES:
            return {}
        known = next((p.id for p in self.node.peers() if p.connected and p.id.raw == of), None)
        if known is None:
            return {}
        self._under_way += 1
        try:
            return {"heard": await lives(self.node, known, min(TESTIMONY_S, call.remaining))}
        finally:
            self._under_way -= 1


async def lives(node: Asker, peer: PeerId, seconds: float) -> bool:
    """Whether it answers, whatever it is, within so long."""
    try:
        await node.call(peer, PING, timeout=max(0.001, seconds))
    except RpcFailed:
        return True
    except MeshError:
        return False
    return True
