"""What the tests of pulling have in common: a store with one registry or several, and what a failed pull must leave."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from registry_support import Answer, Asked, Content, Server, serving

from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.download import Downloader, Progress
from machineplane.runtime.images.errors import (
    ImageError,
)
from machineplane.runtime.images.model import ImageInfo
from machineplane.runtime.images.names import parse_reference
from machineplane.runtime.images.peers import NoPeers, Peers
from machineplane.runtime.images.pull import Puller
from machineplane.runtime.images.registry.client import open_registries
from machineplane.runtime.images.registry.credentials import Keyring
from machineplane.runtime.images.registry.settings import RegistrySettings, read_settings
from machineplane.runtime.images.waits import Waits

Kit = Any


def settings_for(*servers: Server, **more: Any) -> RegistrySettings:
    hosts = {server.address: {"plain-http": True} for server in servers}
    return read_settings({"registries": hosts, **more}, "test")


def keys(server: Server, **fields: str) -> Keyring:
    document = {"auths": {server.address: fields}}
    return read_settings(document, "test").keyring


class Pauses:
    """Waits that take no time and are remembered."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def pulling(
    store: ImageStore,
    settings: RegistrySettings,
    *,
    peers: Peers | None = None,
    pauses: Pauses | None = None,
) -> AsyncIterator[Callable[..., Any]]:
    waits = Waits(random.Random(1), pauses or Pauses())
    async with open_registries(settings, waits) as registries:
        downloader = Downloader(store.partials, at_once=settings.at_once, waits=waits)
        puller = Puller(store=store, registries=registries, peers=peers or NoPeers(), downloader=downloader)

        async def pull(
            ref: str, keyring: Keyring | None = None, watch: Callable[[Progress], None] | None = None
        ) -> ImageInfo:
            return await puller.pull(parse_reference(ref), keyring or Keyring(), watch or (lambda _: None))

        yield pull


async def pull_one(store: ImageStore, server: Server, name: str = "team/app:1", **more: Any) -> ImageInfo:
    keyring, pauses = more.pop("keyring", None), more.pop("pauses", None)
    async with pulling(store, settings_for(server, **more), pauses=pauses) as pull:
        info: ImageInfo = await pull(f"{server.address}/{name}", keyring)
        return info


def app(kit: Kit, **fields: Any) -> tuple[Content, str]:
    """Content with one image of one layer, tagged 1, and its digest."""
    content = Content()
    return content, content.tag("1", content.image([layer(kit)], **fields))


def layer(kit: Kit, size: int = 5000) -> bytes:
    """A layer that compresses badly: bytes are a pure function of the size."""
    return bytes(kit.tar(kit.member("file", random.Random(size).randbytes(size))))


def assert_nothing(store: ImageStore) -> None:
    assert store.ls() == []
    assert list((store.path / "blobs").iterdir()) == list((store.path / "layers").iterdir()) == []


async def refused(
    store: ImageStore, handler: Callable[[Asked], Any], kind: type[ImageError], **more: Any
) -> str:
    """A pull from the handler fails with ``kind``, in one line, and the store is as before."""
    async with serving(handler) as server:
        with pytest.raises(kind) as caught:
            await pull_one(store, server, **more)
        assert server.address in str(caught.value)
    assert type(caught.value) is kind
    assert str(caught.value).isprintable()
    assert_nothing(store)
    return str(caught.value)


def spoil(content: Content, which: str, change: Callable[[Answer], Answer]) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        found = content.answer(asked)
        return change(found) if which in asked.path and asked.method == "GET" else found

    return answer
