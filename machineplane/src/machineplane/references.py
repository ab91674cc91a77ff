"""ConfigMaps and Secrets that pods refer to: found in what this machine knows of the fabric, and kept with the pod.

What a pod refers to when it is made is kept with it, as signed records, in memory alone. So a container can start again
while nobody else can be asked, and a daemon that comes back gives the records to the fabric again.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from machineplane.fabric.manifests import Manifest
from magik_proto.codec import decode, encode
from magik_proto.errors import ProtocolError
from magik_proto.messages import ResourceId, decode_as, encode_message
from magik_proto.records import Workload

MAX_RECORDS = 256  # a guess: far more objects than a pod refers to; the rest is looked up when it is needed

Spec = Mapping[str, Any]


class Known(Protocol):
    """What is asked of the fabric's view."""

    def winner(self, resource: ResourceId) -> str | None: ...
    def manifest(self, uid: str) -> Manifest | None: ...


def references_of(spec: Spec) -> list[tuple[str, str]]:
    """Kind and name of all that a pod's spec refers to, each once. What is malformed is not there."""
    found = [*_of_containers(spec), *_of_volumes(spec)]
    found += [("Secret", entry.get("name")) for entry in _objects(spec.get("imagePullSecrets"))]
    return list(dict.fromkeys((kind, name) for kind, name in found if isinstance(name, str) and name))


def _of_containers(spec: Spec) -> Iterator[tuple[str, Any]]:
    for container in (*_objects(spec.get("containers")), *_objects(spec.get("initContainers"))):
        for entry in _objects(container.get("envFrom")):
            yield "ConfigMap", _part(entry, "configMapRef").get("name")
            yield "Secret", _part(entry, "secretRef").get("name")
        for entry in _objects(container.get("env")):
            source = _part(entry, "valueFrom")
            yield "ConfigMap", _part(source, "configMapKeyRef").get("name")
            yield "Secret", _part(source, "secretKeyRef").get("name")


def _of_volumes(spec: Spec) -> Iterator[tuple[str, Any]]:
    for volume in _objects(spec.get("volumes")):
        yield "ConfigMap", _part(volume, "configMap").get("name")
        yield "Secret", _part(volume, "secret").get("secretName")
        for source in _objects(_part(volume, "projected").get("sources")):
            yield "ConfigMap", _part(source, "configMap").get("name")
            yield "Secret", _part(source, "secret").get("name")


def _objects(value: object) -> list[Spec]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _part(value: Spec, name: str) -> Spec:
    inner = value.get(name)
    return inner if isinstance(inner, Mapping) else {}


class References:
    """Looks objects up. ``known`` is set when the fabric's view is there; until then only what pods kept is known."""

    def __init__(self) -> None:
        self.known: Known | None = None

    def collect(self, namespace: str, spec: Spec) -> tuple[Workload, ...]:
        """The signed records of what a pod refers to, as far as it is known here, to go with its award."""
        found = [self._newest(namespace, kind, name) for kind, name in references_of(spec)[:MAX_RECORDS]]
        return tuple(manifest.record for manifest in found if manifest is not None)

    def lookup(self, records: bytes, kind: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        """An object as the fabric has it now, else as it came with the pod."""
        newest = self._newest(namespace, kind, name)
        if newest is not None:
            return newest.obj
        resource = ResourceId(namespace, kind, name)
        return next((Manifest.of(r).obj for r in records_in(records) if r.resource == resource), None)

    def _newest(self, namespace: str, kind: str, name: str) -> Manifest | None:
        if self.known is None:
            return None
        try:
            uid = self.known.winner(ResourceId(namespace, kind, name))
        except ProtocolError:
            return None  # no object can have such a name
        return self.known.manifest(uid) if uid else None


def pack(records: Iterable[Workload]) -> bytes:
    """Records as they are kept with a pod."""
    return encode([encode_message(record) for record in records])


def records_in(raw: bytes) -> Iterable[Workload]:
    """What :func:`pack` made; nothing of what is damaged."""
    if not raw:
        return
    try:
        listed = decode(raw)
    except ProtocolError:
        return
    for item in listed if isinstance(listed, list) else ():
        try:
            yield decode_as(Workload, bytes(item))
        except (ProtocolError, TypeError):
            continue
