"""Running one more process in a container of a pod."""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio
from attrs import frozen

from machineplane import channels
from machineplane.channels import Frame, Session
from machineplane.runtime.config import RuntimeConfig
from machineplane.runtime.engine import NO_EXEC
from machineplane.runtime.errors import HelperError, SessionUnavailable
from machineplane.runtime.session import open_session
from machineplane.runtime.shim.wire import MAX_MESSAGE
from machineplane.runtime.stdio import Stdio, console_socket, make_stdio, receive_console
from machineplane.runtime.worker import PodWorker

MAX_CONSOLE = 1_000_000_000
"""Names for the sockets of consoles are drawn below it."""

MAX_COMMAND = MAX_MESSAGE // 8
"""Characters of a command with its arguments: each may take six bytes of JSON in a message to the shim."""


@frozen(kw_only=True)
class ExecRequest:
    """What to run, and which of its streams are wanted. A terminal has no stderr of its own."""

    command: tuple[str, ...]
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    tty: bool = False

    @property
    def wanted(self) -> frozenset[int]:
        """The channels that need pipes: none beside a terminal."""
        if self.tty:
            return frozenset()
        asked = {channels.STDIN: self.stdin, channels.STDOUT: self.stdout, channels.STDERR: self.stderr}
        return frozenset(channel for channel, yes in asked.items() if yes)


@asynccontextmanager
async def open_exec(
    config: RuntimeConfig, worker: PodWorker, container: str, request: ExecRequest
) -> AsyncIterator[Session]:
    """Run it; leaving the context ends it.

    Raises:
        SessionUnavailable: the container does not run, or the command cannot be.
    """
    if refusal := NO_EXEC.get(worker.book.status.engine):
        raise SessionUnavailable(refusal)
    container_id = running_container(worker, container)
    if sum(map(len, request.command)) > MAX_COMMAND:
        raise SessionUnavailable(f"the command is longer than {MAX_COMMAND} characters")
    try:
        stdio = make_stdio(request.wanted)
    except OSError as error:  # no descriptors left
        raise SessionUnavailable(f"no pipes can be made for the process: {error.strerror}") from error
    async with AsyncExitStack() as stack:
        stack.push_async_callback(stdio.aclose)
        try:
            number = await _run(stack, config, worker, container_id, request, stdio)
        except (HelperError, OSError) as error:
            raise SessionUnavailable(str(error)) from error
        link = worker.link

        async def wait(_: trio.Event) -> Frame:
            return channels.exited(await link.wait_executed(number))

        yield await stack.enter_async_context(open_session(stdio, wait))


async def _run(
    stack: AsyncExitStack,
    config: RuntimeConfig,
    worker: PodWorker,
    container_id: str,
    request: ExecRequest,
    stdio: Stdio,
) -> int:
    link, command = worker.link, request.command
    if not request.tty:
        number = await stack.enter_async_context(link.execute(container_id, command, stdio.given))
        stdio.let_go()
        return number
    path = config.console_path(worker.uid, secrets.randbelow(MAX_CONSOLE))
    with console_socket(path) as listener:
        number = await stack.enter_async_context(link.execute(container_id, command, stdio.given, str(path)))
        stdio.let_go()
        stdio.take_terminal(await receive_console(listener))
    return number


def running_container(worker: PodWorker, name: str) -> str:
    """The id of a container that runs.

    Raises:
        SessionUnavailable: there is none of that name, or it does not run.
    """
    found = next((c for c in worker.book.status.containers if c.name == name), None)
    pod = worker.book.status.name
    if found is None:
        raise SessionUnavailable(f"pod {pod} has no container {name!r}")
    if found.state != "running":
        raise SessionUnavailable(f"container {name} of pod {pod} is {found.state}, not running")
    return found.id
