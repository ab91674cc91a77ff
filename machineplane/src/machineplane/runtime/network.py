"""What the runtime asks of the pods' network. Another room implements it."""

from collections.abc import Sequence
from typing import Protocol


class PodAddress(Protocol):
    """Where a pod is reached."""

    @property
    def ip(self) -> str:
        """The pod's address, without a prefix length."""
        ...

    @property
    def gateway(self) -> str:
        """Its way out."""
        ...


class PodNetwork(Protocol):
    """Wires pods' network namespaces up."""

    async def attach(self, pod_uid: str, pid: int) -> PodAddress:
        """Give the network namespace of process ``pid`` an interface and an address."""
        ...

    async def detach(self, pod_uid: str) -> None:
        """Take back all that ``attach`` made. Idempotent; the namespace may be gone already."""
        ...

    async def recover(self, pod_uid: str, pid: int) -> PodAddress:
        """Learn again of a pod that was attached by an earlier daemon."""
        ...

    async def forward(self, pod_uid: str, udp_port: int) -> int:
        """The UDP port of this machine that leads to ``udp_port`` of an attached pod, until ``detach``."""
        ...

    async def redirect(self, pod_uid: str, pid: int, tcp_ports: Sequence[int]) -> int:
        """Have TCP from within a pod to Services' addresses come to one port of them, the first of ``tcp_ports`` that is
        free in the pod, and which is returned. Idempotent; where it raises, nothing is redirected."""
        ...
