"""Opening a mesh node: its socket, its endpoint, its tasks, and the end of them all.

::

    async with open_node(NodeConfig(host="0.0.0.0", port=4001, identity=identity, policy=policy)) as node:
        node.handle("/magik/bid/1.0.0", on_bid)        # before the first await: nothing is served until then
        node.subscribe("magik-fabric", judge)
        answer = await node.call(peer, "/magik/bid/1.0.0", body)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from magik_mesh.clock import Clock, SystemClock
from magik_mesh.config import NodeConfig
from magik_mesh.errors import CannotListen
from magik_mesh.node import Node
from magik_mesh.relay_socket import SwitchSocket
from magik_mesh.survey import SideSocket
from magik_mesh.tls import Admitted, admission, make_credentials
from trio_quic import DatagramSocket, Endpoint, Limits, open_endpoint, open_udp_socket

# Bytes of the buffers of a port that only sends probes.
_SIDE_BUFFER = 4096


@asynccontextmanager
async def open_node(
    config: NodeConfig,
    *,
    clock: Clock | None = None,
    socket: DatagramSocket | None = None,
    side_socket: SideSocket | None = None,
) -> AsyncIterator[Node]:
    """A running node. Leaving the context says goodbye to all peers and ends every task of the node.

    Register handlers and subscriptions before the first await: nothing is dialled or accepted until then.
    `clock`, `socket` and `side_socket` (for probes) replace time, randomness and UDP sockets in tests. Raises
    `CannotListen` or `ConfigError`.
    """
    clock = clock or SystemClock()
    log: FilteringBoundLogger = structlog.get_logger().bind(plane=config.plane)
    async with AsyncExitStack() as stack:
        if socket is None:
            socket, side_socket = _bind(config), partial(open_udp_socket, config.host, 0, _SIDE_BUFFER)
        switch = SwitchSocket(socket, config.relay.paths, config.relay.queue)
        stack.callback(switch.close)
        endpoint = await _listen(stack, config, clock, switch)
        switch.on_arrival = endpoint.take_in
        nursery = await stack.enter_async_context(trio.open_nursery())
        node = Node(config, clock, endpoint, switch, side_socket, nursery, log)
        node.start()
        if config.policy.root is None:
            log.warning("the fabric is open: anyone who reaches this port is a member", port=node.address[1])
        try:
            yield node
        finally:
            node.stop()


async def _listen(
    stack: AsyncExitStack, config: NodeConfig, clock: Clock, socket: DatagramSocket
) -> Endpoint[Admitted]:
    limits = Limits(
        idle_timeout=config.timings.idle_timeout,
        keep_alive=config.timings.keep_alive,
        max_streams=config.limits.streams,
        # Beside those in use: ones that are being dialled, greeted, refused, or replaced.
        max_connections=2 * config.max_connections + 2 * config.limits.briefs + 64,
    )
    opening = open_endpoint(
        config.host,
        config.port,
        credentials=make_credentials(config),
        alpn=config.plane,
        verify_peer=admission(config, clock),
        limits=limits,
        socket=socket,
        core=config.core,
    )
    return await stack.enter_async_context(opening)


def _bind(config: NodeConfig) -> DatagramSocket:
    try:
        return open_udp_socket(config.host, config.port, Limits().socket_buffer)
    except OSError as error:
        raise CannotListen(config.host, config.port, error) from error
