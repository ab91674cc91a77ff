"""From a pod's spec and an image to the OCI configuration of its containers. Pure, but for reading the image's files."""

from machineplane.runtime.bundle.config import BundleContext, container_config, infra_config
from machineplane.runtime.bundle.supported import check_pod

__all__ = ["BundleContext", "check_pod", "container_config", "infra_config"]
