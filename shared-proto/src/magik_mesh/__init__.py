"""A mesh node: connections, calls, gossip and presence among the members of a fabric, over `trio_quic`."""

from magik_mesh.clock import Clock, SystemClock
from magik_mesh.config import MeshLimits, NodeConfig, RelayLimits, Timings
from magik_mesh.errors import (
    CallRefused,
    CannotListen,
    ConfigError,
    MeshError,
    PeerUnreachable,
    RpcFailed,
    RpcTimeout,
    WrongIdentity,
)
from magik_mesh.node import Node
from magik_mesh.opening import open_node
from magik_mesh.reach import Reach
from magik_mesh.roster import PeerDown, PeerEvent, PeerInfo, PeerUp
from magik_mesh.rpc_client import ReplyStream
from magik_mesh.rpc_server import Call, CallStream, Handler
from magik_mesh.stats import Stats
from magik_proto.gossip_types import Accept, GossipConfig, Judgement, Verdict

__all__ = [
    "Accept",
    "Call",
    "CallRefused",
    "CallStream",
    "CannotListen",
    "Clock",
    "ConfigError",
    "GossipConfig",
    "Handler",
    "Judgement",
    "MeshError",
    "MeshLimits",
    "Node",
    "NodeConfig",
    "PeerDown",
    "PeerEvent",
    "PeerInfo",
    "PeerUnreachable",
    "PeerUp",
    "Reach",
    "RelayLimits",
    "ReplyStream",
    "RpcFailed",
    "RpcTimeout",
    "Stats",
    "SystemClock",
    "Timings",
    "Verdict",
    "WrongIdentity",
    "open_node",
]
