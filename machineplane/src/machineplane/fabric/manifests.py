"""Between a Kubernetes object and the signed record that carries it; and from a template to a pod."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from attrs import frozen

from machineplane.fabric.ordinals import OrdinalWish, ordinal_wish_of, plan_ordinals
from machineplane.fabric.plan import Plan, PodFact, Wish, plan, wish_of
from magik_proto.records import Workload, canonical_json

Object = dict[str, Any]

GRACE_MAX_S = 7 * 86_400  # guess: a week is longer than any shutdown; at more the manifest is refused

# Labels of a StatefulSet's pod, as Kubernetes has them.
ORDINAL_LABEL = "apps.kubernetes.io/pod-index"
REVISION_LABEL = "controller-revision-hash"

# Fields of a served object that are made anew at each reading and so are never part of a manifest.
_SERVED_ONLY = ("resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds")


def manifest_of(obj: Mapping[str, Any]) -> bytes:
    """The canonical bytes of what the user wants of ``obj``: no status, nothing that a reading adds."""
    metadata = {k: v for k, v in obj["metadata"].items() if k not in _SERVED_ONLY}
    return canonical_json({**{k: v for k, v in obj.items() if k != "status"}, "metadata": metadata})


@frozen
class Manifest:
    """A workload record taken apart: what it is called and what it wants."""

    record: Workload
    obj: Object

    @classmethod
    def of(cls, record: Workload) -> "Manifest":
        """Raises ValueError where the record's bytes are no object of the record's kind and name."""
        obj = json.loads(record.manifest)
        metadata = obj.get("metadata") if isinstance(obj, dict) else None
        if not isinstance(metadata, dict):
            raise ValueError(f"manifest of {record.resource}: not a Kubernetes object")
        # What has no namespace is filed under its own name: a resource id always has three parts.
        space, name = metadata.get("namespace"), metadata.get("name", "")
        named = (space or name, obj.get("kind", ""), name)
        resource = record.resource
        if named != (resource.namespace, resource.kind, resource.name):
            raise ValueError(f"manifest of {resource} names itself {'/'.join(map(str, named))}")
        manifest = cls(record, obj)
        manifest._check_shape()
        return manifest

    def _check_shape(self) -> None:
        """A record is signed by a member, but a member may be faulty: what is read below must be of its type."""
        check_metadata(self.obj["metadata"], f"manifest of {self.record.resource}")
        if not isinstance(self.obj.get("spec", {}), dict):
            raise ValueError(f"manifest of {self.record.resource}: spec is not an object")
        if self.runs_pods:
            check_template(self.template, f"manifest of {self.record.resource}")
            _ = self.wish, self.match_labels

    @property
    def uid(self) -> UUID:
        return self.record.uid

    @property
    def kind(self) -> str:
        return self.record.resource.kind

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.obj.get("spec") or {}

    @property
    def runs_pods(self) -> bool:
        return self.kind in ("Deployment", "Pod", "StatefulSet")

    @property
    def template(self) -> Object:
        """``{"metadata": …, "spec": …}`` of the pods to run."""
        if self.kind == "Pod":
            kept = {k: v for k, v in self.obj["metadata"].items() if k in ("labels", "annotations")}
            return {"metadata": kept, "spec": self.spec}
        template = self.spec.get("template")
        return template if isinstance(template, dict) else {}

    @property
    def wish(self) -> Wish | OrdinalWish:
        """What the planner is to reach. Raises ValueError where the strategy cannot be read."""
        if self.kind == "StatefulSet":
            return ordinal_wish_of(self.record.replicas, self.spec, self.template_hash)
        return wish_of(self.kind, self.record.replicas, self.spec, self.template_hash)

    def next_step(self, pods: Iterable[PodFact]) -> Plan:
        """What to do next, given the pods that there are."""
        wish = self.wish
        return plan_ordinals(wish, pods) if isinstance(wish, OrdinalWish) else plan(wish, pods)

    @property
    def revision(self) -> str:
        """What Kubernetes calls the template's ControllerRevision (label ``controller-revision-hash``)."""
        return f"{self.record.resource.name}-{self.template_hash}"

    @property
    def match_labels(self) -> Mapping[str, str]:
        selector = self.spec.get("selector") or {}
        labels = selector.get("matchLabels") or {} if isinstance(selector, dict) else None
        if not isinstance(labels, dict):
            raise ValueError(f"manifest of {self.record.resource}: selector is not an object")
        return labels

    @property
    def template_hash(self) -> str:
        """Ten hex digits that change when the pods must be replaced; a Pod's own never do."""
        basis = str(self.uid).encode() if self.kind == "Pod" else canonical_json(self.template)
        return hashlib.sha256(basis).hexdigest()[:10]

    @property
    def annotations(self) -> Mapping[str, str]:
        """The workload's own annotations with the template's above them: either may name the runtime."""
        template = (self.template.get("metadata") or {}).get("annotations") or {}
        return {**(self.obj["metadata"].get("annotations") or {}), **template}


def check_metadata(metadata: object, what: str) -> None:
    """Raises ValueError unless labels and annotations are maps of text and the texts that are read are texts."""
    if not isinstance(metadata, dict):
        raise ValueError(f"{what}: metadata is not an object")
    for name in ("labels", "annotations"):
        texts = metadata.get(name) or {}
        if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
            raise ValueError(f"{what}: {name} is not a map of texts")
    for name in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"):
        if not isinstance(metadata.get(name), str | None):
            raise ValueError(f"{what}: metadata.{name} is not a text")


def check_template(template: Mapping[str, Any], what: str) -> None:
    """Raises ValueError unless it has the shape of a pod template: metadata, and a spec with named containers."""
    check_metadata(template.get("metadata") or {}, f"{what}, template")
    spec = template.get("spec")
    if not isinstance(spec, dict):
        raise ValueError(f"{what}: the template has no spec")
    grace = spec.get("terminationGracePeriodSeconds")
    if grace is not None and (not isinstance(grace, int) or not 0 <= grace <= GRACE_MAX_S):
        raise ValueError(f"{what}: terminationGracePeriodSeconds {grace!r} is not a number of seconds")
    for name in ("containers", "initContainers"):
        containers = spec.get(name) or []
        if not isinstance(containers, list) or not all(isinstance(c, dict) for c in containers):
            raise ValueError(f"{what}: {name} is not a list of objects")


def replicas_of(obj: Mapping[str, Any]) -> int:
    """How many pods the object wants: 1 for a Pod, none for what runs no pods."""
    match obj["kind"]:
        case "Pod":
            return 1
        case "Deployment" | "StatefulSet":
            return int((obj.get("spec") or {}).get("replicas", 1))
    return 0


@frozen
class Birth:
    """What a machine adds when it makes a pod of a manifest. ``ordinal``: of a StatefulSet's pod, as awarded."""

    pod_uid: str
    suffix: str
    node_name: str
    node_id: str
    created: str
    ordinal: int | None = None


def pod_of(manifest: Manifest, birth: Birth) -> Object:
    """The complete v1 Pod object that a machine runs for a manifest (labels: protocol.md, Labels on every pod)."""
    resource = manifest.record.resource
    template = manifest.template
    meta = template.get("metadata") or {}
    name = _pod_name(manifest, birth)
    labels = {
        "magik.namespace": resource.namespace,
        "magik.kind": resource.kind,
        "magik.name": resource.name,
        "magik.pod_id": birth.pod_uid,
        "magik.local_peer_id": birth.node_id[:63],
        "io.kubernetes.pod.namespace": resource.namespace,
        "app.kubernetes.io/name": resource.name,
        **(meta.get("labels") or {}),
    }
    metadata: Object = {
        "name": name,
        "namespace": resource.namespace,
        "uid": birth.pod_uid,
        "creationTimestamp": birth.created,
        "labels": labels,
        "annotations": {**(meta.get("annotations") or {}), "magik.io/machine": birth.node_id},
    }
    spec = {**template["spec"], "nodeName": birth.node_name}
    if manifest.kind == "StatefulSet":
        labels |= {
            "statefulset.kubernetes.io/pod-name": name,
            ORDINAL_LABEL: str(birth.ordinal),
            REVISION_LABEL: manifest.revision,
        }
        metadata["generateName"] = f"{resource.name}-"
        metadata["ownerReferences"] = [owner_reference("StatefulSet", resource.name, str(manifest.uid))]
        spec |= {"hostname": name, "subdomain": manifest.spec.get("serviceName") or ""}
    elif manifest.kind == "Deployment":
        labels["pod-template-hash"] = manifest.template_hash
        metadata["generateName"] = f"{resource.name}-{manifest.template_hash}-"
        metadata["ownerReferences"] = [owner_reference("ReplicaSet", *replica_set_identity(manifest))]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
    }


def _pod_name(manifest: Manifest, birth: Birth) -> str:
    name = manifest.record.resource.name
    match manifest.kind:
        case "Pod":
            return name
        case "StatefulSet":
            return f"{name}-{birth.ordinal}"
    return f"{name}-{manifest.template_hash}-{birth.suffix}"


def ordinal_of(pod: Mapping[str, Any]) -> int | None:
    """A StatefulSet's pod's number, by its label; None where there is none that can be read."""
    text = (pod["metadata"].get("labels") or {}).get(ORDINAL_LABEL, "")
    return int(text) if re.fullmatch("[0-9]{1,10}", text) else None


def replica_set_identity(manifest: Manifest) -> tuple[str, str]:
    """Name and uid of the ReplicaSet that stands for one template of a Deployment; derived, never stored."""
    digest = hashlib.sha256(f"{manifest.uid}/{manifest.template_hash}".encode()).digest()
    name = f"{manifest.record.resource.name}-{manifest.template_hash}"
    return name, str(UUID(bytes=digest[:16], version=4))


def owner_reference(kind: str, name: str, uid: str) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
