"""Rendering: from the view's facts to the Kubernetes objects that the API serves.

Status is never stored. A Deployment's counts and conditions are computed from its pods wherever they run, ReplicaSets are
derived (one for each template that has pods, and the current one), and ``resourceVersion`` is the stamp of the newest fact
that the object was made of.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from machineplane.fabric.manifests import (
    Manifest,
    Object,
    ordinal_of,
    owner_reference,
    replica_set_identity,
)
from machineplane.fabric.plan import PodFact
from machineplane.fabric.view import ObjectKey, Placement, PodEntry, View, json_object
from magik_proto.clock import stamp_ms

BUILT_IN_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


def rfc3339(ms: int) -> str:
    """Milliseconds since the epoch as Kubernetes writes times: whole seconds, UTC."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def render(view: View, group: str) -> dict[ObjectKey, Object]:
    """All objects of a group: ``workload/<uid>``, ``node/<id>`` or ``event/<id>``."""
    kind, _, ident = group.partition("/")
    match kind:
        case "workload":
            return _workload(view, ident)
        case "node":
            return _passed_on(view, kind, ident) or _lost_node(view, ident)
        case "event":
            return _passed_on(view, kind, ident)
    return {}


def _passed_on(view: View, kind: str, ident: str) -> dict[ObjectKey, Object]:
    """Objects that their machine makes whole."""
    for mirror in view.mirrors.values():
        entry = mirror.entries.get((kind, ident))
        if entry is not None and entry.value is not None:
            obj = _versioned(json_object(entry.value.get("json")), entry.stamp)
            return {_key(obj): obj}
    return {}


def _lost_node(view: View, ident: str) -> dict[ObjectKey, Object]:
    """A machine that nobody hears of: shown as it was, but not ready."""
    entry = view.lost_nodes.get(ident)
    if entry is None or entry.value is None:
        return {}
    obj = _versioned(json_object(entry.value.get("json")), entry.stamp)
    since = rfc3339(stamp_ms(entry.stamp))
    gone = {
        "type": "Ready",
        "status": "Unknown",
        "reason": "NodeStatusUnknown",
        "message": "no machine of the fabric has heard of this one",
        "lastTransitionTime": since,
    }
    obj["status"] = {**(obj.get("status") or {}), "conditions": [gone]}
    return {_key(obj): obj}


def _key(obj: Mapping[str, Any]) -> ObjectKey:
    metadata = obj["metadata"]
    return (obj["kind"], metadata.get("namespace", ""), metadata["name"])


def _versioned(obj: Mapping[str, Any], stamp: int) -> Object:
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(stamp)}}


def _workload(view: View, uid: str) -> dict[ObjectKey, Object]:
    entries = view.pods_of(uid)
    pods = [_versioned(p.obj, p.stamp) for p in sorted(entries, key=_shown_last)]
    objects = {_key(pod): pod for pod in pods}
    manifest = view.manifest(uid)
    if manifest is None or view.winner(manifest.record.resource) != uid:
        return objects
    stamp = max(manifest.record.stamp, view.touched.get(uid, 0))
    if manifest.kind == "Deployment":
        for obj in (
            *_replica_sets(manifest, entries, stamp),
            _deployment(manifest, entries, view.placements(uid), stamp),
        ):
            objects[_key(obj)] = obj
    elif manifest.kind == "StatefulSet":
        obj = _stateful_set(manifest, entries, view.placements(uid), stamp)
        objects[_key(obj)] = obj
    elif manifest.kind == "Pod":
        objects.setdefault(("Pod", *_name(manifest)), _pending_pod(manifest, view.placements(uid), stamp))
    else:
        obj = _versioned(manifest.obj, manifest.record.stamp)
        if manifest.kind == "Namespace":
            obj["status"] = {"phase": "Active"}
        objects[_key(obj)] = obj
    return objects


def _shown_last(pod: PodEntry) -> tuple[bool, int]:
    """Of two pods of one name (one ending, one new) the living, newer one is shown."""
    return (not pod.terminating, pod.stamp)


def _name(manifest: Manifest) -> tuple[str, str]:
    return manifest.record.resource.namespace, manifest.record.resource.name


def pod_fact(pod: PodEntry) -> PodFact:
    """What the planner sees of a pod."""
    status = pod.obj.get("status") or {}
    phase = status.get("phase")
    created = pod.obj["metadata"].get("creationTimestamp") or ""
    return PodFact(
        uid=pod.uid,
        template_hash=pod.template_hash,
        created=_epoch_ms(created),
        ready=_is_true(status, "Ready"),
        failed=phase == "Failed",
        finished=phase == "Succeeded",
        terminating=pod.terminating,
        ordinal=ordinal_of(pod.obj),
    )


def _epoch_ms(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        return 0


def _is_true(status: Mapping[str, Any], condition: str) -> bool:
    return any(
        c.get("type") == condition and c.get("status") == "True" for c in status.get("conditions") or ()
    )


def _counts(pods: Iterable[PodEntry], current: str, wanted: int) -> dict[str, int]:
    facts = [pod_fact(p) for p in pods if not p.terminating]
    facts = [f for f in facts if not f.failed]
    ready = sum(f.ready for f in facts)
    counts = {
        "replicas": len(facts),
        "updatedReplicas": sum(f.template_hash == current for f in facts),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(0, wanted - ready),
    }
    return {name: count for name, count in counts.items() if count}


def _deployment(manifest: Manifest, pods: list[PodEntry], said: list[Placement], stamp: int) -> Object:
    wanted = manifest.record.replicas
    counts = _counts(pods, manifest.template_hash, wanted)
    obj = _versioned(manifest.obj, stamp)
    annotations = {"deployment.kubernetes.io/revision": "1", **(obj["metadata"].get("annotations") or {})}
    obj["metadata"]["annotations"] = annotations
    obj["metadata"]["generation"] = manifest.record.generation
    since = rfc3339(stamp_ms(stamp))
    obj["status"] = {
        "observedGeneration": manifest.record.generation,
        **counts,
        "conditions": _deployment_conditions(counts, wanted, _unplaced(said), since),
    }
    return obj


def _unplaced(said: list[Placement]) -> Placement | None:
    return said[-1] if said and said[-1].unplaced else None


def _deployment_conditions(
    counts: Mapping[str, int], wanted: int, unplaced: Placement | None, since: str
) -> list[Object]:
    available = counts.get("availableReplicas", 0) >= wanted
    done = available and counts.get("updatedReplicas", 0) >= wanted and counts.get("replicas", 0) <= wanted
    conditions = [
        _condition("Available", available, *(_AVAILABLE if available else _UNAVAILABLE), since),
        _condition("Progressing", True, *(_COMPLETE if done else _GOING), since),
    ]
    if unplaced is not None:
        conditions.append(_not_placed(unplaced, wanted, since))
    return conditions


def _not_placed(unplaced: Placement, wanted: int, since: str) -> Object:
    text = f"{unplaced.unplaced} of {wanted} replicas could not be placed: {'; '.join(unplaced.reasons)}"
    return _condition("ReplicaFailure", True, "FailedScheduling", text, since)


_AVAILABLE = ("MinimumReplicasAvailable", "Deployment has minimum availability.")
_UNAVAILABLE = ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
_COMPLETE = ("NewReplicaSetAvailable", "All replicas run the current template.")
_GOING = ("ReplicaSetUpdated", "Replicas are being placed or replaced.")


def _condition(kind: str, true: bool, reason: str, message: str, since: str) -> Object:
    return {
        "type": kind,
        "status": "True" if true else "False",
        "reason": reason,
        "message": message,
        "lastUpdateTime": since,
        "lastTransitionTime": since,
    }


def _replica_sets(manifest: Manifest, pods: list[PodEntry], stamp: int) -> Iterable[Object]:
    by_template: dict[str, list[PodEntry]] = {manifest.template_hash: []}
    for pod in pods:
        by_template.setdefault(pod.template_hash, []).append(pod)
    for template_hash, members in by_template.items():
        yield _replica_set(manifest, template_hash, members, stamp)


def _replica_set(manifest: Manifest, template_hash: str, pods: list[PodEntry], stamp: int) -> Object:
    resource = manifest.record.resource
    current = template_hash == manifest.template_hash
    wanted = manifest.record.replicas if current else len(pods)
    name, uid = replica_set_identity(manifest)
    if not current:
        name, uid = f"{resource.name}-{template_hash}", str(UUID(int=int(template_hash, 16)))
    template = manifest.template if current else _template_of(pods[0])
    labels = {**((template.get("metadata") or {}).get("labels") or {}), "pod-template-hash": template_hash}
    counts = _counts(pods, template_hash, wanted)
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": name,
            "namespace": resource.namespace,
            "uid": uid,
            "labels": labels,
            "annotations": {"deployment.kubernetes.io/desired-replicas": str(wanted)},
            "creationTimestamp": manifest.obj["metadata"].get("creationTimestamp"),
            "generation": manifest.record.generation,
            "ownerReferences": [owner_reference("Deployment", resource.name, str(manifest.uid))],
            "resourceVersion": str(stamp),
        },
        "spec": {
            "replicas": wanted,
            "selector": {"matchLabels": {**manifest.match_labels, "pod-template-hash": template_hash}},
            "template": {**template, "metadata": {**(template.get("metadata") or {}), "labels": labels}},
        },
        "status": {
            "replicas": counts.get("replicas", 0),
            "observedGeneration": manifest.record.generation,
            **{k: counts[k] for k in ("readyReplicas", "availableReplicas") if k in counts},
        },
    }


def _stateful_set(manifest: Manifest, pods: list[PodEntry], said: list[Placement], stamp: int) -> Object:
    """Pods are counted by ordinal: of two with one ordinal, for a moment after a partition, one counts."""
    obj = _versioned(manifest.obj, stamp)
    obj["metadata"]["generation"] = manifest.record.generation
    name, update = manifest.record.resource.name, manifest.template_hash
    by_ordinal = {f.ordinal: f for f in map(pod_fact, pods) if not (f.terminating or f.failed)}
    facts = [by_ordinal[n] for n in sorted(n for n in by_ordinal if n is not None)]
    old = [f.template_hash for f in facts if f.template_hash != update]
    current = old[0] if old else update  # the revision that a rollout comes from, until its last pod is gone
    ready = sum(f.ready for f in facts)
    unplaced, since = _unplaced(said), rfc3339(stamp_ms(stamp))
    obj["status"] = {
        "observedGeneration": manifest.record.generation,
        "replicas": len(facts),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "currentReplicas": sum(f.template_hash == current for f in facts),
        "updatedReplicas": sum(f.template_hash == update for f in facts),
        "currentRevision": f"{name}-{current}",
        "updateRevision": manifest.revision,
        "collisionCount": 0,
    }
    if unplaced is not None:
        obj["status"]["conditions"] = [_not_placed(unplaced, manifest.record.replicas, since)]
    return obj


def _template_of(pod: PodEntry) -> Object:
    """The template an older pod was made of, as far as the pod tells."""
    metadata = {k: v for k, v in pod.obj["metadata"].items() if k in ("labels", "annotations")}
    return {"metadata": metadata, "spec": {k: v for k, v in pod.obj["spec"].items() if k != "nodeName"}}


def _pending_pod(manifest: Manifest, said: list[Placement], stamp: int) -> Object:
    """A Pod that no machine runs yet."""
    obj = _versioned(manifest.obj, stamp)
    unplaced = _unplaced(said)
    message = "; ".join(unplaced.reasons) if unplaced else "a tender for this pod is under way"
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable" if unplaced else "Tendered",
        "message": message,
        "lastTransitionTime": rfc3339(stamp_ms(stamp)),
    }
    obj["status"] = {"phase": "Pending", "conditions": [condition]}
    return obj


def built_in_namespace(name: str, stamp: int) -> Object:
    """Namespaces that are simply there in every fabric."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "uid": str(UUID(int=sum(c << (8 * i) for i, c in enumerate(name.encode()[:16])))),
            "labels": {"kubernetes.io/metadata.name": name},
            "creationTimestamp": "1970-01-01T00:00:00Z",
            "resourceVersion": str(stamp),
        },
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }
