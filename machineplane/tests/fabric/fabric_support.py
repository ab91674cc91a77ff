"""Manifests, tables and views for the tests of the fabric room."""

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from machineplane.fabric.founding import Foundings
from machineplane.fabric.manifests import Manifest, manifest_of, replicas_of
from machineplane.fabric.objects import render
from machineplane.fabric.scope import OF
from machineplane.fabric.table import Table
from machineplane.fabric.view import View
from magik_proto.clock import HybridClock
from magik_proto.identity import Identity, PeerId
from magik_proto.messages import ResourceId, encode_message
from magik_proto.records import Workload, canonical_json
from magik_proto.signing import sign

START_MS = 1_800_000_000_000


class Wall:
    """A wall clock that moves one millisecond a reading."""

    def __init__(self, now: int = START_MS) -> None:
        self.now = now

    def __call__(self) -> int:
        self.now += 1
        return self.now


def new_foundings() -> Foundings:
    """Of a machine that has made nothing yet, in a folder that goes with the tests."""
    folder = tempfile.mkdtemp(prefix="foundings-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Foundings(Path(folder))


def identity(number: int) -> Identity:
    return Identity.from_seed(bytes([number]) * 32)


def deployment(
    name: str = "web", replicas: int = 3, image: str = "localhost/a:1", **metadata: Any
) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default", **metadata},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    }


def stateful_set(name: str = "db", replicas: int = 3, **spec: Any) -> dict[str, Any]:
    obj = deployment(name, replicas)
    obj["spec"] |= {"serviceName": f"{name}s", **spec}
    return obj | {"kind": "StatefulSet"}


def bare_pod(name: str = "once", policy: str = "Always") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "localhost/a:1"}]},
    }


def record(
    obj: dict[str, Any], author: Identity, *, uid: UUID | None = None, generation: int = 1, stamp: int = 1
) -> Workload:
    metadata = obj["metadata"]
    return sign(
        Workload(
            resource=ResourceId(metadata.get("namespace", metadata["name"]), obj["kind"], metadata["name"]),
            uid=uid or uuid4(),
            generation=generation,
            replicas=replicas_of(obj),
            manifest=manifest_of(obj),
            author=author.peer_id,
            stamp=stamp,
            timestamp=START_MS,
            nonce=7,
        ),
        author,
    )


class FakeMachine:
    """A table as some machine has it, and the deltas it would send."""

    def __init__(self, number: int, wall: Wall) -> None:
        self.identity = identity(number)
        self.id: PeerId = self.identity.peer_id
        self.table = Table(HybridClock(wall).now)

    def hold(self, workload: Workload) -> None:
        self.table.put(
            ("workload", str(workload.uid)), {"record": encode_message(workload), OF: str(workload.resource)}
        )

    def run(
        self, workload: Workload, uid: str, *, ready: bool = True, template_hash: str = "", **metadata: Any
    ) -> None:
        manifest = Manifest.of(workload)
        template_hash = template_hash or manifest.template_hash
        obj = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{workload.resource.name}-{uid}",
                "namespace": workload.resource.namespace,
                "uid": uid,
                "creationTimestamp": "2027-01-15T08:00:00Z",
                **metadata,
            },
            "spec": {**manifest.template["spec"], "nodeName": self.id.short},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            },
        }
        value = {"json": canonical_json(obj), "workload": str(workload.uid), "template_hash": template_hash}
        value[OF] = str(workload.resource)
        self.table.put(("pod", uid), value)


def new_view(own: PeerId, wall: Wall) -> View:
    view = View(own, HybridClock(wall))
    view.render = lambda group: render(view, group)
    return view


def mirror(view: View, machine: FakeMachine) -> None:
    """Bring the view up to date with a machine, as a follower would."""
    known = view.mirrors.get(machine.id)
    view.apply(machine.id, machine.table.since(known.epoch if known else 0, known.stamp if known else 0))
