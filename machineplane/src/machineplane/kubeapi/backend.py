"""What the API asks of the fabric: the ``Backend`` protocol.

Who does what:

* **kubeapi** reads and checks requests, decodes bodies, computes patches, *defaults and validates ``spec``*,
  evaluates selectors, draws tables, makes bookmarks, and says errors as ``Status``.
* **the backend** keeps objects and gives them their *identity*: on create it sets ``metadata.uid``,
  ``creationTimestamp`` (RFC 3339 in UTC, whole seconds), ``resourceVersion`` and, for kinds that have a spec,
  ``generation`` (1, and one more on each change of ``spec``); on replace it keeps ``uid`` and
  ``creationTimestamp`` whatever it is handed, keeps ``status`` of its own, and changes nothing (not even
  ``resourceVersion``) if nothing differs. ``metadata.name`` and ``namespace`` are there already
  (``generateName`` is resolved by kubeapi). Status, conditions, ReplicaSets, Nodes and Events are the
  backend's.

Objects are plain JSON-like dicts with ``apiVersion`` and ``kind`` set. A backend hands out objects that the
caller may change: copies, or fresh ones. ``resourceVersion`` is an opaque decimal string, increasing over
everything this machine serves (all kinds; it need mean nothing on another machine, where a foreign or old one
is answered by ``Expired``).

Errors are :class:`~machineplane.kubeapi.errors.ApiError`s, made by its named constructors: ``not_found``,
``already_exists``, ``conflict``, ``expired``, ``unavailable`` (for instance: no machine took the tender),
``invalid``.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

import trio
from attrs import frozen

from machineplane.channels import Session

from .kinds import Kind

#: A Kubernetes object as JSON says it.
Object = dict[str, Any]
EventType = Literal["ADDED", "MODIFIED", "DELETED"]
Propagation = Literal["Background", "Foreground", "Orphan"]


@frozen
class Listing:
    """The objects of a list (any order: kubeapi sorts by namespace and name), the version at which it is
    true, and what may be missing in it, if anything."""

    objects: list[Object]
    resource_version: str
    warning: str = ""


@frozen
class WatchEvent:
    """A change. ``object`` is the whole object after it; for DELETED the last state, with a
    ``resourceVersion`` of the deletion.

    ``previous``, if the backend has it, is the object before a MODIFIED: with it a selective watch knows
    surely whether the object has just come into or gone out of the selection. Without it kubeapi remembers
    what it has shown.
    """

    type: EventType
    object: Object
    previous: Object | None = None


@frozen
class LogOptions:
    """Which part of a log: ``tail_lines`` and ``since_seconds`` None = all; ``limit_bytes`` None = no
    limit."""

    follow: bool = False
    tail_lines: int | None = None
    since_seconds: int | None = None
    timestamps: bool = False
    previous: bool = False
    limit_bytes: int | None = None


@frozen
class ExecOptions:
    """What to run in a container, and which of its streams the client wants."""

    command: tuple[str, ...]
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False


@frozen
class AttachOptions:
    """Which streams of a container's own process the client wants."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False


class Watch(Protocol):
    """An open watch: iterate for events; it ends only with its context (or by raising ``ApiError.expired`` on
    overflow).

    **Cancelling ``__anext__`` must lose nothing and leave the watch usable**: kubeapi gives up waiting to
    send bookmarks. The receiving end of a memory channel is like that; an async generator is not
    (cancellation finishes it).
    """

    def __aiter__(self) -> "Watch":
        """Itself."""
        ...

    async def __anext__(self) -> WatchEvent:
        """The next event of the kind and namespace, in order of resourceVersion, each once."""
        ...

    def position(self) -> str:
        """The resourceVersion such that this watch has *handed out* every event up to it: what a bookmark may
        say.

        With nothing queued this is the backend's current version; with events still queued it is that of the
        last one handed out (or where the watch began).
        """
        ...


class Backend(Protocol):
    """The fabric as the API sees it. ``namespace`` None means all namespaces, or a kind without them."""

    async def list(self, kind: Kind, namespace: str | None, name: str | None = None) -> Listing:
        """All objects of a kind; a namespace that does not exist has none. ``name``: the caller will look at that one
        alone, which may make it cheaper; others may be in the list all the same."""
        ...

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """One object, or None."""
        ...

    async def create(self, kind: Kind, obj: Object, *, dry_run: bool) -> Object:
        """Keep a new object and return it with identity. Raises already_exists; not_found for an unknown
        namespace.

        Returning means that the object is acknowledged: see the first invariant of the architecture. With
        ``dry_run`` everything is checked and filled in, and nothing kept.
        """
        ...

    async def replace(
        self, kind: Kind, obj: Object, *, expected_resource_version: str | None, dry_run: bool
    ) -> Object:
        """Put a new state of an existing object. Raises not_found, and conflict if it is not at the expected
        version."""
        ...

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
        """Begin to delete; returns the object, with ``deletionTimestamp`` if it is still going.

        Raises not_found, and conflict if ``uid`` or ``resource_version`` are given and differ.
        ``grace_seconds`` None = what the object says, else its kind's default.
        """
        ...

    def watch(
        self, kind: Kind, namespace: str | None, since: str | None, name: str | None = None
    ) -> AbstractAsyncContextManager[Watch]:
        """Changes after resourceVersion ``since`` (None = after now). Entering raises expired if ``since`` is
        too old. ``name`` as for `list`."""
        ...

    def logs(
        self, namespace: str, pod: str, container: str | None, options: LogOptions
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A container's output, in chunks of at most 64 KiB; None = the pod's only container (kubeapi has
        chosen before).

        Errors are raised on entering, before the first byte; with ``follow`` the iterator ends when the
        container does.
        """
        ...

    def execute(
        self, namespace: str, pod: str, container: str, options: ExecOptions
    ) -> AbstractAsyncContextManager[Session]:
        """Run a command in a container; leaving the context ends it.

        Raises :class:`~machineplane.channels.SessionRefused` on entering, with the reason.
        """
        ...

    def attach(
        self, namespace: str, pod: str, container: str, options: AttachOptions
    ) -> AbstractAsyncContextManager[Session]:
        """A container's own process: output from now on, stdin if it has one; leaving the context leaves it alone.

        Raises :class:`~machineplane.channels.SessionRefused` on entering, with the reason.
        """
        ...

    def forward(
        self, namespace: str, pod: str, port: int
    ) -> AbstractAsyncContextManager[trio.abc.HalfCloseableStream]:
        """A connection to a port inside a pod, closed with the context.

        Raises :class:`~machineplane.channels.SessionRefused` on entering, with the reason.
        """
        ...
