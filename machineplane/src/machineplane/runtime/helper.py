"""The daemon's side of a helper process: requests with numbered replies, and events, over one packet socket."""

import array
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from machineplane.runtime.errors import HelperError, HelperLost
from machineplane.runtime.shim.wire import MAX_MESSAGE, Message, WireError, decode, encode

REQUEST_TIMEOUT_S = 60.0
"""How long one request may take: making a container is 20 ms, and a machine under heavy load a hundred times slower."""

RESTART_S = 1.0
"""How long a restarted helper has for what was asked before: what its predecessor had taken in is never answered."""

MAX_EVENTS = 256
"""Events not yet taken. Beyond it the connection counts as lost, and its user asks for the whole status again."""


class HelperClient:
    """One connection to a shim, or to the zygote. Use :func:`connected`."""

    def __init__(self, sock: trio.socket.SocketType, what: str) -> None:
        self._sock = sock
        self._what = what
        self._next = 0
        self._waiting: dict[int, tuple[trio.Event, list[Message]]] = {}
        self._events_in, self.events = trio.open_memory_channel[Message](MAX_EVENTS)
        self._send_lock = trio.Lock()
        self.lost = trio.Event()

    async def request(self, op: str, *, fds: Sequence[int] = (), **fields: Any) -> Message:
        """Ask for something and wait for the answer. The helper gets copies of the descriptors ``fds``.

        Raises:
            HelperLost: the helper is gone, or did not answer in time.
            HelperError: it refused; its reason.
        """
        if self.lost.is_set():
            raise HelperLost(f"{self._what} is gone")
        self._next += 1
        number, arrived = self._next, trio.Event()
        box: list[Message] = []
        self._waiting[number] = (arrived, box)
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                async with self._send_lock:
                    await self._send(encode({"id": number, "op": op, **fields}), fds)
                await arrived.wait()
                if not box and not self.lost.is_set():
                    await self._wait_again(number, box)
        except trio.TooSlowError as error:
            raise HelperLost(
                f"{self._what} did not answer `{op}` within {REQUEST_TIMEOUT_S:.0f} s"
            ) from error
        except OSError as error:
            raise HelperLost(f"{self._what} is gone ({error.strerror})") from error
        except WireError as error:
            raise HelperError(str(error)) from error
        finally:
            del self._waiting[number]
        if not box:
            raise HelperLost(f"{self._what} went away during `{op}`")
        if not box[0].get("ok"):
            raise HelperError(str(box[0].get("error", "refused without a reason")))
        return box[0]

    async def _wait_again(self, number: int, box: list[Message]) -> None:
        """The helper was restarted: what it had not taken in before its end, it answers now."""
        arrived = trio.Event()
        self._waiting[number] = (arrived, box)
        with trio.move_on_after(RESTART_S):
            await arrived.wait()

    async def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        await self._sock.sendmsg([packet], rights)

    async def receive(self) -> None:
        """Take packets until the helper goes away. Runs as a task beside the requests."""
        try:
            while raw := await self._sock.recv(MAX_MESSAGE + 1):
                self._dispatch(decode(raw))
        except (OSError, WireError, trio.WouldBlock, trio.ClosedResourceError):
            pass  # the answer is the same for all: this connection is over
        finally:
            self.lost.set()
            self._events_in.close()
            for arrived, _ in self._waiting.values():
                arrived.set()

    def _dispatch(self, message: Message) -> None:
        if message.get("event") == "restarted":
            structlog.get_logger(room="runtime").warning("helper-restarted", helper=self._what)
            for arrived, _ in self._waiting.values():
                arrived.set()  # without an answer, as yet
            return
        if "event" in message:
            self._events_in.send_nowait(message)
            return
        waiting = self._waiting.get(message.get("id", 0))
        if waiting is not None:
            waiting[1].append(message)
            waiting[0].set()

    def close(self) -> None:
        """End the connection; the helper goes on."""
        self._sock.close()


async def connect(path: str) -> trio.socket.SocketType:
    """A connection to the Unix packet socket at ``path``.

    Raises:
        HelperLost: nothing listens there.
    """
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET)
    try:
        await sock.connect(path)
    except OSError as error:
        sock.close()
        raise HelperLost(f"nothing answers at {path} ({error.strerror})") from error
    return sock


@asynccontextmanager
async def connected(sock: trio.socket.SocketType, what: str) -> AsyncIterator[HelperClient]:
    """A client that receives while the context is open; closes the socket after it."""
    client = HelperClient(sock, what)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive)
        try:
            yield client
        finally:
            client.close()
            nursery.cancel_scope.cancel()
