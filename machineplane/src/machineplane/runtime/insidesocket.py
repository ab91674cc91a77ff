"""Sockets made inside a pod's network namespace and used by the daemon."""

import os
import socket

import trio

from machineplane.linux.netns import in_netns_fd


def socket_inside(infra_pid: int, family: int) -> trio.socket.SocketType:
    """A socket of the pod's namespace. Never one of our own, even if the process id has become another's. Blocks."""
    fd = os.open(f"/proc/{infra_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.path.samestat(os.fstat(fd), os.stat("/proc/self/ns/net")):
            raise ProcessLookupError(None, "the pod's network is gone")
        return trio.socket.from_stdlib_socket(
            in_netns_fd(fd, lambda: socket.socket(family, socket.SOCK_STREAM))
        )
    finally:
        os.close(fd)
