"""Who may pull: tokens, passwords, redirects, TLS, mirrors, and other machines."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pull_support import Kit, app, keys, pull_one, pulling, refused, settings_for, spoil
from registry_support import Answer, Asked, Content, Guarded, serving

from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.errors import (
    BadAnswer,
    ImageError,
    ImageNotFound,
    NotInRegistry,
    PullFailed,
    RegistryDenied,
    RegistryUnreachable,
)
from machineplane.runtime.images.peers import Offer
from machineplane.runtime.images.registry.settings import RegistrySettings, read_settings
from machineplane.runtime.images.sources import BlobStream

pytestmark = pytest.mark.root


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
