"""Kernel settings of a pod's own namespaces (``securityContext.sysctls``)."""

import re
from collections.abc import Mapping
from typing import Any

from machineplane.runtime.bundle.hostpolicy import HostPolicy
from machineplane.runtime.errors import PodSpecError

# Kubernetes' safe ones: they act inside the pod's namespaces alone and cost the machine nothing.
SAFE = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_syncookies",
    }
)
# What a namespace has of its own; anything else would be the machine's.
_NAMESPACED = re.compile(r"kernel\.(shm.*|msg.*|sem)|fs\.mqueue\..*|net\..*")
_NAME = re.compile(r"[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*")

# As other runtimes have it: any port may be bound, and ping needs no capability, inside the pod's network.
DEFAULTS = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}


def check_sysctls(security: Mapping[str, Any], where: str, policy: HostPolicy) -> None:
    """Refuse settings that are not a pod's own, or not allowed here.

    Raises:
        PodSpecError: names the field.
    """
    for index, entry in enumerate(security.get("sysctls") or ()):
        name, path = str(entry.get("name", "")).replace("/", "."), f"{where}.sysctls[{index}].name"
        if not _NAME.fullmatch(name) or not (name in SAFE or _NAMESPACED.fullmatch(name)):
            raise PodSpecError(f"{path} {name!r} is not a setting of a pod's own namespaces")
        if name not in SAFE:
            policy.check_sysctl(name, path)


def sysctls(security: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a pod."""
    own = {str(s["name"]).replace("/", "."): str(s.get("value", "")) for s in security.get("sysctls") or ()}
    return DEFAULTS | own
