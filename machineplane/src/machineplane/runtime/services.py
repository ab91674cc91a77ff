"""What all pods' workers share."""

from collections.abc import Mapping

from attrs import frozen

from machineplane.runtime.changes import Changes
from machineplane.runtime.config import RuntimeConfig
from machineplane.runtime.engine import Engine
from machineplane.runtime.helper import HelperClient
from machineplane.runtime.images import ImageStore
from machineplane.runtime.network import PodNetwork


@frozen(kw_only=True)
class Services:
    """Passed to every worker."""

    config: RuntimeConfig
    images: ImageStore
    network: PodNetwork
    engines: Mapping[str, Engine]
    cgroup_mode: str
    zygote: HelperClient
    changes: Changes
