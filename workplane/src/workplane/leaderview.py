"""What the app sees of its workload's leadership: a file, `GET /v1/leader`, and a hook.

All three say the same `LeaderView`. What is said can be late, by the moment that it takes to say it: a write is safe only
if whoever stores it compares the token.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from attrs import frozen

from magik_proto.leadership_types import Token
from workplane.loopback import AppFailed, post

HOOK_S: Final = 10.0
"""One call of the hook. At it: it has failed, and is tried again. A guess."""
RETRY_MIN_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
HOOK_ANSWER: Final = 4_096
"""Bytes of the hook's answer that are taken; nothing is done with them."""


def token_text(token: Token) -> str:
    """`GENERATION.TERM`, as apps see it and storage compares it: two decimal numbers, the first one first."""
    return f"{token.generation}.{token.term}"


@frozen
class LeaderView:
    """``leader`` is the pod that leads as far as is known, ``token`` the own while this replica leads."""

    pod: str
    leader: str | None = None
    token: Token | None = None

    def to_json(self) -> dict[str, Any]:
        """As the file and the API say it."""
        token = self.token
        return {
            "pod": self.pod,
            "role": "follower" if token is None else "leader",
            "leader": self.leader if token is None else self.pod,
            "generation": None if token is None else token.generation,
            "term": None if token is None else token.term,
            "token": None if token is None else token_text(token),
        }


class LeaderBoard:
    """Shows each change, in order; of changes that come faster than they can be shown the last.

    ``now`` tells the view as things are now: a lease may have ended since it was last shown. ``path`` is a file (None: no
    file), ``hook`` port and path of the app's hook.
    """

    def __init__(
        self, now: Callable[[], LeaderView], *, path: Path | None = None, hook: tuple[int, str] | None = None
    ) -> None:
        self._now = now
        self._path = path
        self._hook = hook
        self._changed = trio.Event()
        self._log = structlog.get_logger(part="leadership")
        self.version = 1

    @property
    def view(self) -> LeaderView:
        """As things are now."""
        return self._now()

    def show(self) -> None:
        """Something has changed."""
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()

    async def newer(self, than: int) -> int:
        """The version, as soon as it is another than that."""
        while self.version == than:
            await self._changed.wait()
        return self.version

    async def run(self) -> None:
        """Until cancelled. What goes wrong with the file or the hook is logged, and tried again."""
        async with trio.open_nursery() as nursery:
            for each in (self._keep_file, self._call_hook):
                nursery.start_soon(self._follow, each)

    async def _follow(self, tell: Callable[[LeaderView], Any]) -> None:
        told: LeaderView | None = None
        delay = RETRY_MIN_S
        while True:
            version, view = self.version, self.view
            done = view == told or await tell(view)
            told = view if done else told
            delay = RETRY_MIN_S if done else min(2 * delay, RETRY_MAX_S)
            with trio.move_on_after(float("inf") if done else delay):
                await self.newer(version)

    async def _keep_file(self, view: LeaderView) -> bool:
        if self._path is None:
            return True
        try:
            await trio.to_thread.run_sync(_replace, self._path, json.dumps(view.to_json()) + "\n")
        except OSError as error:
            self._log.warning("leader-file", path=str(self._path), error=str(error))
            return False
        return True

    async def _call_hook(self, view: LeaderView) -> bool:
        if self._hook is None:
            return True
        port, path = self._hook
        body = json.dumps(view.to_json()).encode()
        with trio.move_on_after(HOOK_S):
            try:
                answer = await post(
                    port, path, body, lambda: [("Content-Type", "application/json")], most=HOOK_ANSWER
                )
            except AppFailed as error:
                self._log.warning("leader-hook", error=str(error))
                return False
            if not 200 <= answer.status < 300:
                self._log.warning("leader-hook", status=answer.status)
            return 200 <= answer.status < 300
        self._log.warning("leader-hook", error=f"no answer within {HOOK_S:g} s")
        return False


def _replace(path: Path, text: str) -> None:
    """A reader sees the old text or the new one, whole."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(descriptor, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
