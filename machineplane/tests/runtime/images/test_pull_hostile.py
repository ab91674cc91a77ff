"""Pulling from registries that break off, are slow, or lie."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from pull_support import Kit, Pauses, app, layer, pull_one, pulling, refused, spoil
from registry_support import Answer, Asked, Content, serving

from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.documents import OCI_INDEX, OCI_MANIFEST, Descriptor, encode, sha256
from machineplane.runtime.images.download import Downloader
from machineplane.runtime.images.errors import (
    BadAnswer,
    DigestMismatch,
    QuotaExceeded,
    RegistryUnreachable,
    SizeMismatch,
    Unreachable,
    UnsupportedImage,
)
from machineplane.runtime.images.registry.settings import read_settings
from machineplane.runtime.images.sources import BlobStream
from machineplane.runtime.images.waits import Waits

pytestmark = pytest.mark.root


# -- broken and slow ones


async def test_a_broken_download_goes_on_where_it_ended(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    big = sha256(layer(kit))
    cuts = iter([2000, 3000])

    def answer(asked: Asked) -> Answer:
        found = content.answer(asked)
        cut = next(cuts, None) if big in asked.path else None
        return Answer(found.status, found.body, found.headers, cut=cut)

    async with serving(answer) as server:
        assert (await pull_one(store, server)).digest == digest
        asked = [request.headers.get("range") for request in server.asked("GET", big)]
    assert asked == [None, "bytes=2000-", "bytes=5000-"]


async def test_a_download_goes_on_after_a_restart(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    big = sha256(layer(kit))
    dead = False

    def answer(asked: Asked) -> Answer:
        nonlocal dead
        found = content.answer(asked)
        if big not in asked.path:
            return found
        if dead:
            return Answer(503)
        dead = True
        return Answer(found.status, found.body, found.headers, cut=2000)

    async with serving(answer) as server:
        with pytest.raises(RegistryUnreachable, match="503"):
            await pull_one(store, server)
        assert [path.stat().st_size for path in store.partials.iterdir() if path.name in big] == [2000]
        server.handler = content.answer
        assert (await pull_one(store, server)).digest == digest
        assert server.asked("GET", big)[-1].headers["range"] == "bytes=2000-"


async def test_a_registry_without_ranges_begins_anew(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    content.ranges = False
    cuts = iter([2000])

    def answer(asked: Asked) -> Answer:
        found = content.answer(asked)
        cut = next(cuts, None) if "/blobs/" in asked.path and len(found.body) > 3000 else None
        return Answer(found.status, found.body, found.headers, cut=cut)

    async with serving(answer) as server:
        assert (await pull_one(store, server)).digest == digest


async def test_what_another_has_left_spoiled_is_fetched_anew(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    big = sha256(layer(kit))
    (store.partials / big[7:]).write_bytes(b"not the beginning")
    async with serving(content.answer) as server:
        assert (await pull_one(store, server)).digest == digest
        assert [r.headers.get("range") for r in server.asked("GET", big)] == ["bytes=17-", None]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_later_means_later(status: int, kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    refusals = iter([Answer(status, headers={"Retry-After": "7"}), Answer(status)])
    async with serving(lambda asked: next(refusals, None) or content.answer(asked)) as server:
        pauses = Pauses()
        assert (await pull_one(store, server, pauses=pauses)).digest == digest
        assert pauses.taken[0] == 7
        assert 0 < pauses.taken[1] <= 2


async def test_who_says_come_back_tomorrow_is_left_at_once(kit: Kit, store: ImageStore) -> None:
    pauses = Pauses()
    tomorrow = Answer(429, headers={"Retry-After": "86400"})
    assert "status 429" in await refused(store, lambda _: tomorrow, RegistryUnreachable, pauses=pauses)
    assert pauses.taken == []


async def test_a_registry_that_is_not_there(store: ImageStore) -> None:
    settings = read_settings({"registries": {"127.0.0.1:1": {"plain-http": True}}}, "test")
    async with pulling(store, settings) as pull:
        with pytest.raises(RegistryUnreachable, match=r"registry 127\.0\.0\.1:1 cannot be reached"):
            await pull("127.0.0.1:1/app:1")
        with pytest.raises(RegistryUnreachable, match="it was asked just now"):
            await pull("127.0.0.1:1/other:1")


async def test_a_source_that_trickles_is_given_up(store: ImageStore, autojump_clock: Any) -> None:
    class Trickle:
        subject = "registry slow.test"

        @asynccontextmanager
        async def blob(self, digest: str, offset: int) -> AsyncIterator[BlobStream]:
            yield BlobStream(offset, self.chunks())

        async def chunks(self) -> AsyncIterator[bytes]:
            while True:
                await trio.sleep(20)
                yield b"x"

        async def document(self, digest: str, limit: int) -> bytes:
            raise NotImplementedError

    downloader = Downloader(store.partials, at_once=1, waits=Waits(random.Random(1)))
    wanted = Descriptor(media_type="", digest=sha256(b"x" * 1000), size=1000)
    with pytest.raises(Unreachable, match=r"registry slow\.test sends sha256:.* too slowly"):
        await downloader.fetch(wanted, [Trickle()], lambda _: None)
    assert trio.current_time() < 300


# -- liars


async def test_another_blob(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    handler = spoil(content, sha256(layer(kit)), lambda a: Answer(200, bytes(len(a.body))))
    assert "has content with the digest sha256:" in await refused(store, handler, DigestMismatch)
    assert not (store.partials / sha256(layer(kit))[7:]).exists()


async def test_a_blob_too_long_is_cut_off_at_once(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    handler = spoil(content, sha256(layer(kit)), lambda a: Answer(200, a.body + bytes(50 << 20)))
    assert "is longer than its" in await refused(store, handler, SizeMismatch)


async def test_a_blob_too_short(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    size = len(layer(kit))
    content.ranges = False
    handler = spoil(content, sha256(layer(kit)), lambda a: Answer(200, a.body[: size - 1]))
    assert "again and again" in await refused(store, handler, SizeMismatch)


async def test_another_range(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)

    def change(found: Answer) -> Answer:
        if found.status == 200:
            return Answer(200, found.body, cut=100)
        return Answer(206, found.body, {"Content-Range": "bytes 5-9/10"})

    handler = spoil(content, sha256(layer(kit)), change)
    assert "another range" in await refused(store, handler, BadAnswer)


async def test_a_compressed_transfer_is_refused(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    handler = spoil(content, "/blobs/", lambda a: Answer(200, a.body, {"Content-Encoding": "gzip"}))
    assert "coding 'gzip'" in await refused(store, handler, BadAnswer)


async def test_another_manifest(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    handler = spoil(content, "/manifests/", lambda a: Answer(200, a.body + b" "))
    await refused(store, handler, DigestMismatch)


async def test_a_manifest_without_end(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    handler = spoil(content, "/manifests/", lambda a: Answer(200, bytes(30 << 20)))
    assert "more than 4194304 bytes" in await refused(store, handler, BadAnswer)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, "old schema"),
        ({"schemaVersion": 2, "manifests": [], "layers": []}, "an index and a manifest at once"),
        ({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": []}, "not what its media type says"),
        (
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "layers": [], "config": {}},
            "not what its media type says",
        ),
    ],
)
async def test_documents_that_are_not_what_they_say(
    document: dict[str, Any], said: str, store: ImageStore
) -> None:
    content = Content()
    content.tag("1", content.add(encode(document), OCI_MANIFEST))
    assert said in await refused(store, content.answer, UnsupportedImage)


async def test_an_index_within_itself_ends(store: ImageStore) -> None:
    """A digest cannot name itself, so the loop is one of ever new indexes."""
    content = Content()
    entry = content.add(b"{}", OCI_INDEX)
    for _ in range(9):
        entry = content.index(entry)
    content.tag("1", entry)
    assert "indexes in indexes" in await refused(store, content.answer, UnsupportedImage)


async def test_more_than_the_store_may_hold_is_not_even_asked_for(kit: Kit, store: ImageStore) -> None:
    content = Content()
    made = content.image([layer(kit)])
    size = b'"size":%d'
    manifest = content.blobs[made["digest"]].replace(size % len(layer(kit)), size % (1 << 40))
    content.tag("1", content.add(manifest, OCI_MANIFEST))
    async with serving(content.answer) as server:
        with pytest.raises(QuotaExceeded, match=str(1 << 40)[:6]):
            await pull_one(store, server)
        assert server.asked("GET", "/blobs/") == []
