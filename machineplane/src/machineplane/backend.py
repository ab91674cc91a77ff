"""The Kubernetes API's backend: what kubeapi asks, answered by what fabric knows.

The two rooms do not know each other; this adapter does. A read first lets the view catch up with what it is about
(`Outlook`), so that what one machine acknowledged is seen through all others.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self
from uuid import UUID, uuid4

import trio
from attrs import asdict

from machineplane.channels import Session, SessionRefused
from machineplane.fabric.guardian import Guardian
from machineplane.fabric.holdings import HoldingsFull
from machineplane.fabric.manifests import Manifest, Object, manifest_of, replicas_of
from machineplane.fabric.objects import BUILT_IN_NAMESPACES, built_in_namespace, rfc3339
from machineplane.fabric.outlook import Outlook
from machineplane.fabric.remote import LogUnavailable, Remote
from machineplane.fabric.sessions import ATTACH, EXEC, Query, Sessions
from machineplane.fabric.view import Change, PodEntry, View
from machineplane.kubeapi.backend import (
    AttachOptions,
    ExecOptions,
    Listing,
    LogOptions,
    Propagation,
    Watch,
    WatchEvent,
)
from machineplane.kubeapi.errors import ApiError, Cause
from machineplane.kubeapi.kinds import Kind
from magik_proto.errors import InvalidField
from magik_proto.fields import MAX_MANIFEST
from magik_proto.identity import Identity
from magik_proto.messages import ResourceId
from magik_proto.records import Workload
from magik_proto.signing import new_nonce, sign

REVISION = "deployment.kubernetes.io/revision"
COUNTED = ("Deployment", "StatefulSet")  # kinds whose objects show their generation
_FIELD = re.compile(r"spec(\.\w+|\[\d+\])+")  # with which a refusal begins that is about one field
_VERSION = re.compile("[0-9]{1,20}")  # 64 bits have no more digits


class FabricBackend:
    """Implements `machineplane.kubeapi.backend.Backend` for the whole fabric."""

    def __init__(
        self,
        *,
        identity: Identity,
        wall: Callable[[], int],
        view: View,
        outlook: Outlook,
        guardian: Guardian,
        remote: Remote,
        sessions: Sessions,
        dispose: Callable[[Workload], Awaitable[None]],
        check: Callable[[Manifest], str | None],
    ) -> None:
        self._identity = identity
        self._wall = wall
        self._view = view
        self._outlook = outlook
        self._guardian = guardian
        self._remote = remote
        self._sessions = sessions
        self._dispose = dispose
        self._check = check
        self._moved = trio.Event()

    def view_changed(self) -> None:
        """Wake the watches; to be called at each change of the view."""
        self._moved.set()
        self._moved = trio.Event()

    # -- reading

    async def list(self, kind: Kind, namespace: str | None, name: str | None = None) -> Listing:
        warning = await self._outlook.all_of(kind.kind, namespace, name)
        found = [
            copy(obj)
            for (name, space, _), obj in self._view.rendered.items()
            if name == kind.kind and namespace in (None, space)
        ]
        stamp = self._view.clock.now()
        if kind.kind == "Namespace":
            shown = {obj["metadata"]["name"] for obj in found}
            found += [
                built_in_namespace(n, self._view.log_start) for n in BUILT_IN_NAMESPACES if n not in shown
            ]
        return Listing(found, str(stamp), warning)

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        await self._outlook.one(kind.kind, namespace, name)
        return self._find(kind, namespace, name)

    def _find(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        obj = self._view.rendered.get((kind.kind, namespace or "", name))
        if obj is None and kind.kind == "Namespace" and name in BUILT_IN_NAMESPACES:
            return built_in_namespace(name, self._view.log_start)
        return copy(obj) if obj is not None else None

    @asynccontextmanager
    async def watch(
        self, kind: Kind, namespace: str | None, since: str | None, name: str | None = None
    ) -> AsyncIterator[Watch]:
        with self._outlook.watching(kind.kind, namespace, name):
            now = self._view.clock.now()
            start = _stamp(since or "") or now
            if start < max(self._view.log_start, self._view.forgotten_at) or start > now:
                raise ApiError.expired()
            yield FabricWatch(self, kind.kind, namespace, start)

    def changes(self, after: int) -> Iterator[Change]:
        """What was logged after a stamp, oldest first."""
        recent = []
        for change in reversed(self._view.log):
            if change.stamp <= after:
                break
            recent.append(change)
        return reversed(recent)

    async def wait_for_change(self) -> None:
        await self._moved.wait()

    @property
    def log_start(self) -> int:
        return self._view.log_start

    def now(self) -> int:
        return self._view.clock.now()

    @asynccontextmanager
    async def logs(
        self, namespace: str, pod: str, container: str | None, options: LogOptions
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        entry = self._pod_entry(namespace, pod)
        if entry is None:
            raise ApiError.bad_request(f"pod {pod} runs on no machine yet: it has no log")
        query = {k: v for k, v in asdict(options).items() if v is not None}
        query |= {"uid": entry.uid} | ({"container": container} if container else {})
        try:
            async with self._remote.logs(entry.node, query) as chunks:
                yield chunks
        except LogUnavailable as error:
            raise ApiError.bad_request(str(error)) from error

    @asynccontextmanager
    async def execute(
        self, namespace: str, pod: str, container: str, options: ExecOptions
    ) -> AsyncIterator[Session]:
        query = {**asdict(options), "command": list(options.command), "container": container}
        async with self._session(EXEC, namespace, pod, query) as session:
            yield session

    @asynccontextmanager
    async def attach(
        self, namespace: str, pod: str, container: str, options: AttachOptions
    ) -> AsyncIterator[Session]:
        query = {**asdict(options), "container": container}
        async with self._session(ATTACH, namespace, pod, query) as session:
            yield session

    @asynccontextmanager
    async def forward(
        self, namespace: str, pod: str, port: int
    ) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        entry = self._running(namespace, pod)
        async with self._sessions.forward(entry.node, {"uid": entry.uid, "port": port}) as stream:
            yield stream

    @asynccontextmanager
    async def _session(self, method: str, namespace: str, pod: str, query: Query) -> AsyncIterator[Session]:
        entry = self._running(namespace, pod)
        async with self._sessions.open(entry.node, method, {**query, "uid": entry.uid}) as session:
            yield session

    def _running(self, namespace: str, pod: str) -> PodEntry:
        entry = self._pod_entry(namespace, pod)
        if entry is None:
            raise SessionRefused(f"pod {pod} runs on no machine yet")
        return entry

    def _pod_entry(self, namespace: str, name: str) -> PodEntry | None:
        """The newest living pod of that name, else one that is ending."""
        found = [
            entry
            for pods in self._view.pods.values()
            for entry in pods.values()
            if (entry.obj["metadata"].get("namespace"), entry.obj["metadata"]["name"]) == (namespace, name)
        ]
        return max(found, key=lambda p: (not p.terminating, p.stamp), default=None)

    # -- writing

    async def create(self, kind: Kind, obj: Object, *, dry_run: bool) -> Object:
        metadata = obj["metadata"]
        await self._outlook.one(kind.kind, metadata.get("namespace"), metadata["name"])
        if self._find(kind, metadata.get("namespace"), metadata["name"]) is not None:
            raise ApiError.already_exists(kind.subject(metadata["name"]))
        if kind.namespaced:
            await self._require_namespace(metadata["namespace"])
        uid, stamp = uuid4(), self._view.clock.now()
        metadata |= {"uid": str(uid), "creationTimestamp": rfc3339(self._wall())}
        if kind.kind in COUNTED:
            metadata["generation"] = 1
        if kind.kind == "Deployment":
            metadata["annotations"] = {**(metadata.get("annotations") or {}), REVISION: "1"}
        return await self._keep(kind, obj, uid, 1, stamp, dry_run)

    async def _require_namespace(self, name: str) -> None:
        if name in BUILT_IN_NAMESPACES:
            return
        await self._outlook.one("Namespace", None, name)
        if ("Namespace", "", name) not in self._view.rendered:
            raise ApiError(404, "NotFound", f'namespaces "{name}" not found')

    async def _keep(
        self,
        kind: Kind,
        obj: Object,
        uid: UUID,
        generation: int,
        stamp: int,
        dry_run: bool,
        before: Workload | None = None,
    ) -> Object:
        """Sign the manifest, guard it here and at its guardians, and show it."""
        manifest = manifest_of(obj)
        if len(manifest) > MAX_MANIFEST:
            raise ApiError.too_large(MAX_MANIFEST)
        metadata = obj["metadata"]
        # What has no namespace is filed under its own name: a resource id always has three parts.
        space = metadata["namespace"] if kind.namespaced else metadata["name"]
        try:
            record = Workload(
                resource=ResourceId(space, kind.kind, metadata["name"]),
                uid=uid,
                generation=generation,
                replicas=replicas_of(obj),
                manifest=manifest,
                author=self._identity.peer_id,
                stamp=stamp,
                timestamp=self._wall(),
                nonce=new_nonce(),
            )
        except InvalidField as error:
            cause = Cause("FieldValueInvalid", error.detail, error.field)
            raise ApiError.invalid(kind.kind_subject(metadata["name"]), [cause]) from error
        self._refuse_unplaceable(kind, record)
        if dry_run:
            return {**obj, "metadata": {**metadata, "resourceVersion": str(stamp)}}
        try:
            self._guardian.take(record := sign(record, self._identity))
        except HoldingsFull as error:
            raise ApiError.unavailable(str(error)) from error
        await self._remote.spread(record, before)
        return self._find(kind, metadata.get("namespace"), metadata["name"]) or obj

    def _refuse_unplaceable(self, kind: Kind, record: Workload) -> None:
        try:
            problem = self._check(Manifest.of(record))
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            where = _FIELD.match(problem)
            cause = Cause("FieldValueInvalid", problem, where[0] if where else "spec")
            raise ApiError.invalid(kind.kind_subject(record.resource.name), [cause])

    async def replace(
        self, kind: Kind, obj: Object, *, expected_resource_version: str | None, dry_run: bool
    ) -> Object:
        metadata = obj["metadata"]
        await self._outlook.one(kind.kind, metadata.get("namespace"), metadata["name"])
        subject = kind.subject(metadata["name"])
        shown = self._find(kind, metadata.get("namespace"), metadata["name"])
        if shown is None:
            raise ApiError.not_found(subject)
        manifest = self._view.manifest(shown["metadata"]["uid"]) or self._named(kind, obj)
        if manifest is None:
            raise ApiError.forbidden(
                f"{subject.resource} {metadata['name']} is not changed by itself: change what made it"
            )
        record = manifest.record
        if expected_resource_version is not None and not self._is_current(expected_resource_version, record):
            raise ApiError.conflict(subject)
        obj = _next(obj, manifest)
        changed_spec = obj.get("spec") != manifest.obj.get("spec")
        if kind.kind == "Pod" and changed_spec:
            cause = Cause(
                "FieldValueForbidden", "Forbidden: a pod's spec is not updated: delete and create it", "spec"
            )
            raise ApiError.invalid(kind.kind_subject(metadata["name"]), [cause])
        if manifest_of(obj) == record.manifest:
            return shown
        generation = record.generation + (1 if changed_spec else 0)
        if kind.kind in COUNTED:
            obj["metadata"]["generation"] = generation
        return await self._keep(kind, obj, record.uid, generation, self._view.clock.now(), dry_run, record)

    def _named(self, kind: Kind, obj: Object) -> Manifest | None:
        """The manifest behind an object whose own uid is that of one incarnation (a Pod that was placed again)."""
        metadata = obj["metadata"]
        uid = self._view.winner(
            ResourceId(metadata.get("namespace") or metadata["name"], kind.kind, metadata["name"])
        )
        return self._view.manifest(uid) if uid else None

    @staticmethod
    def _is_current(version: str, record: Workload) -> bool:
        """Status moves the version that clients see; only a newer manifest than the client saw is a conflict."""
        seen = _stamp(version)
        return seen is not None and seen >= record.stamp

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
        await self._outlook.one(kind.kind, namespace, name)
        obj = self._find(kind, namespace, name)
        if obj is None:
            raise ApiError.not_found(kind.subject(name))
        manifest = self._view.manifest(obj["metadata"]["uid"]) or self._named(kind, obj)
        known = {obj["metadata"]["uid"], str(manifest.uid) if manifest else ""}
        if uid is not None and uid not in known:
            raise ApiError.conflict(kind.subject(name), f"the uid is {obj['metadata']['uid']}, not {uid}")
        if (
            resource_version is not None
            and manifest
            and not self._is_current(resource_version, manifest.record)
        ):
            raise ApiError.conflict(kind.subject(name))
        if dry_run:
            return obj
        if kind.kind == "Pod":
            await self._hasten(namespace or "", name, manifest, grace_seconds)
        if manifest is not None:
            if kind.kind == "Namespace":
                await self._empty(name)
            await self._dispose(manifest.record)
        elif kind.kind == "Namespace":
            raise ApiError.forbidden(f'namespaces "{name}" is forbidden: this namespace may not be deleted')
        return self._find(kind, namespace, name) or obj

    async def _hasten(
        self, namespace: str, name: str, manifest: Manifest | None, grace_seconds: int | None
    ) -> None:
        """Stop a pod that something else made (it will be replaced), or one whose delete names a grace of its own."""
        entry = self._pod_entry(namespace, name)
        if entry is not None and (manifest is None or grace_seconds is not None):
            await self._remote.retire(entry.node, entry.uid, grace_seconds)
            await self._outlook.one("Pod", namespace, name)

    async def _empty(self, namespace: str) -> None:
        await self._outlook.everything_in(namespace)
        for uid in list(self._view.records):
            manifest = self._view.manifest(uid)
            if manifest and manifest.kind != "Namespace" and manifest.record.resource.namespace == namespace:
                await self._dispose(manifest.record)


class FabricWatch:
    """One open watch; `Backend.watch` says what it promises."""

    def __init__(self, backend: FabricBackend, kind: str, namespace: str | None, start: int) -> None:
        self._backend = backend
        self._kind = kind
        self._namespace = namespace
        self._position = start

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        while True:
            if self._position < self._backend.log_start:
                raise ApiError.expired()
            change = next(self._backend.changes(self._position), None)
            if change is None:
                await self._backend.wait_for_change()
                continue
            self._position = change.stamp
            if change.key[0] == self._kind and self._namespace in (None, change.key[1]):
                return _event(change)

    def position(self) -> str:
        if next(self._backend.changes(self._position), None) is None:
            self._position = self._backend.now()
        return str(self._position)


def _stamp(version: str) -> int | None:
    """A ``resourceVersion`` of ours as the stamp that it is; None for any other text."""
    return int(version) if _VERSION.fullmatch(version) else None


def _event(change: Change) -> WatchEvent:
    obj = copy(change.obj)
    if change.type == "DELETED":
        obj["metadata"]["resourceVersion"] = str(change.stamp)
    return WatchEvent(change.type, obj)  # type: ignore[arg-type]


def copy(obj: Object) -> Object:
    """A copy that the API may change; JSON in, JSON out."""
    copied: Object = json.loads(json.dumps(obj))
    return copied


def _next(obj: Object, manifest: Manifest) -> Object:
    """The new object with what a client cannot change put back, and a new revision if the template is another."""
    old = manifest.obj["metadata"]
    kept: dict[str, Any] = {k: old[k] for k in ("uid", "creationTimestamp", "generation") if k in old}
    obj = {**obj, "metadata": {**obj["metadata"], **kept}}
    if manifest.kind == "Deployment":
        annotations = dict(obj["metadata"].get("annotations") or {})
        before = (old.get("annotations") or {}).get(REVISION, "1")
        moved = obj["spec"].get("template") != manifest.spec.get("template")
        count = _stamp(before)
        annotations[REVISION] = str(count + 1) if moved and count is not None else before
        obj["metadata"]["annotations"] = annotations
    if manifest.kind == "Pod":
        obj["spec"] = {k: v for k, v in obj["spec"].items() if k != "nodeName" or "nodeName" in manifest.spec}
        for added in ("labels", "annotations"):
            values = obj["metadata"].get(added) or {}
            obj["metadata"][added] = {k: v for k, v in values.items() if not _is_given_by_machine(k)}
    return obj


def _is_given_by_machine(key: str) -> bool:
    return key.startswith(("magik.", "magik.io/machine")) or key == "io.kubernetes.pod.namespace"
