"""Pulling from registries on loopback: honest ones, then ones that lie, break off, refuse and redirect."""

import gzip
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import zstandard
from registry_support import Answer, Asked, Content, Guarded, Server, serving

from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.documents import OCI_INDEX, OCI_MANIFEST, Descriptor, encode, sha256
from machineplane.runtime.images.download import Downloader, Progress
from machineplane.runtime.images.errors import (
    BadAnswer,
    DigestMismatch,
    ImageError,
    ImageNotFound,
    NotInRegistry,
    PullFailed,
    QuotaExceeded,
    RegistryDenied,
    RegistryUnreachable,
    SizeMismatch,
    Unreachable,
    UnsupportedImage,
)
from machineplane.runtime.images.model import ImageInfo
from machineplane.runtime.images.names import parse_reference
from machineplane.runtime.images.peers import NoPeers, Offer, Peers
from machineplane.runtime.images.pull import Puller
from machineplane.runtime.images.registry.client import open_registries
from machineplane.runtime.images.registry.credentials import Keyring
from machineplane.runtime.images.registry.settings import RegistrySettings, read_settings
from machineplane.runtime.images.sources import BlobStream
from machineplane.runtime.images.waits import Waits

Kit = Any
pytestmark = pytest.mark.root


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


def spoil(content: Content, which: str, change: Callable[[Answer], Answer]) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        found = content.answer(asked)
        return change(found) if which in asked.path and asked.method == "GET" else found

    return answer


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


# -- who may


async def test_a_token_for_nobody(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    guard = Guarded(content)
    guard.anonymous = True
    async with serving(guard.give_token) as service, serving(guard.answer) as server:
        guard.realm = f"http://{service.address}/token"
        info = await pull_one(store, server)
        assert info.digest == digest
        assert not store.entries()[info.ref].private
        assert len(service.requests) == 1
        assert "scope=repository%3Ateam%2Fapp%3Apull" in service.requests[0].target
        assert "service=registry.test" in service.requests[0].target


@pytest.mark.parametrize("fields", [{"username": "u", "password": "p"}, {"auth": "dTpw"}])
async def test_a_token_for_a_password(fields: dict[str, str], kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    guard = Guarded(content, users={"u": "p"})
    async with serving(guard.give_token) as service, serving(guard.answer) as server:
        guard.realm = f"http://{service.address}/token"
        info = await pull_one(store, server, keyring=keys(server, **fields))
        assert store.entries()[info.ref].private
        assert not any("Basic" in asked.headers.get("authorization", "") for asked in server.requests)


async def test_a_token_for_an_identity_token(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    guard = Guarded(content)
    async with serving(guard.give_token) as service, serving(guard.answer) as server:
        guard.realm = f"http://{service.address}/token"
        info = await pull_one(store, server, keyring=keys(server, identitytoken="r3fresh"))
        assert info.digest == digest
        assert service.requests[0].method == "POST"


async def test_basic_authentication(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    guard = Guarded(content, users={"u": "p"})
    async with serving(guard.answer_basic) as server:
        info = await pull_one(store, server, keyring=keys(server, username="u", password="p"))
        assert store.entries()[info.ref].private


async def test_keys_that_are_refused_give_way_to_better_ones(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    guard = Guarded(content, users={"u": "p"})
    async with serving(guard.answer_basic) as server:
        keyring = keys(server, username="u", password="old") + keys(server, username="u", password="p")
        assert (await pull_one(store, server, keyring=keyring)).digest == digest


async def test_a_key_that_is_refused_is_not_shown_for_every_blob(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)

    def answer(asked: Asked) -> Answer:
        """Public, but not to those who show a wrong key; without a challenge nobody shows one."""
        if "authorization" not in asked.headers and not challenged:
            challenged.append(asked)
            return Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return Answer(401) if "authorization" in asked.headers else content.answer(asked)

    challenged: list[Asked] = []
    async with serving(answer) as server:
        info = await pull_one(store, server, keyring=keys(server, username="u", password="old"))
        assert info.digest == digest
        assert len([asked for asked in server.requests if "authorization" in asked.headers]) == 1
        assert not store.entries()[info.ref].private


async def test_without_keys_the_error_says_so(kit: Kit, store: ImageStore) -> None:
    guard = Guarded(app(kit)[0], users={"u": "p"})
    assert "it wants credentials" in await refused(store, guard.answer_basic, RegistryDenied)


async def test_a_wrong_password_ends_soon_and_is_not_shown(kit: Kit, store: ImageStore) -> None:
    guard = Guarded(app(kit)[0], users={"u": "p"})
    async with serving(guard.answer_basic) as server:
        with pytest.raises(RegistryDenied) as caught:
            await pull_one(store, server, keyring=keys(server, username="u", password="s3cret"))
        assert "s3cret" not in str(caught.value)
        assert len(server.requests) <= 4


@pytest.mark.parametrize("realm", ["http://127.0.0.1:9/token", "file:///etc/passwd", "https://", "", "x y"])
async def test_passwords_go_to_no_token_service_in_clear_text(
    realm: str, kit: Kit, store: ImageStore, tls: Any
) -> None:
    guard = Guarded(app(kit)[0], realm, users={"u": "p"})
    server_tls, ca = tls
    async with serving(guard.answer, server_tls) as server:
        settings = read_settings({"registries": {server.address: {"ca": str(ca)}}}, "test")
        async with pulling(store, settings) as pull:
            with pytest.raises(BadAnswer, match="token service"):
                await pull(f"{server.address}/team/app:1", keys(server, username="u", password="p"))


async def test_a_name_that_is_not_there(kit: Kit, store: ImageStore) -> None:
    assert "has no manifests/1" in await refused(store, lambda _: Answer(404), NotInRegistry)


async def test_content_that_came_for_credentials_needs_them_again(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    guard = Guarded(content, users={"u": "p"})
    async with serving(guard.answer_basic) as server:
        key = keys(server, username="u", password="p")
        name = f"team/app@{digest}"
        await pull_one(store, server, name, keyring=key)
        with pytest.raises(RegistryDenied):
            await pull_one(store, server, name)
        assert (await pull_one(store, server, name, keyring=key)).digest == digest


async def test_shared_registries_leave_no_mark(kit: Kit, store: ImageStore) -> None:
    guard = Guarded(app(kit)[0], users={"u": "p"})
    async with serving(guard.answer_basic) as server:
        settings = read_settings(
            {"registries": {server.address: {"plain-http": True, "share": True}}}, "test"
        )
        async with pulling(store, settings) as pull:
            info = await pull(f"{server.address}/team/app:1", keys(server, username="u", password="p"))
    assert not store.entries()[info.ref].private


# -- redirects


async def test_blobs_elsewhere_get_no_token(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    guard = Guarded(content, users={"u": "p"})
    async with serving(content.answer) as storage, serving(lambda _: Answer()) as server:

        def answer(asked: Asked) -> Answer:
            found = guard.answer_basic(asked)
            if found.status == 200 and "/blobs/" in asked.path:
                return Answer(307, headers={"Location": f"http://{storage.address}{asked.path}?signed=1"})
            return found

        server.handler = answer
        info = await pull_one(store, server, keyring=keys(server, username="u", password="p"))
        assert info.digest == digest
        assert len(storage.requests) == 2
        assert not any("authorization" in asked.headers for asked in storage.requests)


async def test_a_redirect_on_the_same_host_keeps_it(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    guard = Guarded(content, users={"u": "p"})

    def answer(asked: Asked) -> Answer:
        if "/blobs/" in asked.path and "moved" not in asked.target:
            return Answer(302, headers={"Location": f"{asked.path}?moved"})
        return guard.answer_basic(asked)

    async with serving(answer) as server:
        info = await pull_one(store, server, keyring=keys(server, username="u", password="p"))
        assert info.digest == digest


async def test_a_circle_of_redirects_ends(kit: Kit, store: ImageStore) -> None:
    handler = spoil(app(kit)[0], "/blobs/", lambda _: Answer(307, headers={"Location": "?again"}))
    assert "redirects more than 5 times" in await refused(store, handler, BadAnswer)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "", "http://u:p@127.0.0.1/x", "gopher://x/"])
async def test_redirects_to_nowhere_are_not_followed(target: str, kit: Kit, store: ImageStore) -> None:
    handler = spoil(app(kit)[0], "/blobs/", lambda _: Answer(307, headers={"Location": target}))
    assert "not followed" in await refused(store, handler, BadAnswer)


async def test_https_does_not_lead_to_http(kit: Kit, store: ImageStore, tls: Any) -> None:
    content, _ = app(kit)
    server_tls, ca = tls
    async with serving(content.answer) as storage:
        location = {"Location": f"http://{storage.address}/v2/x"}
        handler = spoil(content, "/blobs/", lambda _: Answer(307, headers=location))
        async with serving(handler, server_tls) as server:
            settings = read_settings({"registries": {server.address: {"ca": str(ca)}}}, "test")
            async with pulling(store, settings) as pull:
                with pytest.raises(BadAnswer, match="HTTPS is needed"):
                    await pull(f"{server.address}/team/app:1")
        assert storage.requests == []


# -- TLS and mirrors


async def test_a_private_authority(kit: Kit, store: ImageStore, tls: Any) -> None:
    content, digest = app(kit)
    server_tls, ca = tls
    async with serving(content.answer, server_tls) as server:
        ref = f"{server.address}/team/app:1"
        async with pulling(store, RegistrySettings()) as pull:
            with pytest.raises(RegistryUnreachable, match=r"(?i)certificate"):
                await pull(ref)
        for how in ({"ca": str(ca)}, {"skip-verify": True}):
            async with pulling(store, read_settings({"registries": {server.address: how}}, "test")) as pull:
                assert (await pull(ref)).digest == digest


async def test_plain_http_only_where_it_is_configured(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    async with serving(content.answer) as server:
        async with pulling(store, RegistrySettings()) as pull:
            with pytest.raises(RegistryUnreachable):
                await pull(f"{server.address}/team/app:1")
        assert server.requests == []


async def test_a_mirror_comes_first_and_the_registry_when_it_fails(kit: Kit, store: ImageStore) -> None:
    content, digest = app(kit)
    async with serving(content.answer) as origin, serving(lambda _: Answer(404)) as mirror:
        behind = Content("cache/team/app")
        behind.blobs, behind.tags, behind.types = content.blobs, content.tags, content.types
        hosts = {origin.address: {"plain-http": True, "mirrors": [f"http://{mirror.address}/cache"]}}
        async with pulling(store, read_settings({"registries": hosts}, "test")) as pull:
            assert (await pull(f"{origin.address}/team/app:1")).digest == digest
            assert mirror.asked("HEAD", "/v2/cache/team/app/manifests/1")
            store.remove(f"{origin.address}/team/app:1")
            store.prune()
            mirror.handler = behind.answer
            before = len(origin.requests)
            assert (await pull(f"{origin.address}/team/app:1")).digest == digest
            assert len(origin.requests) == before


async def test_a_disabled_registry_is_not_asked(kit: Kit, store: ImageStore) -> None:
    content, _ = app(kit)
    async with serving(content.answer) as server:
        settings = read_settings({"registries": {"*": {"enabled": False}}}, "test")
        async with pulling(store, settings) as pull:
            with pytest.raises(ImageNotFound):
                await pull(f"{server.address}/team/app:1")
        assert server.requests == []


# -- other machines


class Hearsay:
    """Other machines that have an image under every name."""

    def __init__(self, digest: str) -> None:
        self.offer = Offer(EndpointOfNobody(), digest, 1)
        self.asked: list[str] = []

    async def find_digest(self, digest: str) -> list[Offer]:
        return []

    async def find_name(self, ref: str) -> list[Offer]:
        self.asked.append(ref)
        return [self.offer]


class EndpointOfNobody:
    subject = "machine 0000"

    @asynccontextmanager
    async def blob(self, digest: str, offset: int) -> AsyncIterator[BlobStream]:
        raise PullFailed(self.subject, "has nothing")
        yield

    async def document(self, digest: str, limit: int) -> bytes:
        raise PullFailed(self.subject, "has nothing")


@pytest.mark.parametrize(("status", "kind"), [(404, NotInRegistry), (403, RegistryDenied)])
async def test_what_a_registry_says_of_a_name_others_cannot_unsay(
    status: int, kind: type[ImageError], store: ImageStore
) -> None:
    peers = Hearsay("sha256:" + "0" * 64)
    async with (
        serving(lambda _: Answer(status)) as server,
        pulling(store, settings_for(server), peers=peers) as pull,
    ):
        with pytest.raises(kind):
            await pull(f"{server.address}/team/app:1")
    assert peers.asked == []


async def test_others_are_asked_for_a_name_when_the_registry_is_away(store: ImageStore) -> None:
    peers = Hearsay("sha256:" + "0" * 64)
    async with (
        serving(lambda _: Answer(503)) as server,
        pulling(store, settings_for(server), peers=peers) as pull,
    ):
        with pytest.raises(PullFailed):
            await pull(f"{server.address}/team/app:1")
        assert peers.asked == [f"{server.address}/team/app:1"]
