"""A pull that another program on this machine asks the daemon for, by a socket that only root can open.

So `machineplane image pull` has what the daemon has: the other machines, its mirrors and its credentials. Each side sends
lines of JSON: the request, then progress, and at last what became of it.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
import trio

from machineplane.runtime.images.download import Progress, Watch
from machineplane.runtime.images.errors import ImageError, PullFailed
from machineplane.runtime.images.service import ImageService

SOCKET = "images.sock"  # in the run directory
LINE_MAX = 8192  # bytes; a reference has some hundreds of characters, an error less than a thousand
AT_ONCE = 8  # programs served; who comes then waits. A guess
REQUEST_S = 10.0  # for the request, a guess

Json = Mapping[str, Any]


class NoDaemon(Exception):
    """No daemon with this store answers: whoever wants an image has to get it without."""


# -- both


def store_id(path: Path) -> list[int]:
    """What tells two stores apart, also where they are mounted in several places."""
    found = path.stat()
    return [found.st_dev, found.st_ino]


async def _say(stream: trio.SocketStream, value: Json) -> None:
    await stream.send_all(json.dumps(value).encode() + b"\n")


class _Lines:
    """Objects, one a line."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._held = b""

    async def next(self) -> Json | None:
        """None at the end, and at a line that is too long or no object."""
        while b"\n" not in self._held:
            data = await self._stream.receive_some(LINE_MAX)
            if not data or len(self._held) > LINE_MAX:
                return None
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


# -- the daemon's side


async def serve_pulls(path: Path, service: ImageService) -> None:
    """Serve until cancelled. Where the socket cannot be made this is logged, for the daemon can do without it."""
    turns = trio.Semaphore(AT_ONCE)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream, turns:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await _answer(stream, service)

    try:
        with _listening(path) as listener:
            await trio.serve_listeners(serve, [listener])
    except OSError as error:
        structlog.get_logger(room="runtime").warning("no-image-socket", path=str(path), error=str(error))


@contextmanager
def _listening(path: Path) -> Iterator[trio.SocketListener]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)  # at no time may others connect
        try:
            plain.bind(os.fspath(path))
        finally:
            os.umask(before)
        plain.listen(AT_ONCE)
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(plain))
        finally:
            path.unlink(missing_ok=True)


async def _answer(stream: trio.SocketStream, service: ImageService) -> None:
    request: Json | None = None
    lines = _Lines(stream)
    with trio.move_on_after(REQUEST_S):
        request = await lines.next()
    if request is None:
        return
    if request.get("store") != store_id(service.store.path):
        await _say(stream, {"other": str(service.store.path)})
        return
    await _say(stream, {"begun": True})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_leave_with, lines, nursery.cancel_scope)
        await _pull(stream, service, str(request.get("pull", "")))
        nursery.cancel_scope.cancel()


async def _leave_with(lines: _Lines, scope: trio.CancelScope) -> None:
    """A program that goes takes its pull along; what was downloaded is kept for the next."""
    with suppress(trio.BrokenResourceError):
        while await lines.next() is not None:
            pass
    scope.cancel()


async def _pull(stream: trio.SocketStream, service: ImageService, ref: str) -> None:
    sender, receiver = trio.open_memory_channel[Progress](LINE_MAX // 256)

    def watch(progress: Progress) -> None:
        with suppress(trio.WouldBlock):  # a program that reads slowly misses some
            sender.send_nowait(progress)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, stream, receiver)
        try:
            info = await service.pull(ref, watch)
            end: Json = {"ref": info.ref, "digest": info.digest}
        except ImageError as error:
            end = {"error": [error.subject, error.problem, error.remedy]}
        await sender.aclose()
    await _say(stream, end)


async def _tell(stream: trio.SocketStream, progress: trio.MemoryReceiveChannel[Progress]) -> None:
    async for each in progress:
        await _say(stream, {"blob": [each.digest, each.done, each.size, each.source]})


# -- the program's side


async def pull_by_daemon(
    path: Path, store: Path, ref: str, watch: Watch, begun: Callable[[], None]
) -> tuple[str, str]:
    """Have the daemon at ``path`` pull; the complete name and the digest. ``begun`` is called when it does.

    Raises `NoDaemon` where none answers that keeps its images in ``store``, ``PullFailed`` for what went wrong there.
    """
    try:
        stream = await trio.open_unix_socket(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NoDaemon(f"none answers at {path}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise NoDaemon(str(error)) from error
    async with stream:
        try:
            await _say(stream, {"pull": ref, "store": store_id(store)})
            lines = _Lines(stream)
            while (said := await lines.next()) is not None:
                if "begun" in said:
                    begun()
                elif (end := _read(said, watch)) is not None:
                    return end
        except trio.BrokenResourceError as error:
            raise _ended(ref) from error
    raise _ended(ref)


def _read(said: Json, watch: Watch) -> tuple[str, str] | None:
    match said:
        case {"blob": [str(digest), int(done), int(size), str(source)]}:
            watch(Progress(digest, done, size, source))
        case {"ref": str(name), "digest": str(digest)}:
            return name, digest
        case {"error": [str(subject), str(problem), str(remedy)]}:
            raise PullFailed(subject, problem, remedy)
        case {"other": str(where)}:
            raise NoDaemon(f"the daemon here keeps its images in {where}")
    return None


def _ended(ref: str) -> PullFailed:
    return PullFailed(f"image {ref}", "was being pulled by the daemon, which has ended", "try again")
