"""The whole fabric as one machine sees it: its own table and mirrors of the tables it follows, indexed and rendered.

State without I/O: `apply` takes deltas, `drop` forgets a machine that is gone. Every visible change of a rendered object
becomes a `Change` with a stamp of this machine's clock, kept in a bounded log, so that a watch can go on from any stamp
the log still covers. Stamps of other machines are observed by the clock first: what a client saw is never ahead of the log.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

from attrs import define, evolve, field, frozen

from machineplane.fabric.manifests import Manifest, Object, check_metadata, check_template
from machineplane.fabric.scope import Scope
from machineplane.fabric.table import Delta, Entry, Key
from magik_proto.clock import HybridClock
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import KEY_BYTES, PeerId
from magik_proto.messages import ResourceId, decode_as
from magik_proto.records import Workload
from magik_proto.signing import verify

LOG_MAX = 5_000  # guess; a watcher that was away for longer lists anew (410 Gone)

SCOPES_MAX = 64  # guess: scopes of one machine whose stamps are remembered; of others all is read again

ObjectKey = tuple[str, str, str]  # kind, namespace ("" where the kind has none), name


@frozen
class PodEntry:
    """A pod somewhere: the machine, the complete object as last reported, and which manifest and template it came from."""

    node: PeerId
    uid: str
    workload: str
    template_hash: str
    stamp: int
    obj: Object
    terminating: bool


@frozen
class Change:
    stamp: int
    type: str  # ADDED, MODIFIED, DELETED, as Kubernetes' watch has them
    key: ObjectKey
    obj: Object


@frozen
class Placement:
    """What the machine that acts for a workload says of the replicas it could not place."""

    unplaced: int
    reasons: tuple[str, ...]
    stamp: int


@define
class Mirror:
    """What is known of one machine's table."""

    epoch: int = 0
    stamp: int = 0
    entries: dict[Key, Entry] = field(factory=dict)
    read_to: dict[Scope, int] = field(
        factory=dict
    )  # stamps of what was read, of this epoch, the last read last

    def apply(self, delta: Delta) -> list[Entry]:
        """The entries that changed; a delta that does not join on to what is known changes nothing."""
        if not delta.reset and (delta.epoch != self.epoch or delta.since > self.stamp):
            return []
        changed = list(delta.entries)
        if delta.reset:
            fresh = {e.key for e in delta.entries}
            changed = [Entry(k, delta.stamp, None) for k in self.entries if k not in fresh] + changed
        self.epoch, self.stamp = delta.epoch, max(delta.stamp, 0 if delta.reset else self.stamp)
        for entry in changed:
            if entry.value is None:
                self.entries.pop(entry.key, None)
            else:
                self.entries[entry.key] = entry
        return changed

    def apply_read(self, scope: Scope, delta: Delta) -> list[Entry]:
        """Likewise for a delta of a scope; what is known of other things stays, unless the machine has begun anew."""
        anew = delta.epoch != self.epoch
        if not delta.reset and (anew or delta.since != self.read_to.get(scope)):
            return []
        changed = list(delta.entries)
        if delta.reset:
            fresh = {e.key for e in delta.entries}
            gone = [
                k for k, e in self.entries.items() if k not in fresh and (anew or scope.covers(k, e.value))
            ]
            changed = [Entry(k, delta.stamp, None) for k in gone] + changed
        if anew:
            self.epoch, self.stamp = delta.epoch, 0
            self.read_to.clear()
        self.read_to.pop(scope, None)
        self.read_to[scope] = delta.stamp
        if len(self.read_to) > SCOPES_MAX:
            del self.read_to[next(iter(self.read_to))]
        for entry in changed:
            if entry.value is None:
                self.entries.pop(entry.key, None)
            else:
                self.entries[entry.key] = entry
        return changed


class View:
    """``render`` makes the objects of one workload uid, node or event (see `objects`); it is called with the view."""

    def __init__(self, own: PeerId, clock: HybridClock) -> None:
        self.own = own
        self.clock = clock
        self.mirrors: dict[PeerId, Mirror] = {own: Mirror()}
        self.pods: dict[str, dict[tuple[PeerId, str], PodEntry]] = {}
        self.records: dict[str, dict[PeerId, Workload]] = {}
        self.touched: dict[str, int] = {}
        self.disposed: set[str] = set()
        self.lost_nodes: dict[str, Entry] = {}
        self.rendered: dict[ObjectKey, Object] = {}
        self.log: deque[Change] = deque(maxlen=LOG_MAX)
        self.log_start = clock.now()
        self.forgotten_at = 0  # when something was let go of without a change for it
        self._silently = False
        self._groups: dict[str, set[ObjectKey]] = {}
        self._shown_by: dict[ObjectKey, str] = {}
        self._names: dict[ResourceId, set[str]] = {}
        self.render: Callable[[str], Mapping[ObjectKey, Object]] = lambda group: {}
        self.on_change: Callable[[str], None] = lambda group: None
        self.on_disposal: Callable[[PeerId, bytes], None] = lambda peer, message: None
        # A peer shows what is disposed of.
        self.on_revival: Callable[[PeerId, str], None] = lambda peer, uid: None

    def apply(self, peer: PeerId, delta: Delta) -> None:
        """Take a peer's (or the own) delta in; raises ValueError where an entry's content is malformed."""
        self.clock.observe(delta.stamp)
        mirror = self.mirrors.setdefault(peer, Mirror())
        self._take(peer, mirror.apply(delta))

    def drop(self, peer: PeerId) -> None:
        """Forget all that a machine said; it is gone."""
        mirror = self.mirrors.pop(peer, None)
        if mirror:
            stamp = self.clock.now()
            for key, entry in mirror.entries.items():
                if key[0] == "node":
                    self.lost_nodes[key[1]] = evolve(entry, stamp=stamp)
            self._take(peer, [Entry(key, stamp, None) for key in mirror.entries])

    def position(self, peer: PeerId, scope: Scope) -> tuple[int, int]:
        """Epoch and stamp of what was read of a machine's table."""
        mirror = self.mirrors.get(peer)
        return (0, 0) if mirror is None else (mirror.epoch, mirror.read_to.get(scope, 0))

    def apply_read(self, peer: PeerId, scope: Scope, delta: Delta) -> None:
        """As `apply`, for a part of the table that was read."""
        self.clock.observe(delta.stamp)
        self._take(peer, self.mirrors.setdefault(peer, Mirror()).apply_read(scope, delta))

    def forget(self, peer: PeerId) -> None:
        """Let go of what a machine said, to make room: nothing has changed, so no watch hears of it."""
        mirror = self.mirrors.pop(peer, None)
        if mirror is None:
            return
        self._silently = True
        try:
            stamp = self.clock.now()
            self._take(peer, [Entry(key, stamp, None) for key in mirror.entries])
        finally:
            self._silently = False
        self.forgotten_at = self.clock.now()

    def manifest(self, uid: str) -> Manifest | None:
        """The newest manifest of a workload that anybody holds, unless it is disposed of."""
        records = self.records.get(uid)
        if not records or uid in self.disposed:
            return None
        return Manifest.of(max(records.values(), key=lambda record: record.precedence))

    def holders(self, uid: str) -> frozenset[PeerId]:
        return frozenset(self.records.get(uid, ()))

    def pods_of(self, uid: str) -> list[PodEntry]:
        return sorted(self.pods.get(uid, {}).values(), key=lambda p: p.uid)

    def shown_in(self, group: str) -> frozenset[ObjectKey]:
        """The objects that a group shows now (a namesake may show one in its place)."""
        return frozenset(k for k in self._groups.get(group, ()) if self._shown_by.get(k) == group)

    def placements(self, uid: str) -> list[Placement]:
        """What acting machines said last of this workload, newest last."""
        found = []
        for mirror in self.mirrors.values():
            entry = mirror.entries.get(("placement", uid))
            if entry is not None and entry.value is not None:
                reasons = entry.value.get("reasons")
                unplaced = entry.value.get("unplaced")
                if isinstance(reasons, list) and isinstance(unplaced, int):
                    found.append(Placement(unplaced, tuple(map(str, reasons)), entry.stamp))
        return sorted(found, key=lambda p: p.stamp)

    def runners(self, uid: str) -> set[PeerId]:
        """Machines that run a workload, as those say who hold its manifest and act for it."""
        found: set[PeerId] = set()
        for holder in self.records.get(uid, ()):
            mirror = self.mirrors.get(holder)
            entry = mirror.entries.get(("runners", uid)) if mirror else None
            peers = (entry.value or {}).get("peers") if entry else None
            if isinstance(peers, list):
                found |= {PeerId(p) for p in peers if isinstance(p, bytes) and len(p) == KEY_BYTES}
        return found

    def node_name(self, peer: PeerId) -> str:
        """What a machine calls itself; its identity where it has not said so."""
        for (kind, _, name), obj in self.rendered.items():
            if kind == "Node" and obj["metadata"].get("uid") == str(peer):
                return name
        return str(peer)

    def forget_lost_nodes(self, before: int) -> None:
        """Machines lost before this stamp are no longer shown."""
        for ident in [i for i, entry in self.lost_nodes.items() if entry.stamp < before]:
            del self.lost_nodes[ident]
            self.refresh([f"node/{ident}"])

    def forget_disposed(self, uid: str) -> None:
        """A disposal's life is over; manifests of that uid would count again, which is why guards drop them first."""
        self.disposed.discard(uid)

    def dispose(self, uid: str) -> None:
        """Hide a workload at once; its pods show until they have ended."""
        self.disposed.add(uid)
        self.refresh([f"workload/{uid}"])

    def refresh(self, groups: Iterable[str]) -> None:
        """Render these groups anew and log what is different."""
        for group in groups:
            self._refresh(group)

    def _take(self, peer: PeerId, changed: list[Entry]) -> None:
        """Index all entries, and only then complain of the first that is malformed: the others are good all the same."""
        groups: dict[str, None] = {}
        problem: Exception | None = None
        for entry in changed:
            try:
                groups |= dict.fromkeys(self._index(peer, entry))
            except (ValueError, RemoteProtocolError) as error:
                problem = problem or error
        self.refresh(groups)
        if problem is not None:
            raise problem

    def _index(self, peer: PeerId, entry: Entry) -> list[str]:
        """Bring the indexes up to date; which groups of objects may look different now."""
        kind, ident = entry.key
        match kind:
            case "pod":
                return [f"workload/{uid}" for uid in self._index_pod(peer, ident, entry)]
            case "workload":
                return [f"workload/{uid}" for uid in self._index_record(peer, ident, entry)]
            case "placement":
                self._touch(ident, entry.stamp)
                return [f"workload/{ident}"]
            case "node":
                if entry.value is not None:
                    self.lost_nodes.pop(ident, None)
            case "event":
                pass
            case "disposal":
                message = (entry.value or {}).get("message")
                if isinstance(message, bytes) and peer != self.own:
                    self.on_disposal(peer, message)
                return []
            case _:
                return []
        return [f"{kind}/{ident}"]

    def _touch(self, uid: str, stamp: int) -> None:
        """Remember when a workload's facts last changed, for as long as there are any."""
        if uid in self.records or uid in self.pods:
            self.touched[uid] = max(self.touched.get(uid, 0), stamp)
        else:
            self.touched.pop(uid, None)

    def _index_pod(self, peer: PeerId, uid: str, entry: Entry) -> list[str]:
        touched = []
        for workload, pods in list(self.pods.items()):
            if pods.pop((peer, uid), None) is not None:
                touched.append(workload)
            if not pods:
                del self.pods[workload]
        if entry.value is not None:
            pod = pod_entry(peer, uid, entry)
            self.pods.setdefault(pod.workload, {})[peer, uid] = pod
            self._mind_disposed(peer, pod.workload)
            touched.append(pod.workload)
        for workload in touched:
            self._touch(workload, entry.stamp)
        return list(dict.fromkeys(touched))

    def _index_record(self, peer: PeerId, uid: str, entry: Entry) -> list[str]:
        """The uid and its namesakes: which of them is shown may change with it."""
        old = self.records.get(uid, {}).pop(peer, None)
        resource = old.resource if old else None
        if entry.value is not None:
            record = workload_of(entry)
            if record.uid != UUID(uid):
                raise ValueError(f"workload entry {uid} carries the record of {record.uid}")
            Manifest.of(record)  # what has not the shape of a manifest does not get in
            resource = record.resource
            self.records.setdefault(uid, {})[peer] = record
            self._names.setdefault(resource, set()).add(uid)
            self._mind_disposed(peer, uid)
        if not self.records.get(uid):
            self.records.pop(uid, None)
        self._touch(uid, entry.stamp)
        return [uid, *self._namesakes(uid, resource)]

    def _mind_disposed(self, peer: PeerId, uid: str) -> None:
        if uid in self.disposed and peer != self.own:
            self.on_revival(peer, uid)

    def _namesakes(self, uid: str, resource: ResourceId | None) -> list[str]:
        """Other uids of the name; the uid itself is taken off the name once nobody holds it any more."""
        if resource is None:
            return []
        uids = self._names.get(resource, set())
        others = sorted(uids - {uid})
        if uid not in self.records:
            uids.discard(uid)
        if not uids:
            self._names.pop(resource, None)
        return others

    def winner(self, resource: ResourceId) -> str | None:
        """Of several workloads of one name (made at once through two machines) the oldest stands; ties by uid."""
        alive = [m for uid in self._names.get(resource, ()) if (m := self.manifest(uid)) is not None]
        best = min(
            alive, key=lambda m: (m.obj["metadata"].get("creationTimestamp") or "", str(m.uid)), default=None
        )
        return str(best.uid) if best else None

    def _refresh(self, group: str) -> None:
        new = self.render(group)
        old_keys = self._groups.get(group, set())
        for key in sorted(old_keys - set(new)):
            self._hide(key, group)
        for key, obj in new.items():
            self._show(key, obj, group)
        if new:
            self._groups[group] = set(new)
        else:
            self._groups.pop(group, None)
        self.on_change(group)

    def _hide(self, key: ObjectKey, group: str) -> None:
        """The group no longer renders the key; a namesake that took it over keeps it."""
        if self._shown_by.get(key) == group:
            del self._shown_by[key]
            self._record("DELETED", key, self.rendered.pop(key))

    def _show(self, key: ObjectKey, obj: Object, group: str) -> None:
        old = self.rendered.get(key)
        self._shown_by[key] = group
        if old != obj:
            self.rendered[key] = obj
            self._record("MODIFIED" if old is not None else "ADDED", key, obj)

    def _record(self, change: str, key: ObjectKey, obj: Object) -> None:
        if self._silently:
            return
        if len(self.log) == self.log.maxlen:
            self.log_start = self.log[0].stamp
        self.log.append(Change(self.clock.now(), change, key, obj))


def pod_entry(peer: PeerId, uid: str, entry: Entry) -> PodEntry:
    """Raises ValueError where a field is missing or not of its type."""
    value = entry.value or {}
    obj = json_object(value.get("json"))
    check_pod(obj, f"pod entry {uid}")
    workload, template_hash = value.get("workload"), value.get("template_hash")
    if not isinstance(workload, str) or not isinstance(template_hash, str):
        raise ValueError(f"pod entry {uid}: workload or template_hash is missing")
    terminating = obj["metadata"].get("deletionTimestamp") is not None
    return PodEntry(peer, uid, workload, template_hash, entry.stamp, obj, terminating)


def workload_of(entry: Entry) -> Workload:
    """The signed record in a ``workload`` entry. Raises ValueError or RemoteProtocolError."""
    data = (entry.value or {}).get("record")
    if not isinstance(data, bytes):
        raise ValueError("workload entry without a record")
    record = decode_as(Workload, data)
    verify(record)
    return record


def check_pod(obj: Object, what: str) -> None:
    """Raises ValueError unless the parts of a Pod that are read here are of their types."""
    check_template(obj, what)
    status = obj.get("status") or {}
    if obj.get("kind") != "Pod" or not isinstance(status, dict):
        raise ValueError(f"{what}: not a Pod with a status")
    conditions = status.get("conditions") or []
    if not isinstance(conditions, list) or not all(isinstance(c, dict) for c in conditions):
        raise ValueError(f"{what}: conditions are not a list of objects")


def json_object(data: object) -> dict[str, Any]:
    """A Kubernetes object from its JSON bytes; raises ValueError where it is none."""
    if not isinstance(data, bytes):
        raise ValueError("entry without JSON")
    obj = json.loads(data)
    if not isinstance(obj, dict) or not isinstance(obj.get("kind"), str):
        raise ValueError("entry is not a Kubernetes object")
    check_metadata(obj.get("metadata"), "entry")
    if not isinstance(obj["metadata"].get("name"), str) or not isinstance(obj.get("status") or {}, dict):
        raise ValueError("entry is not a Kubernetes object with a name")
    return obj
