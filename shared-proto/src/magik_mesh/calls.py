"""Calls of ours on connections in use: the bookkeeping, and the way to a stream."""

from __future__ import annotations

import trio
from attrs import define

from magik_mesh import codes
from magik_mesh.clock import Clock
from magik_mesh.errors import PeerUnreachable, RpcFailed
from magik_mesh.links import Link
from magik_mesh.stats import Stats
from magik_mesh.streams import STREAM_ERRORS
from magik_proto.errors import RemoteProtocolError
from trio_quic import Stream


@define
class Use:
    """A call of ours on a connection, for the bookkeeping; what breaks it becomes a `MeshError`."""

    link: Link
    stats: Stats
    clock: Clock

    def __enter__(self) -> None:
        self.link.calls += 1
        self.stats.calls_sent += 1

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        link = self.link
        give_back(link)
        link.last_used = self.clock.now()
        if isinstance(error, STREAM_ERRORS):
            raise PeerUnreachable(link.peer, str(error)) from error
        if isinstance(error, RemoteProtocolError):
            text = f"the answer of {link.peer} cannot be understood: {error}"
            raise RpcFailed(codes.MALFORMED, text) from error


async def open_stream(link: Link, at: float) -> Stream:
    """Without a checkpoint where a stream is to be had, for the call that follows has one; `trio.TooSlowError` when there is
    none until `at`.
    """
    try:
        return link.connection.open_stream_nowait()
    except trio.WouldBlock:
        with trio.fail_at(at):
            return await link.connection.open_stream()


def give_back(link: Link) -> None:
    link.calls -= 1
