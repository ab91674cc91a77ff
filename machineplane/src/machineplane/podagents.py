"""The agents of this machine's pods: what each is started with, and a door for each, once the machine is joined."""

import re
from collections.abc import Callable, Mapping
from typing import Final

import trio

from machineplane.agents import Door, Host
from machineplane.fabric.manifests import Manifest, ordinal_of
from machineplane.fabric.pods import Attachment
from machineplane.runtime import PodStatus
from magik_proto.errors import ProtocolError

LISTEN: Final = "0.0.0.0:4701"
MACHINE_API: Final = "unix:/run/magik/agent/machine.sock"
CROSS_NAMESPACE: Final = "magik.io/allow-cross-namespace"
"""An annotation of a workload or its template: its agents may meet those of other namespaces."""
OPTIONS: Final = {
    CROSS_NAMESPACE: "BEE_ALLOW_CROSS_NAMESPACE",
    "magik.io/allow-workloads": "BEE_ALLOW_WORKLOADS",
    "magik.io/deny-workloads": "BEE_DENY_WORKLOADS",
}
"""Annotations of a workload, or of its template, that its agents get as variables."""

_PATTERNS: Final = re.compile(r" *[A-Za-z0-9*./-]{1,255} *(, *[A-Za-z0-9*./-]{1,255} *)*")


def wrong_annotation(annotations: Mapping[str, str]) -> str | None:
    """What is wrong with the annotations that agents read; None if nothing is."""
    for name in OPTIONS:
        value = annotations.get(name)
        if value is None:
            continue
        if name == CROSS_NAMESPACE:
            if value not in ("true", "false"):
                return f"metadata.annotations[{name}] {value!r}: expected true or false"
        elif value and not _PATTERNS.fullmatch(value):
            return f"metadata.annotations[{name}] {value!r}: expected patterns like default/Deployment/*, with commas"
    return None


def environment_of(workload: Attachment, pod: str, redirect: int | None) -> dict[str, str]:
    """The variables of the agent of a pod of this name; `redirect`: its port to which TCP to Services comes, if it does."""
    record = workload.workload
    annotations = Manifest.of(record).annotations
    chosen = {variable: annotations[name] for name, variable in OPTIONS.items() if annotations.get(name)}
    return {
        "BEE_NAMESPACE": record.resource.namespace,
        "BEE_WORKLOAD_KIND": record.resource.kind,
        "BEE_WORKLOAD_NAME": record.resource.name,
        "BEE_POD_NAME": pod,
        "BEE_REPLICAS": str(max(record.replicas, 1)),
        "BEE_LISTEN_ADDRS": LISTEN,
        "BEE_MACHINE_API": MACHINE_API,
        **({} if redirect is None else {"BEE_REDIRECT_PORT": str(redirect)}),
        **{name: value.replace("\0", " ") for name, value in chosen.items()},
    }


class PodAgents:
    """The runtime's `Agents`. Pods are adopted before the machine is joined: their agents wait at the door until then."""

    def __init__(self, wall: Callable[[], int]) -> None:
        self._wall = wall
        self._host: Host | None = None
        self._joined = trio.Event()
        self._doors: dict[str, Door] = {}

    def join(self, host: Host) -> None:
        """From now on there is somebody behind the doors."""
        self._host = host
        self._joined.set()

    def environment(self, pod: PodStatus, redirect: int | None) -> Mapping[str, str]:
        """The variables of a pod's agent (as above). Raises ValueError or KeyError where the pod's origin is lost."""
        try:
            return environment_of(Attachment.from_bytes(pod.attachment), pod.name, redirect)
        except ProtocolError as error:
            raise ValueError(f"the pod's origin is lost: {error}") from error

    def founds(self, pod: PodStatus) -> bool:
        """Whether a pod founds the leadership of its set. Raises ValueError or KeyError as above."""
        try:
            return Attachment.from_bytes(pod.attachment).founder and ordinal_of(pod.pod) == 0
        except ProtocolError as error:
            raise ValueError(f"the pod's origin is lost: {error}") from error

    async def serve(self, uid: str, token: Callable[[], str], listener: trio.SocketListener) -> None:
        """Serve a pod's agent until cancelled."""
        async with listener:
            await self._joined.wait()
            assert self._host is not None
            door = self._doors[uid] = Door(uid, token, self._host, self._wall())
            try:
                await door.serve(listener)
            finally:
                del self._doors[uid]

    def changed(self, uid: str) -> None:
        """Something is otherwise with a pod."""
        if uid in self._doors:
            self._doors[uid].changed()

    def uids(self) -> tuple[str, ...]:
        """The pods that have a door."""
        return tuple(self._doors)
