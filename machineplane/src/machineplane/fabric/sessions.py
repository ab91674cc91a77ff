"""Sessions with pods wherever they run: `exec` and `attach` by frames, `forward` as the bytes of a connection."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio

from machineplane import channels
from machineplane.channels import Frame, Session, SessionRefused
from machineplane.fabric.frames import FROM_POD, TO_POD, FrameDecoder, encode_frame
from magik_mesh import Call, CallRefused, MeshError, Node, RpcFailed
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId

EXEC = "/magik/pod/exec/1.0.0"
ATTACH = "/magik/pod/attach/1.0.0"
FORWARD = "/magik/pod/forward/1.0.0"

OPEN_TIMEOUT_S = 15.0
"""For the answer that a session has begun; a guess: libcrun takes 4 ms for a process, a busy machine far longer."""

_READ_BYTES = channels.MAX_PAYLOAD

Query = Mapping[str, Any]
OpenSession = Callable[[Query], AbstractAsyncContextManager[Session]]
OpenStream = Callable[[Query], AbstractAsyncContextManager[trio.abc.HalfCloseableStream]]


class Sessions:
    """Both ends. ``openers`` are this machine's own exec and attach by method, ``connect`` makes a connection in a pod."""

    def __init__(self, node: Node, openers: Mapping[str, OpenSession], connect: OpenStream) -> None:
        self._node = node
        self._openers = openers
        self._connect = connect
        for method in openers:
            node.handle(method, self._on_session)
        node.handle(FORWARD, self._on_forward)

    @asynccontextmanager
    async def open(self, peer: PeerId, method: str, query: Query) -> AsyncIterator[Session]:
        """A session with a pod of ``peer``; leaving the context ends it. Raises SessionRefused."""
        if peer == self._node.id:
            async with self._openers[method](query) as session:
                yield session
            return
        try:
            async with self._node.open_call(peer, method, dict(query), timeout=OPEN_TIMEOUT_S) as (_, stream):
                yield _RemoteSession(stream)
        except MeshError as error:
            raise _refused(error) from error

    @asynccontextmanager
    async def forward(self, peer: PeerId, query: Query) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        """A connection to a port inside a pod of ``peer``. Raises SessionRefused."""
        if peer == self._node.id:
            async with self._connect(query) as stream:
                yield stream
            return
        try:
            async with self._node.open_call(peer, FORWARD, dict(query), timeout=OPEN_TIMEOUT_S) as (
                _,
                stream,
            ):
                yield stream
        except MeshError as error:
            raise _refused(error) from error

    # -- for others

    async def _on_session(self, call: Call) -> None:
        query = _query(call)
        try:
            async with self._openers[call.method](query) as session:
                await call.reply({})
                await _serve(session, call.stream)
        except SessionRefused as error:
            raise CallRefused("session", str(error)) from error

    async def _on_forward(self, call: Call) -> None:
        query = _query(call)
        try:
            async with self._connect(query) as stream:
                await call.reply({})
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_copy, call.stream, stream)
                    nursery.start_soon(_copy, stream, call.stream)
        except SessionRefused as error:
            raise CallRefused("session", str(error)) from error


def _refused(error: MeshError) -> SessionRefused:
    return SessionRefused(error.message if isinstance(error, RpcFailed) else str(error))


def _query(call: Call) -> Query:
    if "submit" not in call.roles:
        raise CallRefused("membership.role", f"{call.peer} has no role 'submit'")
    body = call.body if isinstance(call.body, Mapping) else {}
    return {str(key): value for key, value in body.items()}


async def _copy(source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream) -> None:
    """One way of a connection, with its end."""
    while data := await source.receive_some(_READ_BYTES):
        await sink.send_all(data)
    await sink.send_eof()


async def _serve(session: Session, stream: trio.abc.Stream) -> None:
    """Between a process here and the machine that asked, until the process ends or the machine leaves."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_take_in, session, stream, nursery.cancel_scope)
        while True:
            channel, payload = await session.receive()
            await stream.send_all(encode_frame(channel, payload))
            if channel == channels.RESULT:
                nursery.cancel_scope.cancel()
                return


async def _take_in(session: Session, stream: trio.abc.Stream, leaving: trio.CancelScope) -> None:
    decoder = FrameDecoder(TO_POD)
    try:
        while data := await stream.receive_some(_READ_BYTES):
            for channel, payload in decoder.feed(bytes(data)):
                await session.send(channel, payload)
    except (RemoteProtocolError, SessionRefused) as error:
        await stream.send_all(encode_frame(*channels.failed(str(error))))
    leaving.cancel()


class _RemoteSession:
    """The asking side."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._decoder = FrameDecoder(FROM_POD)
        self._frames: deque[Frame] = deque()  # of one read

    async def send(self, channel: int, payload: bytes) -> None:
        """See `Session`. A machine that takes no more because the process has ended says so by its result."""
        try:
            await self._stream.send_all(encode_frame(channel, payload))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.lowlevel.checkpoint()

    async def receive(self) -> Frame:
        """See `Session`. Raises SessionRefused if the machine is lost, or sends nonsense."""
        while not self._frames:
            try:
                data = await self._stream.receive_some(_READ_BYTES)
                self._frames += self._decoder.feed(bytes(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError, RemoteProtocolError) as error:
                raise SessionRefused(f"the machine of the pod was lost: {error}") from error
            if not data:
                raise SessionRefused("the machine of the pod ended the session without a result")
        return self._frames.popleft()
