"""Sessions between machines on an in-memory mesh: both ways, refusals, and ends that reach the other side."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from machineplane import channels
from machineplane.channels import SessionRefused
from machineplane.fabric.sessions import ATTACH, EXEC, Query, Sessions, _RemoteSession
from magik_mesh import CallRefused, Node
from magik_mesh.testing import memory_fabric
from magik_proto.identity import PeerId


class Echo:
    """Writes what it reads, and ends with 7 at the end of stdin."""

    def __init__(self) -> None:
        self.sender, self.receiver = trio.open_memory_channel[channels.Frame](0)

    async def send(self, channel: int, payload: bytes) -> None:
        ends = (channel, payload) == channels.END_OF_STDIN
        await self.sender.send(channels.exited(7) if ends else (channels.STDOUT, payload))

    async def receive(self) -> channels.Frame:
        return await self.receiver.receive()


@define
class Machine:
    """The pods of a machine: all of them echo."""

    node: Node
    open: int = 0
    moved: trio.Event = field(factory=trio.Event)
    queries: list[Query] = field(factory=list)
    sessions: Sessions = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.sessions = Sessions(self.node, {EXEC: self.echo, ATTACH: self.refuse}, self.connect)

    def _count(self, step: int) -> None:
        self.open += step
        self.moved.set()
        self.moved = trio.Event()

    @asynccontextmanager
    async def echo(self, query: Query) -> AsyncIterator[Echo]:
        self.queries.append(query)
        self._count(1)
        try:
            yield Echo()
        finally:
            self._count(-1)

    @asynccontextmanager
    async def refuse(self, query: Query) -> AsyncIterator[Echo]:
        raise SessionRefused("it does not run")
        yield Echo()

    @asynccontextmanager
    async def connect(self, query: Query) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_shout, far)
            yield near
            nursery.cancel_scope.cancel()

    async def until_open(self, count: int) -> None:
        with trio.fail_after(5):
            while self.open != count:
                await self.moved.wait()


async def _shout(stream: trio.StapledStream[Any, Any]) -> None:
    while data := await stream.receive_some():
        await stream.send_all(bytes(data).upper())
    await stream.send_eof()


@asynccontextmanager
async def two_machines() -> AsyncIterator[tuple[Machine, Machine]]:
    async with memory_fabric(2) as fabric:
        machines = [Machine(node) for node in fabric.nodes]
        await fabric.connected()
        yield machines[0], machines[1]


@pytest.mark.parametrize("where", [0, 1])
async def test_a_session_here_and_on_another_machine(where: int, autojump_clock: Any) -> None:
    async with two_machines() as machines:
        here, there = machines[0], machines[where]
        async with here.sessions.open(there.node.id, EXEC, {"uid": "u", "command": ["cat"]}) as session:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.send, channels.STDIN, b"x" * 100_000)
                got = b""
                while len(got) < 100_000:
                    channel, payload = await session.receive()
                    assert channel == channels.STDOUT
                    got += payload
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.send, *channels.END_OF_STDIN)
                assert await session.receive() == channels.exited(7)
        assert there.queries == [{"uid": "u", "command": ["cat"]}]
        await there.until_open(0)


async def test_who_leaves_ends_the_session_on_the_other_machine(autojump_clock: Any) -> None:
    async with two_machines() as (here, there):
        async with here.sessions.open(there.node.id, EXEC, {}):
            await there.until_open(1)
        await there.until_open(0)


async def test_a_refusal_keeps_its_words(autojump_clock: Any) -> None:
    async with two_machines() as (here, there):
        for machine in (here, there):
            with pytest.raises(SessionRefused, match=r"^it does not run$"):
                async with here.sessions.open(machine.node.id, ATTACH, {}):
                    pass


async def test_a_frame_of_the_wrong_way_ends_the_session_with_an_error(autojump_clock: Any) -> None:
    async with two_machines() as (here, there):
        async with here.sessions.open(there.node.id, EXEC, {}) as session:
            await session.send(channels.STDOUT, b"?")
            with pytest.raises(SessionRefused, match=r"session.channel"):
                channels.parse_result((await session.receive())[1])
        await there.until_open(0)


@pytest.mark.parametrize("wire", [b"", b"\x00\x00\x00\x00\x00", b"\x01\xff\xff\xff\xff"])
async def test_a_machine_that_answers_nonsense_or_ends_is_an_error(wire: bytes) -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(wire) if wire else None
    await far.send_eof()
    with pytest.raises(SessionRefused):
        await _RemoteSession(near).receive()


@pytest.mark.parametrize("where", [0, 1])
async def test_a_connection_each_way_with_its_end(where: int, autojump_clock: Any) -> None:
    async with two_machines() as machines:
        peer = machines[where].node.id
        with trio.fail_after(5):
            await _talk(machines[0], peer)


async def _talk(machine: Machine, peer: PeerId) -> None:
    async with machine.sessions.forward(peer, {"uid": "u", "port": 80}) as stream:
        await stream.send_all(b"abc")
        await stream.send_eof()
        got = b""
        while data := await stream.receive_some():
            got += bytes(data)
        assert got == b"ABC"


@pytest.mark.parametrize("handler", ["_on_session", "_on_forward"])
async def test_a_machine_without_the_role_gets_nothing(handler: str, autojump_clock: Any) -> None:
    @define
    class Stranger:
        roles: frozenset[str] = frozenset({"run"})
        peer: str = "stranger"
        method: str = EXEC
        body: object = None

    async with two_machines() as (here, _):
        with pytest.raises(CallRefused, match="has no role 'submit'"):
            await getattr(here.sessions, handler)(Stranger())
        assert here.queries == []
