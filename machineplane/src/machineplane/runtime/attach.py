"""Attaching to a container's own process: its output from now on, and its stdin if it has one."""

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import trio

from machineplane import channels
from machineplane.channels import Frame, Session
from machineplane.runtime.bundle.supported import all_containers
from machineplane.runtime.container_task import bundle_path
from machineplane.runtime.errors import HelperError, SessionUnavailable
from machineplane.runtime.execs import running_container
from machineplane.runtime.session import Wait, open_session
from machineplane.runtime.stdio import Stdio, make_stdio
from machineplane.runtime.worker import PodWorker

PIPE_BYTES = 1024 * 1024
"""How far a client may be behind the container's output before it is cut off: what Linux gives a pipe at most."""

GONE_S = 2.0
"""How long the end of the container is waited for when its output has ended; else the client was cut off."""


@asynccontextmanager
async def open_attach(worker: PodWorker, container: str, wanted: frozenset[int]) -> AsyncIterator[Session]:
    """Attach to the ``wanted`` channels; leaving the context changes nothing for the container.

    Raises:
        SessionUnavailable: it does not run, or has no stdin.
    """
    container_id = running_container(worker, container)
    spec = next(c for c, _ in all_containers(worker.book.status.pod) if c["name"] == container)
    stdio = make_stdio(wanted - {channels.STDIN})
    if spec.get("tty"):
        stdio.resized = partial(worker.link.resize, container_id)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(stdio.aclose)
        if channels.STDIN in wanted:
            if not spec.get("stdin"):
                raise SessionUnavailable(
                    f"container {container} has no stdin: its spec does not say `stdin: true`"
                )
            _open_input(stack, worker, container, container_id, stdio, once=bool(spec.get("stdinOnce")))
        try:
            _, stdout, stderr = stdio.given
            for fd in (stdout, stderr):
                with suppress(OSError):  # a smaller pipe will do
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            await stack.enter_async_context(worker.link.attached(container_id, stdout, stderr))
        except HelperError as error:
            raise SessionUnavailable(str(error)) from error
        stdio.let_go()
        yield await stack.enter_async_context(
            open_session(stdio, _waiting(worker, container_id, bool(stdio.outputs)))
        )


def _open_input(
    stack: AsyncExitStack, worker: PodWorker, container: str, container_id: str, stdio: Stdio, *, once: bool
) -> None:
    link = worker.link
    fifo = bundle_path(worker.book.folder, container, container_id) / "stdin"
    try:
        stdio.input = trio.lowlevel.FdStream(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise SessionUnavailable(f"nobody reads the stdin of container {container} any more") from error
    if not once:
        return

    async def end() -> None:
        with trio.CancelScope(shield=True):
            await link.end_input(container_id)

    stdio.input_ended = end
    stack.push_async_callback(end)


def _waiting(worker: PodWorker, container_id: str, listening: bool) -> Wait:
    link = worker.link

    async def wait(silent: trio.Event) -> Frame:
        result = channels.failed("this client did not take the container's output in time, and was cut off")

        async def cut_off() -> None:
            await silent.wait()
            await trio.sleep(GONE_S)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            if listening:
                nursery.start_soon(cut_off)
            await link.wait_exit(container_id)
            result = channels.exited(
                0
            )  # as Kubernetes has it: the container's exit code is in the pod's status
            nursery.cancel_scope.cancel()
        return result

    return wait
