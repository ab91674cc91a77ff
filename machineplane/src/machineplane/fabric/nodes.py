"""This machine as a Kubernetes Node."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from machineplane.fabric.manifests import Object
from machineplane.fabric.objects import rfc3339
from magik_proto.placement import MachineFacts


@frozen
class Host:
    """What there is to say of a machine beside its capacity. ``runtimes``: name and version of each engine that works."""

    name: str
    addresses: tuple[str, ...]
    mesh: str
    runtimes: tuple[tuple[str, str], ...]
    version: str
    started_ms: int


def node_labels(name: str, identity: str, architecture: str, runtimes: Mapping[str, bool]) -> dict[str, str]:
    """The labels that selectors can name: the usual ones, the identity's first digits, and which runtimes work."""
    return {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        "magik.io/machine": identity[:16],
        **{f"magik.io/runtime.{engine}": str(works).lower() for engine, works in sorted(runtimes.items())},
    }


def node_object(facts: MachineFacts, host: Host) -> Object:
    """The v1 Node, ready: a machine that can say this is."""
    capacity = facts.capacity
    amounts = {
        "cpu": f"{capacity.cpu_millis}m" if capacity.cpu_millis % 1000 else str(capacity.cpu_millis // 1000),
        "memory": f"{capacity.memory_bytes // 1024}Ki",
        "ephemeral-storage": f"{capacity.storage_bytes // 1024}Ki",
        "pods": str(capacity.pods),
    }
    since = rfc3339(host.started_ms)
    engines = ",".join(f"{name}://{version}" for name, version in host.runtimes) or "none://"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": host.name,
            "uid": str(facts.peer),
            "creationTimestamp": since,
            "labels": dict(facts.labels),
            "annotations": {"magik.io/identity": str(facts.peer), "magik.io/mesh": host.mesh},
        },
        "spec": {"taints": [{"key": t.key, "value": t.value, "effect": t.effect} for t in facts.taints]}
        if facts.taints
        else {},
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "addresses": [
                *({"type": "InternalIP", "address": a} for a in host.addresses),
                {"type": "Hostname", "address": host.name},
            ],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "MachineplaneReady",
                    "message": "machineplane is in the fabric",
                    "lastHeartbeatTime": since,
                    "lastTransitionTime": since,
                }
            ],
            "nodeInfo": {
                "architecture": facts.architecture,
                "operatingSystem": "linux",
                "kernelVersion": platform.release(),
                "osImage": _os_name(),
                "containerRuntimeVersion": engines,
                "kubeletVersion": f"v{host.version}-magik",
                "kubeProxyVersion": "",
                "machineID": str(facts.peer)[:32],
                "systemUUID": str(facts.peer)[32:],
                "bootID": _boot_id(),
            },
        },
    }


def _os_name() -> str:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return os.uname().sysname
    return next(
        (line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")), "Linux"
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
