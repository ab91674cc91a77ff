"""Connections to ports inside a pod: sockets that were made in its network namespace and are used by the daemon."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from machineplane.runtime.errors import SessionUnavailable
from machineplane.runtime.insidesocket import socket_inside
from machineplane.runtime.worker import PodWorker

CONNECT_TIMEOUT_S = 5.0
"""Within one machine's kernel a connection is there at once, unless the program's backlog is full."""

_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


@asynccontextmanager
async def open_connection(worker: PodWorker, port: int) -> AsyncIterator[trio.SocketStream]:
    """A connection to the pod's own loopback, as Kubernetes makes it; closed with the context.

    Raises:
        SessionUnavailable: the pod does not run, or nothing listens there.
    """
    pod = worker.book.status
    if pod.phase != "Running":
        raise SessionUnavailable(f"pod {pod.name} is {pod.phase}, not running")
    sock = await _connected(worker, port)
    async with trio.SocketStream(sock) as stream:
        yield stream


async def _connected(worker: PodWorker, port: int) -> trio.socket.SocketType:
    refusals = []
    for family, host in _LOOPBACKS:
        try:
            sock = await trio.to_thread.run_sync(socket_inside, worker.book.record.infra_pid, family)
        except OSError as error:
            refusals.append(f"{host}: {_reason(error)}")
            continue
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                await sock.connect((host, port))
            return sock
        except (OSError, trio.TooSlowError) as error:
            sock.close()
            refusals.append(f"{host}: {_reason(error)}")
        except BaseException:
            sock.close()
            raise
    said = "; ".join(refusals)
    raise SessionUnavailable(f"port {port} of pod {worker.book.status.name} takes no connection ({said})")


def _reason(error: OSError | trio.TooSlowError) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
    return (os.strerror(error.errno) if error.errno else str(error)).lower()
