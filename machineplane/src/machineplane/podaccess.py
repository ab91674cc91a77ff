"""The way into this machine's pods: what a query of `fabric.sessions` means to the runtime. Joins the two rooms."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from machineplane import channels
from machineplane.channels import Session, SessionRefused
from machineplane.fabric.sessions import Query
from machineplane.runtime import ExecRequest, PodError, Runtime

_STREAMS = {"stdin": channels.STDIN, "stdout": channels.STDOUT, "stderr": channels.STDERR}


class PodAccess:
    """Opens sessions and connections. Queries come from other machines too: everything in them is checked here.

    All of its methods raise SessionRefused on entering.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @asynccontextmanager
    async def execute(self, query: Query) -> AsyncIterator[Session]:
        """Run a command: ``uid``, ``container``, ``command``, and the streams that are wanted, or ``tty``."""
        command = query.get("command")
        if not (isinstance(command, list) and command and all(_is_word(word) for word in command)):
            raise SessionRefused("a command is expected: a list of words")
        flags = {name: query.get(name) is True for name in (*_STREAMS, "tty")}
        request = ExecRequest(command=tuple(command), **flags)
        try:
            async with self._runtime.execute(*_container(query), request) as session:
                yield session
        except PodError as error:
            raise SessionRefused(str(error)) from error

    @asynccontextmanager
    async def attach(self, query: Query) -> AsyncIterator[Session]:
        """Attach to a container's own process: ``uid``, ``container``, and the streams that are wanted."""
        wanted = frozenset(channel for name, channel in _STREAMS.items() if query.get(name) is True)
        try:
            async with self._runtime.attach(*_container(query), wanted) as session:
                yield session
        except PodError as error:
            raise SessionRefused(str(error)) from error

    @asynccontextmanager
    async def connect(self, query: Query) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        """Connect to a ``port`` inside the pod ``uid``."""
        port = query.get("port")
        if type(port) is not int or not 0 < port < 65536:
            raise SessionRefused("a port from 1 to 65535 is expected")
        try:
            async with self._runtime.connect(str(query.get("uid", "")), port) as stream:
                yield stream
        except PodError as error:
            raise SessionRefused(str(error)) from error


def _is_word(value: Any) -> bool:
    """Whether a value can be an argument of a program, which ends at its first NUL."""
    return isinstance(value, str) and "\0" not in value


def _container(query: Query) -> tuple[str, str]:
    return str(query.get("uid", "")), str(query.get("container", ""))
