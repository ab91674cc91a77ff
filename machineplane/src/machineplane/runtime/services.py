"""What all pods' workers share."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import trio
from attrs import frozen

from machineplane.runtime.changes import Changes
from machineplane.runtime.config import RuntimeConfig
from machineplane.runtime.engine import Engine
from machineplane.runtime.helper import HelperClient
from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.service import ImageService
from machineplane.runtime.network import PodNetwork
from machineplane.runtime.status import PodStatus


class Agents(Protocol):
    """What stands behind the agents of the pods here. Another room's, and what joins them."""

    def environment(self, pod: PodStatus, redirect: int | None) -> Mapping[str, str]:
        """The variables of a pod's agent; ``redirect`` is its port to which TCP to Services comes, if it does."""
        ...

    def founds(self, pod: PodStatus) -> bool:
        """Whether a new pod founds the leadership of its set."""
        ...

    async def serve(self, uid: str, token: Callable[[], str], listener: trio.SocketListener) -> None:
        """Answer the agent that connects to ``listener`` and shows what ``token`` says then; until cancelled."""
        ...


ObjectLookup = Callable[[bytes, str, str, str], Mapping[str, Any] | None]
"""The API object of a kind, namespace and name, newest of what this machine knows and of what came with the pod (the
first argument, which the runtime keeps and does not read)."""


def no_objects(records: bytes, kind: str, namespace: str, name: str) -> None:
    """The lookup of a runtime that stands alone."""
    return


@frozen(kw_only=True)
class Services:
    """Passed to every worker."""

    config: RuntimeConfig
    images: ImageStore
    pulls: ImageService
    network: PodNetwork
    engines: Mapping[str, Engine]
    cgroup_mode: str
    zygote: HelperClient
    changes: Changes
    lookup: ObjectLookup
    agents: Agents | None = None
