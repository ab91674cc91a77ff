"""Pulls that a program of this machine asks the daemon for: over a real socket, from another store as a machine."""

import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.desk import LINE_MAX, NoDaemon, pull_by_daemon, serve_pulls, store_id
from machineplane.runtime.images.download import Progress
from machineplane.runtime.images.errors import PullFailed
from machineplane.runtime.images.make import make_image
from machineplane.runtime.images.peers import Offer
from machineplane.runtime.images.registry.settings import RegistrySettings
from machineplane.runtime.images.service import open_images
from machineplane.runtime.images.sources import BlobStream

pytestmark = pytest.mark.root
REF = "localhost/app:1"


class FromStore:
    """A store as a source."""

    subject = "machine other"

    def __init__(self, store: ImageStore) -> None:
        self.store = store

    @asynccontextmanager
    async def blob(self, digest: str, offset: int) -> AsyncIterator[BlobStream]:
        async def chunks() -> AsyncIterator[bytes]:
            yield self.store.blob_path(digest).read_bytes()[offset:]

        yield BlobStream(offset, chunks())

    async def document(self, digest: str, limit: int) -> bytes:
        return self.store.blob_path(digest).read_bytes()[:limit]


class OnePeer:
    """Another machine, which has one image."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store

    async def find_digest(self, digest: str) -> Sequence[Offer]:
        return [Offer(FromStore(self.store), digest, 1)]

    async def find_name(self, ref: str) -> Sequence[Offer]:
        entry = self.store.entries().get(ref)
        return [Offer(FromStore(self.store), entry.root, 1)] if entry else []


@asynccontextmanager
async def daemon(folder: Path, store: ImageStore) -> AsyncIterator[Path]:
    other = ImageStore(folder / "other", mounted=frozenset)
    make_image(folder / "app.tar", ref=REF, files={"file": (b"content", 0o644)})
    other.import_file(folder / "app.tar")
    path = folder / "images.sock"
    async with open_images(store, RegistrySettings()) as service, trio.open_nursery() as nursery:
        service.peers = OnePeer(other)
        nursery.start_soon(serve_pulls, path, service)
        with trio.fail_after(30):
            while not path.exists():  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.01)
        yield path
        nursery.cancel_scope.cancel()


async def test_the_daemon_pulls_from_another_machine_and_tells_so(store: ImageStore, tmp_path: Path) -> None:
    seen: list[Progress] = []
    begun: list[int] = []
    async with daemon(tmp_path, store) as path:
        assert path.stat().st_mode & 0o777 == 0o600
        name, digest = await pull_by_daemon(path, store.path, REF, seen.append, lambda: begun.append(1))
    assert (name, store.resolve(REF).digest) == (REF, digest)
    assert begun == [1]
    assert {each.source for each in seen} == {"machine other"}
    assert not path.exists()


async def test_what_goes_wrong_there_is_told_here(store: ImageStore, tmp_path: Path) -> None:
    async with daemon(tmp_path, store) as path:
        with pytest.raises(PullFailed, match="image localhost/none:1 is not on this machine: import it"):
            await pull_by_daemon(path, store.path, "localhost/none:1", lambda _: None, lambda: None)
        with pytest.raises(PullFailed, match="upper-case"):
            await pull_by_daemon(path, store.path, "Bad", lambda _: None, lambda: None)


async def test_the_daemon_of_another_store_is_not_asked(store: ImageStore, tmp_path: Path) -> None:
    mine = ImageStore(tmp_path / "mine")
    async with daemon(tmp_path, store) as path:
        with pytest.raises(NoDaemon, match=str(store.path)):
            await pull_by_daemon(path, mine.path, REF, lambda _: None, lambda: None)
    assert not store.entries()


async def test_no_daemon(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="none answers at"):
        await pull_by_daemon(tmp_path / "none", store.path, REF, lambda _: None, lambda: None)
    with socket.socket(socket.AF_UNIX) as left:  # of a daemon that was killed
        left.bind(os.fspath(tmp_path / "left"))
    with pytest.raises(NoDaemon, match="none answers at"):
        await pull_by_daemon(tmp_path / "left", store.path, REF, lambda _: None, lambda: None)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"x\n",
        b"[1]\n",
        b"{}\n",
        b"x" * (LINE_MAX * 3),
        b'{"pull": 7, "store": 7}\n',
        b"[" * LINE_MAX + b"\n",
    ],
)
async def test_nonsense_does_not_end_it(sent: bytes, store: ImageStore, tmp_path: Path) -> None:
    async with daemon(tmp_path, store) as path:
        stream = await trio.open_unix_socket(os.fspath(path))
        async with stream:
            if sent:
                await stream.send_all(sent)
        await pull_by_daemon(path, store.path, REF, lambda _: None, lambda: None)
    assert store.entries()


async def test_a_program_that_goes_takes_its_pull_along(store: ImageStore, tmp_path: Path) -> None:
    async with daemon(tmp_path, store) as path:
        stream = await trio.open_unix_socket(os.fspath(path))
        await stream.send_all(json.dumps({"pull": REF, "store": store_id(store.path)}).encode() + b"\n")
        await stream.aclose()
        with trio.fail_after(30):
            await pull_by_daemon(path, store.path, REF, lambda _: None, lambda: None)
