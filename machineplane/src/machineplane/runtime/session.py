"""A session with a process in a container: what it writes, in order, and at last how it ended."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from machineplane import channels
from machineplane.channels import Frame, SessionRefused
from machineplane.runtime.errors import RuntimeFault
from machineplane.runtime.stdio import Stdio

Wait = Callable[[trio.Event], Awaitable[Frame]]
"""Waits for the result; the event says that all outputs have come to their end before it."""

READ_BYTES = channels.MAX_PAYLOAD
STALL_S = 90.0
"""How long a process may leave its full stdin unread while more waits; then the session ends. Behind a full stdin nobody
sees whether the client is still there; kubectl itself gives up 61 s after its pings are no longer answered."""

LINGER_S = 0.2
"""How long output is waited for when the process has ended but others hold its descriptors; a guess. A pipe has it all at
once, the kernel hands a terminal's last bytes over with a short delay."""

MAX_DRAIN = 1024 * 1024
"""Bytes still taken then: far more than pipe or terminal hold, so that only what others go on writing is cut."""


class ProcessSession:
    """Implements `machineplane.channels.Session` for one process. Use :func:`open_session`."""

    def __init__(self, stdio: Stdio, frames: trio.MemoryReceiveChannel[Frame]) -> None:
        self._stdio = stdio
        self._frames = frames

    async def send(self, channel: int, payload: bytes) -> None:
        """Stdin, its end, or a size; all else is ignored.

        Raises:
            SessionRefused: the process did not read for :data:`STALL_S`.
        """
        if channel == channels.STDIN:
            await self._write(payload)
        elif (channel, payload) == channels.END_OF_STDIN:
            await self._stdio.close_input()
        elif channel == channels.RESIZE and (size := channels.parse_size(payload)):
            await self._stdio.resize(*size)

    async def _write(self, payload: bytes) -> None:
        if self._stdio.input is None or not payload:
            return
        try:
            with trio.fail_after(STALL_S):
                await self._stdio.input.send_all(payload)
        except trio.TooSlowError as error:
            raise SessionRefused(f"the process has not read its stdin for {STALL_S:.0f} s") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it has closed its stdin or ended: what is sent to it goes nowhere

    async def receive(self) -> Frame:
        """The next output; at last the result."""
        return await self._frames.receive()


@asynccontextmanager
async def open_session(stdio: Stdio, wait: Wait) -> AsyncIterator[ProcessSession]:
    """Read ``stdio``'s outputs until they end or ``wait`` says what the result is. Closes ``stdio``."""
    sender, receiver = trio.open_memory_channel[Frame](0)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_all, stdio, wait, sender)
            yield ProcessSession(stdio, receiver)
            nursery.cancel_scope.cancel()
    finally:
        await stdio.aclose()


async def _read_all(
    stdio: Stdio,
    wait: Wait,
    sender: trio.MemorySendChannel[Frame],
) -> None:
    readers = [_Reader(channel, stream, sender) for channel, stream in stdio.outputs.items()]
    silent = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_all, readers, silent)
        try:
            result = await wait(silent)
        except RuntimeFault as error:
            result = channels.failed(str(error))
        for reader in readers:
            reader.finish()
    await sender.send(result)


async def _run_all(readers: Sequence["_Reader"], silent: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(reader.run)
    silent.set()


class _Reader:
    """Passes one output on."""

    def __init__(
        self, channel: int, stream: trio.lowlevel.FdStream, sender: trio.MemorySendChannel[Frame]
    ) -> None:
        self._channel = channel
        self._stream = stream
        self._sender = sender
        self._waiting = trio.CancelScope()
        self._ended = False

    def finish(self) -> None:
        """The process has ended: take only what it has left behind."""
        self._ended = True
        self._waiting.deadline = trio.current_time() + LINGER_S

    async def run(self) -> None:
        """Until the output's end."""
        left = MAX_DRAIN
        while left > 0 and (chunk := await self._read()):
            await self._sender.send((self._channel, chunk))
            left -= len(chunk) if self._ended else 0

    async def _read(self) -> bytes:
        self._waiting = trio.CancelScope()
        if self._ended:
            self._waiting.deadline = trio.current_time() + LINGER_S
        with self._waiting, suppress(trio.BrokenResourceError):  # a terminal's end is an error (EIO)
            return bytes(await self._stream.receive_some(READ_BYTES))
        return b""
