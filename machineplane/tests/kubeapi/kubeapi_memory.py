"""A Backend in memory, for tests: keeps objects, plays the controllers in the simplest way, remembers a few
events."""

import hashlib
import json
import math
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from typing import Any

import trio

from machineplane import channels
from machineplane.kubeapi.backend import (
    AttachOptions,
    ExecOptions,
    Listing,
    LogOptions,
    Object,
    Propagation,
    WatchEvent,
)
from machineplane.kubeapi.errors import ApiError
from machineplane.kubeapi.kinds import DEPLOYMENT, EVENT, NAMESPACE, NODE, POD, REPLICA_SET, Kind

NOW = "2026-01-02T03:04:05Z"
Key = tuple[str, str, str]


class MemoryWatch:
    """Events after a version, by polling a list that only grows; waiting is cancellable anywhere."""

    def __init__(self, backend: "MemoryBackend", kind: Kind, namespace: str | None, since: int) -> None:
        self.backend, self.kind, self.namespace = backend, kind, namespace
        self.seen = since

    def __aiter__(self) -> "MemoryWatch":
        return self

    async def __anext__(self) -> WatchEvent:
        while True:
            for version, plural, event in self.backend.history:
                if version <= self.seen:
                    continue
                self.seen = version
                place = event.object["metadata"].get("namespace")
                if plural == self.kind.plural and self.namespace in (None, place):
                    return event
            self.backend.check_kept(self.seen)
            if self.backend.watch_fault is not None:
                raise self.backend.watch_fault
            await self.backend.changed.wait()

    def position(self) -> str:
        return str(self.seen)


class EchoSession:
    """A process that writes what it reads, also its sizes, and ends with a code when its stdin ends."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.sender, self.receiver = trio.open_memory_channel[channels.Frame](0)

    async def send(self, channel: int, payload: bytes) -> None:
        if (channel, payload) == channels.END_OF_STDIN:
            await self.sender.send(channels.exited(self.code))
        elif channel == channels.RESIZE:
            await self.sender.send((channels.STDERR, repr(channels.parse_size(payload)).encode()))
        else:
            await self.sender.send((channels.STDOUT, payload))

    async def receive(self) -> channels.Frame:
        return await self.receiver.receive()


class MemoryBackend:
    """Deployments get a ReplicaSet and running pods at once; deletes are at once."""

    def __init__(self) -> None:
        self.version = 100
        self.oldest = 0
        self.objects: dict[Key, Object] = {}
        self.history: list[tuple[int, str, WatchEvent]] = []
        self.changed = trio.Event()
        self.open_watches = 0
        self.watches_moved = trio.Event()
        self.open_logs = 0
        self.executed: list[tuple[str, str, str, ExecOptions]] = []
        self.attached: list[tuple[str, str, str, AttachOptions]] = []
        self.exit_code = 0
        self.open_sessions = 0
        self.sessions_moved = trio.Event()
        self.ports: dict[int, trio.abc.HalfCloseableStream] = {}
        self.log_lines: list[bytes] = [b"one\n", b"two\n", b"three\n"]
        self.log_more = math.inf
        self.fail: Exception | None = None
        self.watch_fault: Exception | None = None
        self.races = 0
        for name in ("default", "kube-system"):
            self._put(
                NAMESPACE,
                self._identified(
                    {
                        "apiVersion": "v1",
                        "kind": "Namespace",
                        "metadata": {"name": name},
                        "spec": {},
                        "status": {"phase": "Active"},
                    }
                ),
            )
        self._put(NODE, self._identified(_node("m0")))

    # Reads

    async def list(self, kind: Kind, namespace: str | None, name: str | None = None) -> Listing:
        self._fail()
        found = [
            deepcopy(obj)
            for (plural, place, _), obj in self.objects.items()
            if plural == kind.plural and (namespace is None or place == namespace)
        ]
        return Listing(found, str(self.version))

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        self._fail()
        return deepcopy(self.objects.get((kind.plural, namespace or "", name)))

    # Writes

    async def create(self, kind: Kind, obj: Object, *, dry_run: bool) -> Object:
        self._fail()
        meta = obj["metadata"]
        if kind.namespaced and (NAMESPACE.plural, "", meta["namespace"]) not in self.objects:
            raise ApiError.not_found(NAMESPACE.subject(meta["namespace"]))
        if _key(kind, obj) in self.objects:
            raise ApiError.already_exists(kind.subject(meta["name"]))
        new = self._identified(deepcopy(obj))
        if kind == NAMESPACE:
            new["status"] = {"phase": "Active"}
        if dry_run:
            return new
        self._put(kind, new)
        if kind == POD:
            self._run(new)
        if kind == DEPLOYMENT:
            self._reconcile(new)
        return deepcopy(self.objects[_key(kind, new)] if kind != DEPLOYMENT else new)

    async def replace(
        self, kind: Kind, obj: Object, *, expected_resource_version: str | None, dry_run: bool
    ) -> Object:
        self._fail()
        key = _key(kind, obj)
        old = self.objects.get(key)
        name = obj["metadata"]["name"]
        if old is None:
            raise ApiError.not_found(kind.subject(name))
        if self.races:
            self.races -= 1
            self._bump(old)
        if expected_resource_version not in (None, old["metadata"]["resourceVersion"]):
            raise ApiError.conflict(kind.subject(name))
        new = deepcopy(obj)
        for field in ("uid", "creationTimestamp", "generation", "resourceVersion"):
            if field in old["metadata"]:
                new["metadata"][field] = old["metadata"][field]
        if new == old or dry_run:
            return new
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = new["metadata"].get("generation", 0) + 1
        self._put(kind, new)
        if kind == DEPLOYMENT:
            self._reconcile(new)
        return deepcopy(new)

    async def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None,
        resource_version: str | None,
        propagation: Propagation,
        grace_seconds: int | None,
        dry_run: bool,
    ) -> Object:
        self._fail()
        old = self.objects.get((kind.plural, namespace or "", name))
        if old is None:
            raise ApiError.not_found(kind.subject(name))
        if uid not in (None, old["metadata"]["uid"]):
            raise ApiError.conflict(kind.subject(name), "the UID in the precondition differs")
        if not dry_run:
            self._remove(kind, old)
            if kind == DEPLOYMENT:
                self._remove_owned(old)
        return deepcopy(old)

    # Streams

    @asynccontextmanager
    async def watch(
        self, kind: Kind, namespace: str | None, since: str | None, name: str | None = None
    ) -> AsyncIterator[MemoryWatch]:
        start = self.version if since is None else int(since)
        self.check_kept(start)
        self._count_watch(1)
        try:
            yield MemoryWatch(self, kind, namespace, start)
        finally:
            self._count_watch(-1)

    def _count_watch(self, step: int) -> None:
        self.open_watches += step
        self.watches_moved.set()
        self.watches_moved = trio.Event()

    async def until_watches(self, count: int) -> None:
        """Wait until that many watches are open."""
        while self.open_watches != count:
            await self.watches_moved.wait()

    @asynccontextmanager
    async def logs(
        self, namespace: str, pod: str, container: str | None, options: LogOptions
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self._fail()
        self.open_logs += 1
        try:
            yield self._lines(options)
        finally:
            self.open_logs -= 1

    async def _lines(self, options: LogOptions) -> AsyncIterator[bytes]:
        for line in self.log_lines[-options.tail_lines if options.tail_lines is not None else 0 :]:
            yield line
        if options.follow:
            await trio.sleep(self.log_more)
            yield b"more\n"

    @asynccontextmanager
    async def execute(
        self, namespace: str, pod: str, container: str, options: ExecOptions
    ) -> AsyncIterator[EchoSession]:
        if options.command[0] == "nosuch":
            raise channels.SessionRefused("nosuch cannot be run")
        self.executed.append((namespace, pod, container, options))
        self._count_session(1)
        try:
            yield EchoSession(self.exit_code)
        finally:
            self._count_session(-1)

    @asynccontextmanager
    async def attach(
        self, namespace: str, pod: str, container: str, options: AttachOptions
    ) -> AsyncIterator[EchoSession]:
        self.attached.append((namespace, pod, container, options))
        yield EchoSession(self.exit_code)

    @asynccontextmanager
    async def forward(
        self, namespace: str, pod: str, port: int
    ) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        if port not in self.ports:
            raise channels.SessionRefused(f"port {port} takes no connection")
        async with self.ports[port] as stream:
            yield stream

    def _count_session(self, step: int) -> None:
        self.open_sessions += step
        self.sessions_moved.set()
        self.sessions_moved = trio.Event()

    async def until_sessions(self, count: int) -> None:
        """Wait until that many sessions are open."""
        while self.open_sessions != count:
            await self.sessions_moved.wait()

    def check_kept(self, since: int) -> None:
        if since < self.oldest:
            raise ApiError.expired()

    # Inside

    def _fail(self) -> None:
        if self.fail is not None:
            raise self.fail

    def _identified(self, obj: Object) -> Object:
        obj["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": NOW, "resourceVersion": "0"}
        if "spec" in obj:
            obj["metadata"]["generation"] = 1
        return obj

    def _put(self, kind: Kind, obj: Object) -> None:
        key = _key(kind, obj)
        previous = self.objects.get(key)
        self._bump(obj)
        self.objects[key] = deepcopy(obj)
        self._tell(kind, WatchEvent("MODIFIED" if previous else "ADDED", deepcopy(obj), previous))

    def _remove(self, kind: Kind, obj: Object) -> None:
        del self.objects[_key(kind, obj)]
        gone = deepcopy(obj)
        self._bump(gone)
        self._tell(kind, WatchEvent("DELETED", gone))

    def _bump(self, obj: Object) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)

    def _tell(self, kind: Kind, event: WatchEvent) -> None:
        self.history.append((self.version, kind.plural, event))
        self.changed.set()
        self.changed = trio.Event()

    def forget_history(self) -> None:
        """As after a restart: versions up to now cannot be watched from."""
        self.history.clear()
        self.oldest = self.version + 1
        self.version += 1
        self.changed.set()
        self.changed = trio.Event()

    def _reconcile(self, deployment: Object) -> None:
        meta, spec = deployment["metadata"], deployment["spec"]
        wanted = spec["replicas"]
        digest = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:8]
        name = f"{meta['name']}-{digest}"
        self._remove_owned(deployment)
        labels = spec["template"].get("metadata", {}).get("labels", {})
        owner = [_owner(deployment)]
        common = {"namespace": meta["namespace"], "labels": labels, "ownerReferences": owner}
        revision = {"deployment.kubernetes.io/revision": "1"}
        self._put(
            REPLICA_SET,
            self._identified(
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "metadata": {"name": name, "annotations": revision, **common},
                    "spec": {"replicas": wanted, "selector": spec["selector"], "template": spec["template"]},
                    "status": _counts(wanted, 1),
                }
            ),
        )
        for index in range(wanted):
            pod = self._identified(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": f"{name}-{index}", **common},
                    "spec": deepcopy(spec["template"]["spec"]),
                }
            )
            self._put(POD, pod)
            self._run(pod)
        deployment["status"] = _counts(wanted, meta["generation"])
        self._put(DEPLOYMENT, deployment)
        self._put(
            EVENT,
            self._identified(_event(deployment, f"Scaled up replica set {name} to {wanted}", self.version)),
        )

    def _remove_owned(self, owner: Object) -> None:
        for kind in (POD, REPLICA_SET):
            for (plural, _, _), obj in list(self.objects.items()):
                owners = obj["metadata"].get("ownerReferences") or ()
                if plural == kind.plural and any(item["uid"] == owner["metadata"]["uid"] for item in owners):
                    self._remove(kind, obj)

    def _run(self, pod: Object) -> None:
        pod["spec"]["nodeName"] = "m0"
        pod["status"] = {
            "phase": "Running",
            "podIP": "10.1.0.7",
            "hostIP": "10.0.0.1",
            "startTime": NOW,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "ready": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": NOW}},
                }
                for container in pod["spec"]["containers"]
            ],
        }
        self._put(POD, pod)


def _key(kind: Kind, obj: Object) -> Key:
    return kind.plural, obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _owner(obj: Object) -> dict[str, Any]:
    meta = obj["metadata"]
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
    }


def _counts(replicas: int, generation: int) -> dict[str, Any]:
    return {
        "observedGeneration": generation,
        "replicas": replicas,
        "readyReplicas": replicas,
        "updatedReplicas": replicas,
        "availableReplicas": replicas,
        "conditions": [
            {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable", "message": "ok"},
            {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable", "message": "ok"},
        ],
    }


def _event(about: Object, message: str, number: int) -> Object:
    meta = about["metadata"]
    involved = {
        "apiVersion": about["apiVersion"],
        "kind": about["kind"],
        "name": meta["name"],
        "namespace": meta["namespace"],
        "uid": meta["uid"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.{number:x}", "namespace": meta["namespace"]},
        "involvedObject": involved,
        "type": "Normal",
        "reason": "ScalingReplicaSet",
        "message": message,
        "source": {"component": "magik"},
        "firstTimestamp": NOW,
        "lastTimestamp": NOW,
        "count": 1,
    }


def _node(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [
                {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "Hostname", "address": name},
            ],
            "nodeInfo": {
                "kubeletVersion": "v1.32.0+magik",
                "osImage": "Debian",
                "kernelVersion": "6.1",
                "containerRuntimeVersion": "crun://1.8",
            },
            "capacity": {"cpu": "2", "memory": "4Gi", "pods": "100"},
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "100"},
        },
    }
