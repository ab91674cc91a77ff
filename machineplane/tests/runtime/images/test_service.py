"""Pull policies: what a pod's image is, by what is here, what the registry says, and whether it can be asked."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from registry_support import Answer, Asked, Content, Guarded, Server, serving

from machineplane.runtime.images import ImageError, ImageStore
from machineplane.runtime.images.errors import (
    BadReference,
    ImageNotFound,
    NeverPull,
    NotInRegistry,
    RegistryDenied,
    RegistryUnreachable,
)
from machineplane.runtime.images.names import parse_reference
from machineplane.runtime.images.registry.credentials import Keyring
from machineplane.runtime.images.registry.settings import RegistrySettings, read_settings
from machineplane.runtime.images.service import ImageService, default_policy, open_images

Kit = Any
pytestmark = pytest.mark.root


class Asking:
    """A service on a store, its Events, and one server as its registry."""

    def __init__(self, service: ImageService, server: Server) -> None:
        self.service = service
        self.server = server
        self.events: list[tuple[str, str]] = []

    @property
    def ref(self) -> str:
        return f"{self.server.address}/team/app:1"

    async def image(self, policy: str, keyring: Keyring | None = None, ref: str = "") -> str:
        self.events.clear()
        image = await self.service.image(
            ref or self.ref, policy, keyring or Keyring(), lambda *event: self.events.append(event)
        )
        return image.digest

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.events]


@asynccontextmanager
async def asking(store: ImageStore, handler: Any) -> AsyncIterator[Asking]:
    async with serving(handler) as server:
        settings = read_settings({"registries": {server.address: {"plain-http": True}}}, "test")
        async with open_images(store, settings) as service:
            yield Asking(service, server)


def layer(kit: Kit, name: str = "file") -> bytes:
    return bytes(kit.tar(kit.member(name, b"content")))


def moving(kit: Kit) -> tuple[Content, list[str]]:
    """Two images, of which the tag names the first."""
    content = Content()
    made = [content.image([layer(kit, name)]) for name in "ab"]
    content.tag("1", made[0])
    return content, [str(descriptor["digest"]) for descriptor in made]


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("a", "Always"),
        ("a:latest", "Always"),
        ("a:1", "IfNotPresent"),
        (f"a@sha256:{'0' * 64}", "IfNotPresent"),
    ],
)
def test_the_default_is_kubernetes(name: str, policy: str) -> None:
    assert default_policy(parse_reference(name)) == policy


async def test_if_not_present_asks_once(kit: Kit, store: ImageStore) -> None:
    content, digests = moving(kit)
    async with asking(store, content.answer) as it:
        assert await it.image("IfNotPresent") == digests[0]
        assert it.reasons == ["Pulling", "Pulled"]
        assert it.events[1][1].startswith(f'Successfully pulled image "{it.ref}" in ')
        content.tags["1"] = digests[1]
        before = len(it.server.requests)
        assert await it.image("IfNotPresent") == digests[0]
        assert it.events == [("Pulled", f'Container image "{it.ref}" already present on machine')]
        assert len(it.server.requests) == before


async def test_always_follows_the_tag(kit: Kit, store: ImageStore) -> None:
    content, digests = moving(kit)
    async with asking(store, content.answer) as it:
        assert await it.image("Always") == digests[0]
        content.tags["1"] = digests[1]
        assert await it.image("Always") == digests[1]
        assert it.reasons == ["Pulling", "Pulled"]


async def test_never_takes_what_is_here(kit: Kit, store: ImageStore) -> None:
    content, digests = moving(kit)
    async with asking(store, content.answer) as it:
        with pytest.raises(NeverPull, match="is not present with pull policy of Never"):
            await it.image("Never")
        assert it.server.requests == []
        await it.image("Always")
        assert await it.image("Never") == digests[0]


async def test_always_without_its_registry_takes_what_is_here_and_says_so(
    kit: Kit, store: ImageStore
) -> None:
    content, digests = moving(kit)
    async with asking(store, content.answer) as it:
        await it.image("Always")
        it.server.handler = lambda _: Answer(503, headers={"Retry-After": "9999"})
        assert await it.image("Always") == digests[0]
        assert (
            it.events[-1][0] == "Pulled" and "is used as it is on this machine: registry" in it.events[-1][1]
        )
        with pytest.raises(RegistryUnreachable):
            await it.image("Always", ref=f"{it.server.address}/team/other:1")


async def test_always_with_a_registry_that_has_it_no_more_fails(kit: Kit, store: ImageStore) -> None:
    content, _ = moving(kit)
    async with asking(store, content.answer) as it:
        await it.image("Always")
        content.tags.clear()
        with pytest.raises(NotInRegistry):
            await it.image("Always")


async def test_an_imported_image_needs_no_registry(kit: Kit, store: ImageStore) -> None:
    store.import_file(io.BytesIO(kit.oci(layer(kit))), "localhost/app")
    async with open_images(store, RegistrySettings()) as service:
        events: list[tuple[str, str]] = []
        image = await service.image("localhost/app", "Always", Keyring(), lambda *e: events.append(e))
        assert image.ref == "localhost/app:latest"
        assert [reason for reason, _ in events] == ["Pulled"]
        with pytest.raises(ImageNotFound, match="machineplane image import"):
            await service.image("localhost/other", "Always", Keyring(), lambda *_: None)
        with pytest.raises(BadReference):
            await service.image("Bad", "Always", Keyring(), lambda *_: None)


async def test_pods_that_start_together_share_one_pull(kit: Kit, store: ImageStore) -> None:
    content, digests = moving(kit)
    found: list[str] = []
    async with asking(store, content.answer) as it:

        async def one() -> None:
            found.append(await it.image("IfNotPresent"))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert found == [digests[0]] * 5
        assert len(it.server.asked("GET", "/blobs/")) == 2


async def test_a_pull_that_is_cancelled_leaves_the_turn_to_the_next(kit: Kit, store: ImageStore) -> None:
    content, digests = moving(kit)
    hang = trio.Event()

    async def answer(asked: Asked) -> Answer:
        if not hang.is_set():
            hang.set()
            await trio.sleep_forever()
        return content.answer(asked)

    async with asking(store, answer) as it:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.image, "Always")
            await hang.wait()
            nursery.cancel_scope.cancel()
        assert await it.image("Always") == digests[0]


async def test_an_image_that_was_lost_here_is_pulled_again(kit: Kit, store: ImageStore) -> None:
    content, digests = moving(kit)
    async with asking(store, content.answer) as it:
        await it.image("IfNotPresent")
        store.blob_path(digests[0]).unlink()
        assert await it.image("IfNotPresent") == digests[0]
        assert it.reasons == ["Pulling", "Pulled"]
        assert store.blob_path(digests[0]).exists()


# -- private images


def keys(server: Server, password: str = "p") -> Keyring:
    return read_settings({"auths": {server.address: {"username": "u", "password": password}}}, "x").keyring


async def test_a_private_image_that_is_here_is_not_for_everybody(kit: Kit, store: ImageStore) -> None:
    content, digests = moving(kit)
    guard = Guarded(content, users={"u": "p"})
    async with asking(store, guard.answer_basic) as it:
        await it.image("IfNotPresent", keys(it.server))
        for policy in ("IfNotPresent", "Never", "Always"):
            with pytest.raises(RegistryDenied):
                await it.image(policy)
            with pytest.raises(RegistryDenied):
                await it.image(policy, keys(it.server, "wrong"))
            assert await it.image(policy, keys(it.server)) == digests[0]


async def test_what_the_registry_has_allowed_it_is_not_asked_again(kit: Kit, store: ImageStore) -> None:
    guard = Guarded(moving(kit)[0], users={"u": "p"})
    async with asking(store, guard.answer_basic) as it:
        await it.image("IfNotPresent", keys(it.server))
        await it.image("IfNotPresent", keys(it.server))
        before = len(it.server.requests)
        await it.image("IfNotPresent", keys(it.server))
        assert len(it.server.requests) == before


@pytest.mark.parametrize("policy", ["IfNotPresent", "Always"])
async def test_without_the_registry_a_fitting_key_is_enough(policy: str, kit: Kit, store: ImageStore) -> None:
    content, digests = moving(kit)
    guard = Guarded(content, users={"u": "p"})
    async with asking(store, guard.answer_basic) as it:
        await it.image("IfNotPresent", keys(it.server))
        it.server.handler = lambda _: Answer(503, headers={"Retry-After": "9999"})
        assert await it.image(policy, keys(it.server, "other")) == digests[0]
        with pytest.raises(ImageError):
            await it.image(policy)
