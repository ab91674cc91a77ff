"""Kubernetes Events of what this machine did, in memory: the newest ``EVENTS_MAX``, each for an hour."""

from collections.abc import Callable, Mapping
from typing import Any, Literal
from uuid import uuid4

from machineplane.fabric.manifests import Object
from machineplane.fabric.objects import rfc3339
from machineplane.fabric.scope import OF
from machineplane.fabric.table import Table
from magik_proto.records import canonical_json

EVENTS_MAX = 500  # guess; at the cap the oldest goes
EVENT_LIFE_MS = 3_600_000  # Kubernetes' default event lifetime
EventType = Literal["Normal", "Warning"]


def _of(obj: Object) -> str:
    return f"{obj['metadata']['namespace']}/Event/{obj['metadata']['name']}"


class Events:
    """Records events in the machine's table; the same (object, reason, message) again counts up instead of repeating."""

    def __init__(self, table: Table, wall: Callable[[], int], host: str) -> None:
        self._table = table
        self._wall = wall
        self._host = host
        self._seen: dict[tuple[str, str, str], tuple[str, Object]] = {}

    def record(self, about: Mapping[str, Any], kind: EventType, reason: str, message: str) -> None:
        """``about`` is the object concerned: its kind, name, namespace and uid are taken over."""
        self.expire()
        now = self._wall()
        key = (about["metadata"].get("uid", ""), reason, message)
        known = self._seen.pop(key) if key in self._seen else None
        ident, obj = known or (str(uuid4()), self._new(about, kind, reason, message))
        obj = {**obj, "count": obj["count"] + 1, "lastTimestamp": rfc3339(now)}
        self._seen[key] = (ident, obj)  # moved to the end: the oldest stays first
        self._table.put(("event", ident), {"json": canonical_json(obj), "at": now, OF: _of(obj)})

    def expire(self) -> None:
        """Forget what is over an hour old or over the cap."""
        now = self._wall()
        while self._seen:
            key, (ident, _) = next(iter(self._seen.items()))
            value = self._table.get(("event", ident)) or {}
            at = value.get("at")
            if len(self._seen) <= EVENTS_MAX and isinstance(at, int) and now - at < EVENT_LIFE_MS:
                return
            del self._seen[key]
            self._table.remove(("event", ident))

    def _new(self, about: Mapping[str, Any], kind: EventType, reason: str, message: str) -> Object:
        metadata = about["metadata"]
        namespace = metadata.get("namespace") or "default"
        now = self._wall()
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{self._wall():x}{uuid4().hex[:6]}",
                "namespace": namespace,
                "uid": str(uuid4()),
                "creationTimestamp": rfc3339(now),
            },
            "involvedObject": {
                "apiVersion": about.get("apiVersion", "v1"),
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": namespace,
                "uid": metadata.get("uid", ""),
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": "machineplane", "host": self._host},
            "reportingComponent": "machineplane",
            "reportingInstance": self._host,
            "firstTimestamp": rfc3339(now),
            "count": 0,
        }
