"""From a pod's spec and an image to the OCI configuration of its containers. Pure, but for reading the image's files."""

from machineplane.runtime.bundle.config import (
    Bundle,
    BundleContext,
    agent_config,
    container_bundle,
    infra_config,
)
from machineplane.runtime.bundle.hostpolicy import HostPolicy
from machineplane.runtime.bundle.objects import MissingReference
from machineplane.runtime.bundle.supported import check_pod, check_spec

__all__ = [
    "Bundle",
    "BundleContext",
    "HostPolicy",
    "MissingReference",
    "agent_config",
    "check_pod",
    "check_spec",
    "container_bundle",
    "infra_config",
]
