"""Pulling from honest registries: tags, digests, indexes, compression, several layers at a time."""

import gzip
from collections.abc import Callable

import pytest
import trio
import zstandard
from pull_support import Kit, app, layer, pull_one, pulling, settings_for
from registry_support import Answer, Asked, Content, serving

from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.documents import sha256
from machineplane.runtime.images.download import Progress

pytestmark = pytest.mark.root


# -- honest registries


async def test_by_tag(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    async with serving(content.answer) as server:
        info = await pull_one(store, server)
        assert info.digest == digest
        image = store.resolve(f"{server.address}/team/app:1")
        assert [entry.name for entry in (store.layer_paths(image)[0]).iterdir()] == ["file"]
        assert not store.entries()[info.ref].private
        assert store.entries()[info.ref].pulled
    assert list(store.partials.iterdir()) == []


async def test_by_digest(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    async with serving(content.answer) as server:
        assert (await pull_one(store, server, f"team/app@{digest}")).digest == digest
        assert store.resolve(f"{server.address}/team/app@{digest}").digest == digest
        assert server.asked("HEAD", "") == []


async def test_a_tag_that_has_not_moved_costs_its_head_only(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    async with serving(content.answer) as server:
        await pull_one(store, server)
        before = len(server.requests)
        await pull_one(store, server)
        assert [asked.method for asked in server.requests[before:]] == ["HEAD"]


async def test_a_registry_that_tells_no_digest_in_the_head(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)

    def answer(asked: Asked) -> Answer:
        found = content.answer(asked)
        headers = {k: v for k, v in found.headers.items() if k != "Docker-Content-Digest"}
        return Answer(found.status, found.body, headers)

    async with serving(answer) as server:
        assert (await pull_one(store, server)).digest == digest


async def test_of_an_index_this_machines_image_is_taken(kit: Kit, store: ImageStore) -> None:
    content = Content()
    entries = [content.image([layer(kit, n)], architecture=a) for n, a in ((1, "arm64"), (2, "amd64"))]
    root = content.tag("1", content.index(*entries))
    async with serving(content.answer) as server:
        info = await pull_one(store, server)
        assert info.digest == entries[1]["digest"]
        assert store.resolve(f"{server.address}/team/app@{root}").digest == info.digest
    store.prune()
    assert store.document(root) == content.blobs[root]


@pytest.mark.parametrize(
    ("suffix", "compress"), [("+gzip", gzip.compress), ("+zstd", zstandard.ZstdCompressor().compress)]
)
async def test_compressed_layers(
    suffix: str, compress: Callable[[bytes], bytes], kit: Kit, store: ImageStore
) -> None:
    plain, content = layer(kit), Content()
    content.tag("1", content.image([compress(plain)], plain=[plain], suffix=suffix))
    async with serving(content.answer) as server:
        await pull_one(store, server)
        assert store.resolve(f"{server.address}/team/app:1").layers == (sha256(plain),)


async def test_layers_come_several_at_a_time_and_no_more_than_allowed(kit: Kit, store: ImageStore) -> None:
    content = Content()
    content.tag("1", content.image([layer(kit, size) for size in range(1, 7)]))
    now = most = 0
    enough = trio.Event()

    async def answer(asked: Asked) -> Answer:
        nonlocal now, most
        if "/blobs/" in asked.path:
            now += 1
            most = max(most, now)
            if now == 2:
                enough.set()
            with trio.fail_after(5):
                await enough.wait()
            await trio.lowlevel.checkpoint()
            now -= 1
        return content.answer(asked)

    async with serving(answer) as server:
        await pull_one(store, server, downloads={"at-once": 2})
    assert most == 2


async def test_progress_is_told_to_the_end(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    seen: list[Progress] = []
    async with serving(content.answer) as server, pulling(store, settings_for(server)) as pull:
        await pull(f"{server.address}/team/app:1", watch=seen.append)
        assert {p.digest: p.done for p in seen} == {p.digest: p.size for p in seen}
        assert all(server.address in progress.source for progress in seen)
    assert len({progress.digest for progress in seen}) == 2
