"""What the agents of this machine's pods ask for, and where it comes from: joins their room with runtime and fabric.

Each answer is about the agent's own pod and workload; Services are the one thing of others that it may see.
"""

import base64
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from uuid import UUID

import trio
from attrs import frozen

from machineplane import channels
from machineplane.agents import Refusal, StatusReport
from machineplane.channels import SessionRefused
from machineplane.fabric.holdings import Holdings
from machineplane.fabric.manifests import Manifest, Object, ordinal_of
from machineplane.fabric.pods import Attachment, Marks
from machineplane.fabric.services import AGENT, LEADER, Services
from machineplane.fabric.view import View
from machineplane.podagents import CROSS_NAMESPACE
from machineplane.runtime import (
    AgentSaid,
    ContainerSaid,
    ExecRequest,
    PodError,
    PodNotFound,
    PodStatus,
    Runtime,
    SessionUnavailable,
    Words,
    pod_status_json,
)
from magik_mesh import Node
from magik_proto.errors import LocalProtocolError, ProtocolError
from magik_proto.identity import Identity, PeerId, format_address
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import Award, decode_as, encode_message
from magik_proto.passes import issue_pass

AFFINITY_S: Final = 10_800
"""Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`."""
MAX_BOOTSTRAP: Final = 16
"""Agents that one is told of; a guess: a few are enough to find the others by the hash table."""
OUTPUT_BYTES: Final = 4096
"""Of a command's output (workplane-spec)."""
TIMED_OUT: Final = 124
"""The exit code of a command that did not end in time, as timeout(1) has it."""
ZONE: Final = "topology.kubernetes.io/zone"

Json = Mapping[str, Any]


@frozen(kw_only=True)
class AgentDesk:
    """A `machineplane.agents.Host`. ``look`` asks the machine that acts for a workload to look at it; ``read_service``
    brings a Service and what it selects into the view; ``addresses`` are those at which other machines reach this one, the
    best first."""

    runtime: Runtime
    node: Node
    view: View
    services: Services
    holdings: Holdings
    identity: Identity
    policy: MembershipPolicy
    addresses: tuple[str, ...]
    zone: str | None
    wall: Callable[[], int]
    look: Callable[[UUID], Awaitable[bool]]
    read_service: Callable[[str, str], Awaitable[None]]

    def _pod(self, uid: str) -> tuple[PodStatus, Attachment]:
        try:
            status = self.runtime.get(uid)
            return status, Attachment.from_bytes(status.attachment)
        except PodNotFound as error:
            raise _not_found(str(error)) from error
        except (ProtocolError, ValueError, KeyError) as error:
            raise Refusal(500, "InternalError", "the machine has lost what this pod came from") from error

    def _newest(self, attachment: Attachment) -> Manifest:
        return self.view.manifest(str(attachment.workload.uid)) or Manifest.of(attachment.workload)

    def _disposed(self, uid: UUID) -> bool:
        return str(uid) in self.view.disposed or self.holdings.is_disposed(uid, trio.current_time())

    # -- who the pod is

    async def passport(self, uid: str, key: PeerId) -> Json:
        """A pass for the key that this run of the agent has, and what it must know of its pod."""
        status, attachment = self._pod(uid)
        try:
            if not self.runtime.claim_key(uid, str(key)):
                raise Refusal(409, "Conflict", "this agent has a pass for another key")
        except PodNotFound as error:
            raise _not_found(str(error)) from error
        newest = self._newest(attachment).record
        return {
            "pass": _base64(self._pass(status, attachment, key)),
            "root": None if self.policy.root is None else str(self.policy.root),
            "advertise": [format_address(a, status.agent_port) for a in self.addresses if status.agent_port],
            "pod": {**status.pod, "status": pod_status_json(status)},
            "uid": str(newest.uid),
            "generation": newest.generation,
            "replicas": newest.replicas,
            "zone": self.zone,
        }

    def _pass(self, status: PodStatus, attachment: Attachment, key: PeerId) -> bytes | None:
        owner = decode_as(Award, attachment.award).owner_identity
        try:
            return issue_pass(
                self.identity,
                attachment.award,
                self.node.shown(owner) or attachment.member,
                pod=key,
                pod_uid=UUID(status.uid),
                pod_name=status.name,
                ordinal=ordinal_of(status.pod)
                if attachment.workload.resource.kind == "StatefulSet"
                else None,
                now_ms=self.wall(),
            )
        except LocalProtocolError as error:
            if self.policy.open:
                return None  # nobody there asks for one
            raise Refusal(500, "InternalError", f"no pass can be made: {error}") from error

    # -- how things are

    def state(self, uid: str) -> Json:
        """The pod, its workload, its Services and its peers, as they are now."""
        status, attachment = self._pod(uid)
        newest, namespace = self._newest(attachment).record, status.namespace
        labels = status.pod["metadata"].get("labels") or {}
        revoked = self.policy.revocations
        return {
            "containers": {c.name: c.id for c in status.containers if c.state == "running"},
            "generation": newest.generation,
            "replicas": newest.replicas,
            "disposed": self._disposed(newest.uid),
            "terminating": status.stopping,
            "services": [self._service(s) for s in self.services.selecting(namespace, labels)],
            "revocations": None if revoked is None else _base64(encode_message(revoked)),
            "bootstrap": _few(uid, self.services.agents(namespace)),
        }

    def _service(self, service: Object) -> Json:
        spec, metadata = service.get("spec") or {}, service["metadata"]
        ports = [
            {
                "name": port.get("name") or "",
                "port": port.get("port"),
                "protocol": port.get("protocol") or "TCP",
                "target": port.get("targetPort") or port.get("port"),
            }
            for port in spec.get("ports") or ()
        ]
        applying: dict[str, Any] = {}
        if spec.get("sessionAffinity") == "ClientIP":
            given = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds")
            applying |= {"affinity": "ClientIP", "affinity_s": given or AFFINITY_S}
        if spec.get("externalName"):
            applying["external_name"] = spec["externalName"]
        if spec.get("publishNotReadyAddresses"):
            applying["unready"] = True
        if spec.get("internalTrafficPolicy") == "Local":
            applying["local"] = True
        return {
            **applying,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "ports": ports,
            "workloads": list(self.services.workloads(service)),
            "headless": spec.get("clusterIP") == "None",
            "annotations": dict(metadata.get("annotations") or {}),
        }

    async def service(self, uid: str, namespace: str, name: str) -> Json:
        """A Service of the pod's own namespace, or of another one if its workload says that it meets those."""
        status, attachment = self._pod(uid)
        crosses = Manifest.of(attachment.workload).annotations.get(CROSS_NAMESPACE) == "true"
        found = None
        if namespace == status.namespace or crosses:
            await self.read_service(namespace, name)
            found = self.services.named(namespace, name)
        if found is None:
            raise _not_found(f'services "{name}" not found in the namespace {namespace}')
        return self._service(found)

    # -- what the agent says

    def report(self, uid: str, report: StatusReport) -> None:
        """To the runtime, which keeps it."""
        containers = {
            name: ContainerSaid(said.ready, said.started, said.message)
            for name, said in report.containers.items()
        }
        agent = None
        if report.peer is not None and report.port:
            leads = (report.leader.generation, report.leader.term) if report.leader else None
            agent = AgentSaid(peer=str(report.peer), port=report.port, leads=leads)
        try:
            self.runtime.report(uid, Words(containers=containers, agent=agent))
        except PodNotFound as error:
            raise _not_found(str(error)) from error

    # -- what the agent has done

    async def restart(self, uid: str, container: str, reason: str) -> None:
        """By the runtime, in its own time."""
        try:
            self.runtime.restart_container(uid, container, reason)
        except (SessionUnavailable, PodNotFound) as error:
            raise _not_found(str(error)) from error

    async def execute(
        self, uid: str, container: str, command: tuple[str, ...], timeout_s: float
    ) -> tuple[int, str]:
        """Run it to its end, or end it."""
        output = bytearray()
        try:
            with trio.move_on_after(timeout_s):
                async with self.runtime.execute(uid, container, ExecRequest(command=command)) as session:
                    while (frame := await session.receive())[0] != channels.RESULT:
                        output += frame[1][: OUTPUT_BYTES - len(output)]
                    return channels.parse_result(frame[1]), output.decode(errors="replace")
        except SessionUnavailable as error:
            raise Refusal(409, "Conflict", str(error)) from error
        except SessionRefused as error:
            raise Refusal(500, "InternalError", str(error)) from error
        except PodError as error:
            raise _not_found(str(error)) from error
        return TIMED_OUT, output.decode(errors="replace")

    async def heal(self, uid: str, missing: int, generation: int) -> bool:
        """Whoever acts for the workload compares it anew; how much is missing it finds out itself."""
        _, attachment = self._pod(uid)
        workload = attachment.workload.uid
        return self._disposed(workload) or await self.look(workload)

    def marks(self, status: PodStatus) -> Marks:
        """What is shown of an agent on its pod."""
        said = status.agent
        if said is None:
            return Marks()
        host, port = (self.addresses[0], status.agent_port) if status.agent_port else (status.ip, said.port)
        annotations = {AGENT: f"{said.peer}@{format_address(host, port)}"}
        if said.leads is None:
            return Marks(annotations=annotations)
        return Marks({LEADER: "true"}, annotations | {LEADER: f"{said.leads[0]}/{said.leads[1]}"})


def _not_found(what: str) -> Refusal:
    return Refusal(404, "NotFound", what)


def _base64(raw: bytes | None) -> str | None:
    return None if raw is None else base64.b64encode(raw).decode()


def _few(own: str, agents: Mapping[str, str]) -> list[str]:
    """Some of the others, for each agent its own choice, which stays the same while they stay."""
    others = [text for uid, text in agents.items() if uid != own]
    return sorted(others, key=lambda text: hashlib.sha256(f"{own} {text}".encode()).digest())[:MAX_BOOTSTRAP]
