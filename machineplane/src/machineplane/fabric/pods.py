"""The pods of this machine: from an accepted award to a row in the table, and back out again.

The runtime is known here only by the protocol `PodRuntime`. What must survive a daemon's restart (which manifest a pod
came from, for which template) is the pod's *attachment*, which the runtime keeps beside the pod.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol
from uuid import UUID, uuid4

import structlog
import trio
from attrs import field, frozen

from machineplane.fabric.events import Events, EventType
from machineplane.fabric.manifests import Birth, Manifest, Object, ordinal_of, pod_of
from machineplane.fabric.objects import rfc3339
from machineplane.fabric.scope import OF
from machineplane.fabric.services import AGENT, LEADER
from machineplane.fabric.table import Table
from magik_proto.codec import decode, encode
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.messages import Award, decode_as, encode_message
from magik_proto.records import Workload, canonical_json

DEFAULT_GRACE_S = 30  # Kubernetes' terminationGracePeriodSeconds
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"  # the letters Kubernetes makes names of: no vowels, so no words


class PodState(Protocol):
    """What the runtime says of a pod; only what is used here."""

    @property
    def uid(self) -> str: ...
    @property
    def pod(self) -> Mapping[str, Any]: ...
    @property
    def attachment(self) -> bytes: ...
    @property
    def phase(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...


@frozen
class Marks:
    """Labels and annotations that a machine adds to what it shows of a pod."""

    labels: Mapping[str, str] = field(factory=dict)
    annotations: Mapping[str, str] = field(factory=dict)


class PodRuntime(Protocol):
    """The runtime as this room needs it."""

    async def run_pod(
        self, pod: dict[str, Any], attachment: bytes, *, engine: str, records: bytes
    ) -> PodState: ...
    async def stop_pod(self, uid: str, grace_s: float | None = None) -> None: ...
    def pods(self) -> Iterable[PodState]: ...
    def status(self, state: Any) -> dict[str, Any]: ...
    def marks(self, state: Any) -> Marks: ...


@frozen
class Attachment:
    """What a pod remembers of its origin.

    The signed manifest, the template's hash, the engine, the award as receipt, the membership of the award's owner, and
    whether ordinal 0 founds its set's leadership.
    """

    workload: Workload
    template_hash: str
    engine: str
    award: bytes = b""
    member: bytes | None = None
    founder: bool = False

    def to_bytes(self) -> bytes:
        return encode(
            {
                "workload": encode_message(self.workload),
                "template_hash": self.template_hash,
                "engine": self.engine,
                "award": self.award,
                **({} if self.member is None else {"member": self.member}),
                **({"founder": True} if self.founder else {}),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Attachment":
        """Raises RemoteProtocolError or ValueError where the bytes are not an attachment."""
        wire = decode(data)
        if not isinstance(wire, dict):
            raise ValueError("attachment: not a map")
        record = decode_as(Workload, bytes(wire["workload"]))
        member = wire.get("member")
        return cls(
            record,
            str(wire["template_hash"]),
            str(wire["engine"]),
            bytes(wire["award"]),
            None if member is None else bytes(member),
            wire.get("founder") is True,
        )


class PodKeeper:
    """Runs, reports and stops this machine's pods; each in a task of ``nursery``."""

    def __init__(
        self,
        *,
        runtime: PodRuntime,
        table: Table,
        events: Events,
        own: PeerId,
        node_name: str,
        address: str,
        wall: Callable[[], int],
        nursery: trio.Nursery,
        rng: random.Random,
    ) -> None:
        self._runtime = runtime
        self._table = table
        self._events = events
        self._own = own
        self._node_name = node_name
        self._address = address
        self._wall = wall
        self._nursery = nursery
        self._rng = rng
        self._pods: dict[str, tuple[Object, Attachment]] = {}
        self._stopping: dict[str, int] = {}
        self._settled: set[str] = set()
        self._marks: dict[str, Marks] = {}
        self._told: dict[str, dict[str, tuple[News, object]]] = {}  # by pod uid and container
        self._log = structlog.get_logger(room="fabric")

    def adopt(self) -> list[Workload]:
        """Report the pods that the runtime found running at start; the manifests they carry, to be guarded again."""
        found = []
        for state in self._runtime.pods():
            try:
                attachment = Attachment.from_bytes(state.attachment)
            except (RemoteProtocolError, ValueError, KeyError) as error:
                self._log.error("pod-without-origin", pod=state.uid, error=str(error))
                self._nursery.start_soon(self._runtime.stop_pod, state.uid, 0)
                continue
            self._pods[state.uid] = (dict(state.pod), attachment)
            self._settled.add(state.uid)
            self.report(state)
            found.append(attachment.workload)
        return found

    def of_workload(self, uid: UUID) -> list[str]:
        """Pod uids of a workload on this machine."""
        return [pod for pod, (_, attachment) in self._pods.items() if attachment.workload.uid == uid]

    def settled(self) -> list[Object]:
        """The pods whose deployment is over: they hold capacity here beside what is being deployed."""
        return [self._pods[uid][0] for uid in self._settled]

    async def deploy(
        self,
        workload: Workload,
        award: Award,
        award_bytes: bytes,
        engine: str,
        records: bytes = b"",
        member: bytes | None = None,
        *,
        founder: bool = False,
    ) -> list[str]:
        """Start the awarded replicas and return the pods' names once all have started.

        ``records`` are the objects that the pods refer to; they are kept with the pods, in memory alone. ``member`` is the
        membership of the award's owner, which goes into the pods' passes; ``founder`` as in a `Delivery`.

        Raises DeployError when one has failed for good (the others of the award are then stopped again), and where a
        StatefulSet's ordinals are missing or have a pod here.
        """
        manifest = Manifest.of(workload)
        attachment = Attachment(workload, manifest.template_hash, engine, award_bytes, member, founder)
        pods = [pod_of(manifest, self._birth(n)) for n in self._ordinals(manifest, award)]
        failures: list[str] = []
        begun: list[bool] = []
        async with trio.open_nursery() as nursery:
            for pod in pods:
                nursery.start_soon(self._start, pod, attachment, records, failures, begun)
        if failures:
            for pod in pods:
                self.stop(pod["metadata"]["uid"], 0)
            raise DeployError("; ".join(failures), begun=any(begun))
        self._settled.update(uid for pod in pods if (uid := pod["metadata"]["uid"]) in self._pods)
        return [pod["metadata"]["name"] for pod in pods]

    def _ordinals(self, manifest: Manifest, award: Award) -> tuple[int | None, ...]:
        """For each awarded replica its ordinal, or None where its kind has none."""
        if manifest.kind != "StatefulSet":
            return (None,) * award.replicas
        if not award.ordinals:
            raise DeployError(f"an award of {award.resource} names no ordinals", begun=False)
        here = {ordinal_of(self._pods[uid][0]) for uid in self.of_workload(manifest.uid)}
        if taken := [n for n in award.ordinals if n in here]:
            raise DeployError(
                f"{award.resource}: ordinal {taken[0]} has a pod on this machine already", begun=False
            )
        return award.ordinals

    def _birth(self, ordinal: int | None) -> Birth:
        suffix = "".join(self._rng.choice(_SUFFIX) for _ in range(5))
        return Birth(str(uuid4()), suffix, self._node_name, str(self._own), rfc3339(self._wall()), ordinal)

    async def _start(
        self, pod: Object, attachment: Attachment, records: bytes, failures: list[str], begun: list[bool]
    ) -> None:
        uid = pod["metadata"]["uid"]
        self._pods[uid] = (pod, attachment)
        self._put(uid, {"phase": "Pending", "conditions": [], "startTime": rfc3339(self._wall())})
        self._events.record(pod, "Normal", "Scheduled", f"Awarded to machine {self._node_name}")
        try:
            state = await self._runtime.run_pod(
                pod, attachment.to_bytes(), engine=attachment.engine, records=records
            )
        except DeployError as error:  # the machine could not even begin
            failures.append(f"{pod['metadata']['name']}: {error}")
            self.gone(uid)
            return
        begun.append(True)
        self.report(state)
        if state.phase == "Failed":
            failures.append(f"{pod['metadata']['name']}: {state.reason} {state.message}".strip())

    def report(self, state: PodState) -> None:
        """The runtime says that a pod has changed."""
        if state.uid in self._pods:
            status = self._runtime.status(state)
            self._marks[state.uid] = self._runtime.marks(state)
            self._tell(self._pods[state.uid][0], status)
            self._put(state.uid, status)

    def tell(self, uid: str, kind: str, reason: str, message: str) -> None:
        """The runtime says that something happened to a pod."""
        if uid in self._pods:
            self._events.record(
                self._pods[uid][0], "Warning" if kind == "Warning" else "Normal", reason, message
            )

    def _tell(self, pod: Object, status: Mapping[str, Any]) -> None:
        """Events for what is new with the pod's containers since the last report."""
        told = self._told.setdefault(pod["metadata"]["uid"], {})
        for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
            news = _news(container)
            if news is None or told.get(container["name"]) == (news, container.get("restartCount")):
                continue
            told[container["name"]] = (news, container.get("restartCount"))
            self._events.record(pod, *news)

    def gone(self, uid: str) -> None:
        """The runtime says that nothing is left of a pod."""
        self._pods.pop(uid, None)
        self._stopping.pop(uid, None)
        self._settled.discard(uid)
        self._told.pop(uid, None)
        self._marks.pop(uid, None)
        self._table.remove(("pod", uid))

    def stop(self, uid: str, grace_s: int | None = None) -> None:
        """Begin to stop a pod; a shorter grace than before hastens it. What is not here is no error: it is gone."""
        known = self._pods.get(uid)
        if known is None:
            return
        if grace_s is None:
            asked = known[0]["spec"].get("terminationGracePeriodSeconds")
            grace_s = DEFAULT_GRACE_S if asked is None else asked
        if uid in self._stopping and self._stopping[uid] <= grace_s:
            return
        self._stopping[uid] = grace_s
        obj = known[0]
        obj["metadata"] = {
            **obj["metadata"],
            "deletionTimestamp": rfc3339(self._wall() + 1000 * grace_s),
            "deletionGracePeriodSeconds": grace_s,
        }
        self._put(uid, (self._last_status(uid)))
        self._events.record(obj, "Normal", "Killing", "Stopping the pod's containers")
        self._nursery.start_soon(self._stop, uid, grace_s)

    def stop_workload(self, uid: UUID) -> None:
        """The workload is disposed of: all its pods here go."""
        for pod in self.of_workload(uid):
            self.stop(pod)

    async def _stop(self, uid: str, grace_s: int) -> None:
        await self._runtime.stop_pod(uid, grace_s)
        self.gone(uid)

    def _last_status(self, uid: str) -> dict[str, Any]:
        for state in self._runtime.pods():
            if state.uid == uid:
                return self._runtime.status(state)
        return {"phase": "Pending"}

    def _put(self, uid: str, status: Mapping[str, Any]) -> None:
        obj, attachment = self._pods[uid]
        metadata = _marked(obj["metadata"], self._marks.get(uid, Marks()))
        shown = {**obj, "metadata": metadata, "status": {**status, "hostIP": self._address}}
        value = {
            "json": canonical_json(shown),
            "workload": str(attachment.workload.uid),
            "template_hash": attachment.template_hash,
            OF: str(attachment.workload.resource),
        }
        self._table.put(("pod", uid), value)


def _marked(metadata: Object, marks: Marks) -> Object:
    """A pod's metadata with the machine's marks; of those names nothing of the pod's author stays."""
    made = dict(metadata)
    for part, own in (("labels", marks.labels), ("annotations", marks.annotations)):
        made[part] = {k: v for k, v in (metadata.get(part) or {}).items() if k not in _MARKS} | dict(own)
    return made


_MARKS = (AGENT, LEADER)

News = tuple[EventType, str, str]
_OF_IMAGES = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName")
"""States of which the runtime tells by Events of its own."""


def _news(container: Mapping[str, Any]) -> News | None:
    """What the kubelet would record as an event of a container in this state; None where it would say nothing."""
    name, state = container.get("name"), container.get("state") or {}
    if "running" in state:
        return ("Normal", "Started", f"Started container {name}")
    waiting = state.get("waiting") or {}
    if waiting.get("message") and waiting.get("reason") not in _OF_IMAGES:
        kind: EventType = "Warning"
        reason = "BackOff" if waiting.get("reason") == "CrashLoopBackOff" else "Failed"
        return (kind, reason, f"container {name}: {waiting['message']}")
    ended = state.get("terminated") or {}
    if ended.get("reason") not in (None, "Completed"):
        return (
            "Warning",
            "Failed",
            f"container {name} ended: {ended['reason']}, exit code {ended.get('exitCode')}",
        )
    return None


class DeployError(Exception):
    """An award could not be carried out; the text says for each pod why. ``begun``: whether anything of it ever ran."""

    def __init__(self, text: str, *, begun: bool = True) -> None:
        super().__init__(text)
        self.begun = begun
