"""The list of revocations on this machine's disk: kept when it comes, read again when the operator says so (SIGHUP)."""

from collections.abc import AsyncIterator
from pathlib import Path

import structlog
import trio

from machineplane.keys import KeyFileError, read_revocations, write_revocations
from magik_mesh import Node
from magik_proto.credentials import Revocations
from magik_proto.errors import ProtocolError


class RevocationFile:
    """``keys`` is the directory of keys; without one (a machine that keeps no identity) nothing is written."""

    def __init__(self, node: Node, keys: Path | None) -> None:
        self._node = node
        self._keys = keys
        self._newest: Revocations | None = None
        self._news = trio.Event()
        self._log = structlog.get_logger()
        node.on_revocations(self._take)

    def _take(self, revocations: Revocations) -> None:
        self._newest = revocations
        self._news.set()

    async def run(self) -> None:
        """Write what comes, the newest only; until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            if self._keys is None or self._newest is None:
                continue
            try:
                await trio.to_thread.run_sync(write_revocations, self._keys, self._newest)
            except KeyFileError as error:
                self._log.error("revocations-not-kept", error=str(error))

    async def read_again(self, requests: AsyncIterator[None]) -> None:
        """Put the list on disk in force at each request, and say what became of it."""
        async for _ in requests:
            if self._keys is None:
                self._log.warning("revocations-not-read", reason="this machine keeps no keys on disk")
                continue
            try:
                found = await trio.to_thread.run_sync(read_revocations, self._keys)
                news = found is not None and self._node.revoke(found)
            except (KeyFileError, ProtocolError) as error:
                self._log.error("revocations-not-read", error=str(error))
            else:
                self._log.info("revocations-read", serial=found.serial if found else 0, news=news)
