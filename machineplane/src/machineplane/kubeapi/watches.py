"""WATCH: a stream of events, one JSON object a line, with bookmarks, initial events, selectors and Tables."""

import json
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from attrs import define, field, frozen

from .backend import Listing, Object, Watch, WatchEvent
from .calls import Answer, Call, Target
from .context import Api, selection
from .errors import ApiError
from .reads import only_name, sort_key
from .representations import Shower
from .selectors import Matcher

#: Seconds between bookmarks for who wants them (Kubernetes: about a minute).
BOOKMARK_INTERVAL: Final = 60.0
#: Seconds that a watch lasts at most if the client names no time; Kubernetes closes after 30 to 60 minutes.
LONGEST: Final = 3600.0
INITIAL_END: Final = "k8s.io/initial-events-end"


@frozen
class WatchOptions:
    """A watch as asked for. ``since`` None: begin with what is there, as synthetic ADDED events."""

    since: str | None
    initial_end: bool
    bookmarks: bool
    timeout: float


def watch_options(call: Call) -> WatchOptions:
    """From the query. Raises ApiError 400 or 422 for combinations that mean nothing."""
    version, initial = call.query.get("resourceVersion", ""), call.query.get("sendInitialEvents", "")
    if version and not version.isdecimal():
        raise ApiError.bad_request(f"resourceVersion: invalid value {version!r}")
    if initial and call.query.get("resourceVersionMatch", "") != "NotOlderThan":
        why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        raise ApiError(422, "Invalid", f"ListOptions is invalid: {why}")
    wants_initial = call.flag("sendInitialEvents") if initial else version in ("", "0")
    bookmarks = call.flag("allowWatchBookmarks")
    seconds = call.number("timeoutSeconds")
    return WatchOptions(
        since=None if wants_initial else version or "0",
        initial_end=bool(initial) and wants_initial and bookmarks,
        bookmarks=bookmarks,
        timeout=LONGEST if not seconds else min(float(seconds), LONGEST),
    )


async def watch_objects(api: Api, call: Call, target: Target) -> Answer:
    """Open a watch; what goes wrong before the first byte is an ordinary error answer."""
    options, shower, matches = watch_options(call), api.shower(call, target), selection(call, target)

    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
        name = only_name(call)
        listing = await api.backend.list(target.kind, target.namespace, name)
        chosen = sorted(filter(matches, listing.objects), key=sort_key)
        since = listing.resource_version if options.since is None else options.since
        async with api.backend.watch(target.kind, target.namespace, since, name) as watch:
            initial = chosen if options.since is None else []
            lines = EventLines(watch, shower, Selected(matches), options, trio.current_time)
            lines.begin(initial, Listing(chosen, listing.resource_version))
            yield lines

    return Answer(stream=opened)


@define
class Selected:
    """Turns changes of objects into changes of a selection: leaving it is a DELETED, coming into it an
    ADDED."""

    matches: Matcher
    shown: set[tuple[str, str]] = field(factory=set)

    def apply(self, event: WatchEvent) -> tuple[str, Object] | None:
        """What the client is told of an event, or None."""
        key, now = sort_key(event.object), self.matches(event.object)
        before = key in self.shown if event.previous is None else self.matches(event.previous)
        if event.type == "DELETED":
            self.shown.discard(key)
            return ("DELETED", event.object) if before or now else None
        if now:
            self.shown.add(key)
            return ("MODIFIED" if before else "ADDED", event.object)
        self.shown.discard(key)
        return ("DELETED", event.object) if before else None


@define
class EventLines:
    """The body of a watch: an iterator of lines. It holds nothing that needs closing."""

    watch: Watch
    shower: Shower
    selected: Selected
    options: WatchOptions
    clock: Callable[[], float]
    _waiting: deque[bytes] = field(factory=deque, init=False)
    _deadline: float = field(default=math.inf, init=False)
    _next_bookmark: float = field(default=math.inf, init=False)
    _headers_sent: bool = field(default=False, init=False)
    _ended: bool = field(default=False, init=False)

    def begin(self, initial: list[Object], present: Listing) -> None:
        """Queue the events that stand for the present state, and start the clocks."""
        self.selected.shown.update(sort_key(obj) for obj in present.objects)
        self._waiting.extend(self._line("ADDED", obj) for obj in initial)
        if self.options.initial_end:
            self._waiting.append(self._bookmark(present.resource_version, {INITIAL_END: "true"}))
        self._deadline = self.clock() + self.options.timeout
        if self.options.bookmarks:
            self._next_bookmark = self.clock() + BOOKMARK_INTERVAL

    def __aiter__(self) -> "EventLines":
        return self

    async def __anext__(self) -> bytes:
        """The next line; ends at the time limit, or after an ERROR event."""
        while True:
            if self._waiting:
                await trio.lowlevel.checkpoint()
                return self._waiting.popleft()
            if self._ended:
                raise StopAsyncIteration
            await self._wait()

    async def _wait(self) -> None:
        """Wait for an event or a clock, and queue what comes of it."""
        try:
            with trio.move_on_at(min(self._deadline, self._next_bookmark)) as scope:
                self._take(await self.watch.__anext__())
        except StopAsyncIteration:
            self._ended = True
        except ApiError as error:
            self._waiting.append(_encode("ERROR", error.status()))
            self._ended = True
        if scope.cancelled_caught:
            self._tick()

    def _take(self, event: WatchEvent) -> None:
        told = self.selected.apply(event)
        if told is not None:
            self._waiting.append(self._line(*told))

    def _tick(self) -> None:
        """A clock rang: the last bookmark before the end, or one between."""
        self._ended = self.clock() >= self._deadline
        if self.options.bookmarks:
            self._waiting.append(self._bookmark(self.watch.position(), {}))
            self._next_bookmark = self.clock() + BOOKMARK_INTERVAL

    def _line(self, kind: str, obj: Object) -> bytes:
        shown = self.shower.one(obj)
        if self.shower.form.form == "Table":
            shown = self._without_repeated_headers(shown)
        return _encode(kind, shown)

    def _without_repeated_headers(self, table: Object) -> Object:
        if self._headers_sent:
            return table | {"columnDefinitions": None}
        self._headers_sent = True
        return table

    def _bookmark(self, version: str, annotations: dict[str, str]) -> bytes:
        meta: dict[str, Any] = {"resourceVersion": version, "creationTimestamp": None}
        if annotations:
            meta["annotations"] = annotations
        if self.shower.form.form == "Table":
            return _encode("BOOKMARK", self._table_bookmark(meta))
        kind = self.shower.kind
        form = self.shower.form.form
        head = (
            {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            if form
            else {"kind": kind.kind, "apiVersion": kind.api_version}
        )
        return _encode("BOOKMARK", head | {"metadata": meta})

    def _table_bookmark(self, meta: dict[str, Any]) -> Object:
        """A Table whose one row is an object with nothing but the version and the annotations."""
        table = self.shower.table([], {"resourceVersion": meta["resourceVersion"]})
        kind = self.shower.kind
        row = {"cells": [], "object": {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta}}
        return self._without_repeated_headers(table | {"rows": [row] if "annotations" in meta else []})


def _encode(kind: str, obj: Object) -> bytes:
    return json.dumps({"type": kind, "object": obj}, separators=(",", ":")).encode() + b"\n"
