"""What can go wrong in a mesh node, as one small tree.

Each message says what happened, to what, and what to do where there is something to do.
"""

from __future__ import annotations

from magik_proto.identity import PeerId


class MeshError(Exception):
    """Base of all errors of this package."""


class ConfigError(MeshError):
    """A `NodeConfig` that cannot work; the text names the field."""


class CannotListen(MeshError):
    """The UDP port could not be bound."""

    def __init__(self, host: str, port: int, cause: OSError) -> None:
        self.host, self.port, self.cause = host, port, cause
        super().__init__(
            f"cannot listen on UDP {host}:{port}: {cause.strerror or cause}; "
            "choose another --mesh-port, or stop what holds it"
        )


class PeerUnreachable(MeshError):
    """There is no way to `peer` now: unknown, gone, refused, or its connection broke during the call.

    A call that ends so may or may not have been carried out by the peer.
    """

    def __init__(self, peer: PeerId, reason: str) -> None:
        self.peer, self.reason = peer, reason
        super().__init__(f"peer {peer} is unreachable: {reason}")


class WrongIdentity(PeerUnreachable):
    """The machine at `address` proved another identity than the one that was dialled."""

    def __init__(self, expected: PeerId, actual: PeerId, address: str) -> None:
        self.expected, self.actual, self.address = expected, actual, address
        super().__init__(expected, f"the machine at {address} answered as {actual}")


class RpcFailed(MeshError):
    """The peer answered the call with an error.

    `code` is one of the mesh's own (see `magik_mesh.codes`) or of the handler's choosing.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}" if message else code)


class RpcTimeout(MeshError):
    """No answer within the caller's time-out. The peer was told to stop; it may have finished before."""

    def __init__(self, peer: PeerId, method: str, timeout: float) -> None:
        self.peer, self.method, self.timeout = peer, method, timeout
        super().__init__(f"{method} at {peer}: no answer within {timeout:g} s")


class CallRefused(MeshError):
    """Raised by a *handler* to answer the call with an error of its choosing.

    `code` is a short slug that programs compare; `message` is for people.
    """

    def __init__(self, code: str, message: str = "") -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}" if message else code)
