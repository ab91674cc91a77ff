"""The network of a machine's pods: namespaces, bridge, addresses, masquerading, all by netlink, no program
started.
"""

from machineplane.podnet.errors import (
    BridgeConflict,
    LinkFailed,
    PodGone,
    PodNetworkError,
    PortsExhausted,
    SubnetExhausted,
)
from machineplane.podnet.network import BridgedPodNetwork, PodAddress, PodNetConfig, open_pod_network

__all__ = [
    "BridgeConflict",
    "BridgedPodNetwork",
    "LinkFailed",
    "PodAddress",
    "PodGone",
    "PodNetConfig",
    "PodNetworkError",
    "PortsExhausted",
    "SubnetExhausted",
    "open_pod_network",
]
