"""Endpoints and EndpointSlices: derived from Services and the pods that they select, never stored, for who reads them.

The traffic does not go by them (it is the agents'), and a pod's address means something only on its own machine; but
`kubectl describe service` and others show by them who is behind a Service.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from machineplane.fabric.manifests import Object
from machineplane.fabric.services import Services, selector_of, selects
from machineplane.fabric.view import ObjectKey, PodEntry, View

MAX_ADDRESSES: Final = 1000
"""Of one object, as in Kubernetes; those that are more are left out, and an annotation says so."""
_OVER: Final = "endpoints.kubernetes.io/over-capacity"

Ports = tuple[tuple[str, int, str], ...]  # name, number in the pod, protocol


class Endpoints:
    """Keeps up with the view: :meth:`changed` says which groups of it (``endpoints/NAMESPACE/NAME``) look different."""

    def __init__(self, view: View, services: Services) -> None:
        self._view = view
        self._services = services
        self._behind: dict[
            str, frozenset[str]
        ] = {}  # by a group of the view: the Services that its pods were behind
        self._stamps: dict[str, int] = {}  # by Service, so that no version is older than the one before

    def changed(self, group: str, namespace: str) -> list[str]:
        """After `Services.changed`, which gave the ``namespace``: the groups to be rendered anew."""
        if not namespace:
            return []
        own = [name for kind, _, name in self._view.shown_in(group) if kind == "Service"]
        pods = self._view.pods_of(group.partition("/")[2])
        now = frozenset(
            service["metadata"]["name"]
            for labels in {tuple(sorted(_labels(pod).items())) for pod in pods}
            for service in self._services.selecting(namespace, dict(labels))
        )
        names = {*own, *now, *self._behind.get(group, ())}
        if now or own:
            self._behind[group] = now | frozenset(own)
        else:
            self._behind.pop(group, None)
        return [f"endpoints/{namespace}/{name}" for name in sorted(names)]

    def render(self, group: str) -> dict[ObjectKey, Object]:
        """The objects of one Service; none where it is gone, or selects nothing by labels."""
        _, namespace, name = group.split("/")
        service = self._services.named(namespace, name)
        if service is None or not selector_of(service):
            self._stamps.pop(group, None)
            return {}
        pods = [pod for pod in self._services.pods(namespace) if _is_behind(service, pod)]
        stamps = (int(service["metadata"].get("resourceVersion") or 0), self._services.touched(namespace))
        stamp = self._stamps[group] = max(self._stamps.get(group, 0), *stamps)
        made = [_endpoints(service, pods, stamp), *_slices(service, pods, stamp)]
        return {(obj["kind"], namespace, obj["metadata"]["name"]): obj for obj in made}


def _labels(pod: PodEntry) -> Mapping[str, str]:
    return pod.obj["metadata"].get("labels") or {}


def _is_behind(service: Object, pod: PodEntry) -> bool:
    status = pod.obj.get("status") or {}
    over = status.get("phase") in ("Succeeded", "Failed")
    return bool(status.get("podIP")) and not over and selects(selector_of(service), _labels(pod))


def _is_ready(pod: PodEntry) -> bool:
    conditions = (pod.obj.get("status") or {}).get("conditions") or ()
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
    return ready and not pod.terminating


def _ports(service: Object, pod: PodEntry) -> Ports:
    """The Service's ports as this pod has them; one that it has no port of that name for is left out."""
    spec = pod.obj.get("spec") or {}
    named = {
        port.get("name"): port.get("containerPort")
        for container in spec.get("containers") or ()
        for port in container.get("ports") or ()
        if isinstance(port, dict)
    }
    found = []
    for port in (service.get("spec") or {}).get("ports") or ():
        target = port.get("targetPort") or port.get("port")
        number = named.get(target) if isinstance(target, str) else target
        if isinstance(number, int):
            found.append((str(port.get("name") or ""), number, str(port.get("protocol") or "TCP")))
    return tuple(found)


def _by_ports(service: Object, pods: Iterable[PodEntry]) -> list[tuple[Ports, list[PodEntry]]]:
    found: dict[Ports, list[PodEntry]] = {}
    for pod in sorted(pods, key=lambda pod: pod.obj["metadata"]["name"])[:MAX_ADDRESSES]:
        found.setdefault(_ports(service, pod), []).append(pod)
    return sorted(found.items())


def _metadata(service: Object, name: str, stamp: int, **more: Any) -> dict[str, Any]:
    own = service["metadata"]
    digest = hashlib.sha256(f"{own.get('uid')}/{name}/{sorted(more)}".encode()).digest()
    made = {
        "name": name,
        "namespace": own["namespace"],
        "uid": str(UUID(bytes=digest[:16], version=4)),
        "resourceVersion": str(stamp),
        **more,
    }
    created = own.get("creationTimestamp")
    return made | ({"creationTimestamp": created} if created else {})


def _endpoints(service: Object, pods: list[PodEntry], stamp: int) -> Object:
    subsets = []
    for ports, members in _by_ports(service, pods):
        subset: dict[str, Any] = {}
        for key, ready in (("addresses", True), ("notReadyAddresses", False)):
            if chosen := [_address(pod) for pod in members if _is_ready(pod) is ready]:
                subset[key] = chosen
        if ports:
            subset["ports"] = [_port(*port) for port in ports]
        subsets.append(subset)
    more: dict[str, Any] = {"annotations": {_OVER: "truncated"}} if len(pods) > MAX_ADDRESSES else {}
    if labels := service["metadata"].get("labels"):
        more["labels"] = dict(labels)
    metadata = _metadata(service, service["metadata"]["name"], stamp, **more)
    return {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata} | (
        {"subsets": subsets} if subsets else {}
    )


def _address(pod: PodEntry) -> dict[str, Any]:
    return {"ip": pod.obj["status"]["podIP"], **_place(pod)}


def _place(pod: PodEntry) -> dict[str, Any]:
    metadata, node = pod.obj["metadata"], (pod.obj.get("spec") or {}).get("nodeName")
    target = {
        "kind": "Pod",
        "name": metadata["name"],
        "namespace": metadata.get("namespace"),
        "uid": metadata.get("uid"),
    }
    return {"targetRef": target} | ({"nodeName": node} if node else {})


def _port(name: str, number: int, protocol: str) -> dict[str, Any]:
    return {**({"name": name} if name else {}), "port": number, "protocol": protocol}


def _slices(service: Object, pods: list[PodEntry], stamp: int) -> Iterable[Object]:
    """One for each set of ports; an empty one where there are no pods, so that a reader finds the Service's."""
    name, own = service["metadata"]["name"], service["metadata"]
    owner = {"apiVersion": "v1", "kind": "Service", "name": name, "uid": own.get("uid"), "controller": True}
    for ports, members in _by_ports(service, pods) or [((), [])]:
        suffix = hashlib.sha256(repr(ports).encode()).hexdigest()[:5]
        labels = {
            **(own.get("labels") or {}),
            "kubernetes.io/service-name": name,
            "endpointslice.kubernetes.io/managed-by": "magik.io",
        }
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": _metadata(service, f"{name}-{suffix}", stamp, labels=labels, ownerReferences=[owner]),
            "addressType": "IPv4",
            "endpoints": [_endpoint(pod) for pod in members],
            "ports": [{**_port(*port), "name": port[0]} for port in ports],
        }


def _endpoint(pod: PodEntry) -> dict[str, Any]:
    ready = _is_ready(pod)
    conditions = {"ready": ready, "serving": ready, "terminating": pod.terminating}
    return {"addresses": [pod.obj["status"]["podIP"]], "conditions": conditions, **_place(pod)}
