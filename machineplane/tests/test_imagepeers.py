"""Images between machines on an in-memory mesh: who has what, who gets it, and liars among them."""

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from machineplane.imagepeers import BLOB, FIND, HANDED_OUT_MAX, ImagePeers
from machineplane.runtime.images import ImageNotFound, ImageStore
from machineplane.runtime.images.documents import parse_manifest
from machineplane.runtime.images.errors import DigestMismatch
from machineplane.runtime.images.handout import Handout
from machineplane.runtime.images.make import make_image
from machineplane.runtime.images.refs import RefIndex
from machineplane.runtime.images.registry.credentials import Keyring
from machineplane.runtime.images.registry.settings import read_settings
from machineplane.runtime.images.service import ImageService, open_images
from magik_mesh import Call, CallRefused, Node, PeerInfo, RpcFailed
from magik_mesh.testing import identity_of, memory_fabric
from magik_proto.identity import PeerId

pytestmark = pytest.mark.root
REF = "localhost/app:1"
HUB = "docker.io/library/app:1"


class Machine:
    """A node with a store; what it pulls is told by ``events``."""

    def __init__(self, node: Node, store: ImageStore, service: ImageService) -> None:
        self.node = node
        self.store = store
        self.service = service
        self.peers = ImagePeers(node, Handout(store), random.Random(1), busy_wait_s=0.05)
        service.peers = self.peers

    async def pull(self, ref: str = REF, policy: str = "IfNotPresent") -> str:
        image = await self.service.image(ref, policy, Keyring(), lambda *_: None)
        return image.digest


@asynccontextmanager
async def machines(folder: Path, count: int) -> AsyncIterator[list[Machine]]:
    """Machines of one fabric, none of which has a registry."""
    settings = read_settings({"registries": {"*": {"enabled": False}}}, "test")
    async with AsyncExitStack() as stack:
        fabric = await stack.enter_async_context(memory_fabric(count))
        made = []
        for number, node in enumerate(fabric.nodes):
            store = ImageStore(folder / str(number), mounted=frozenset)
            service = await stack.enter_async_context(open_images(store, settings))
            made.append(Machine(node, store, service))
        await fabric.connected()
        yield made


def give(store: ImageStore, ref: str = REF, content: bytes = b"content", **changes: Any) -> str:
    """Put an image into a store, and then ``changes`` into its entry; its digest."""
    archive = store.path / "archive.tar"
    make_image(archive, ref=ref, files={"file": (content, 0o644)})
    (info,) = store.import_file(archive)
    archive.unlink()
    if changes:
        RefIndex(store.path).set({ref: evolve(store.entries()[ref], **changes)})
    return info.digest


async def test_one_copy_serves_all(tmp_path: Path) -> None:
    async with machines(tmp_path, 3) as (first, *others):
        digest = give(first.store, content=random.Random(1).randbytes(3 << 20))
        for machine in others:
            assert await machine.pull() == digest
            (layer,) = machine.store.layer_paths(machine.store.resolve(REF))
            assert (layer / "file").stat().st_size == 3 << 20


async def test_by_digest(tmp_path: Path) -> None:
    async with machines(tmp_path, 2) as (first, second):
        digest = give(first.store, HUB)
        assert await second.pull(f"app@{digest}") == digest


async def test_who_pulled_hands_on(tmp_path: Path) -> None:
    async with machines(tmp_path, 3) as (first, second, third):
        digest = give(first.store)
        await second.pull()
        first.store.remove(REF)
        assert await third.pull() == digest


async def test_of_several_the_newest_counts_for_a_name(tmp_path: Path) -> None:
    async with machines(tmp_path, 3) as (first, second, third):
        give(first.store, content=b"old", stored=1000)
        newer = give(second.store, content=b"new", stored=2000)
        assert await third.pull() == newer


async def test_what_is_here_is_not_asked_for(tmp_path: Path) -> None:
    async with machines(tmp_path, 2) as (first, second):
        own = give(second.store, content=b"own", stored=1000)
        give(first.store, content=b"new", stored=2000)
        assert await second.pull(policy="Always") == own


async def test_whom_the_index_names_is_asked_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large fabric most machines have no connection to one that has an image."""
    async with machines(tmp_path, 3) as (first, second, third):
        digest = give(first.store)
        give(second.store, "localhost/other:1")
        asked: list[str] = []

        async def holders(ident: str) -> list[PeerId]:
            asked.append(ident)
            return [first.node.id] if ident in first.peers.told else []

        monkeypatch.setattr(type(first.node), "large", True)
        monkeypatch.setattr(third.node, "peers", list)
        monkeypatch.setattr(third.peers, "_holders", holders)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.peers.run)
            with trio.fail_after(30):
                while not first.peers.told:  # noqa: ASYNC110 - there is no event for it
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert await third.pull() == digest
        assert asked == [REF, digest]
        with pytest.raises(ImageNotFound):
            await third.pull("localhost/other:1")


async def test_told_is_what_is_whole_public_and_not_everywhere(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store", mounted=frozenset)
    digest = give(store)
    give(store, "localhost/private:1", content=b"mine", private=True)
    give(store, "localhost/every:1", content=b"each")
    damaged = give(store, "localhost/damaged:1", content=b"lost")
    handout = Handout(store, frozenset(("localhost/every:1",)))
    assert damaged in handout.told()
    (layer,) = parse_manifest(store.document(damaged) or b"", "test", layers=9).layers
    store.blob_path(layer.digest).unlink()
    assert set(handout.told()) == {REF, digest}


async def test_private_images_stay(tmp_path: Path) -> None:
    async with machines(tmp_path, 2) as (first, second):
        digest = give(first.store, HUB, private=True)
        for ref in (HUB, f"app@{digest}"):
            with pytest.raises(ImageNotFound):
                await second.pull(ref)
        (layer,) = first.store.resolve(HUB).layers
        with pytest.raises(RpcFailed, match="is not to be had here"):
            await _document(second, first, layer)


async def test_nothing_but_images_is_handed_out(tmp_path: Path) -> None:
    async with machines(tmp_path, 2) as (first, second):
        digest = give(first.store)
        assert await _document(second, first, digest)
        first.store.remove(REF)
        with pytest.raises(RpcFailed, match="is not to be had here"):
            await _document(second, first, digest)


async def _document(asking: Machine, asked: Machine, digest: str) -> bytes:
    """A document of one machine, as another gets it."""
    with trio.fail_after(10):
        async with asking.node.open_call(asked.node.id, BLOB, {"digest": digest, "offset": 0}) as (_, stream):
            return b"".join([bytes(chunk) async for chunk in stream])


@pytest.mark.parametrize(
    ("method", "body", "code"),
    [
        (FIND, None, "image.body"),
        (FIND, {"digest": "sha256:0"}, "image.body"),
        (FIND, {"name": "x" * 1000}, "image.body"),
        (FIND, {"name": 7}, "image.body"),
        (BLOB, {"digest": "../../etc/passwd", "offset": 0}, "image.body"),
        (BLOB, {"digest": "sha256:" + "0" * 64}, "image.body"),
        (BLOB, {"digest": "sha256:" + "0" * 64, "offset": 0}, "image.unknown"),
        (BLOB, {"digest": "OWN", "offset": -1}, "image.offset"),
        (BLOB, {"digest": "OWN", "offset": 1 << 40}, "image.offset"),
    ],
)
async def test_nonsense_is_refused(method: str, body: Any, code: str, tmp_path: Path) -> None:
    async with machines(tmp_path, 2) as (first, second):
        digest = give(first.store)
        if isinstance(body, dict) and body.get("digest") == "OWN":
            body = {**body, "digest": digest}
        with pytest.raises(RpcFailed) as caught:
            await second.node.call(first.node.id, method, body)
        assert caught.value.code == code


class Liar:
    """Says that it has everything, and sends what it likes."""

    def __init__(self, digest: str, data: bytes) -> None:
        self.answer: Any = {"digest": digest, "at": 1 << 60}
        self.data = data

    async def find(self, call: Call) -> object:
        return self.answer

    async def blob(self, call: Call) -> None:
        await call.reply({"size": 1})
        await call.stream.send_all(self.data)


@asynccontextmanager
async def with_liar(folder: Path, liar: Liar) -> AsyncIterator[tuple[Machine, Machine]]:
    """An honest machine and one that asks; a liar beside them."""
    settings = read_settings({"registries": {"*": {"enabled": False}}}, "test")
    async with AsyncExitStack() as stack:
        fabric = await stack.enter_async_context(memory_fabric(3))
        made = []
        for number, node in enumerate(fabric.nodes[:2]):
            store = ImageStore(folder / str(number), mounted=frozenset)
            service = await stack.enter_async_context(open_images(store, settings))
            made.append(Machine(node, store, service))
        fabric.nodes[2].handle(FIND, liar.find)
        fabric.nodes[2].handle(BLOB, liar.blob)
        await fabric.connected()
        yield made[0], made[1]


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * (6 << 20)])
async def test_a_liar_is_passed_over_for_what_is_named_by_digest(data: bytes, tmp_path: Path) -> None:
    liar = Liar("sha256:" + "0" * 64, data)
    async with with_liar(tmp_path, liar) as (honest, asking):
        digest = give(honest.store, HUB)
        liar.answer = {"digest": digest, "at": 1}
        assert await asking.pull(f"app@{digest}") == digest


@pytest.mark.parametrize(
    "answer", [None, 7, {"digest": 7, "at": 1}, {"digest": "sha256:x", "at": 1}, {"digest": "", "at": ""}]
)
async def test_answers_that_mean_nothing_are_passed_over(answer: Any, tmp_path: Path) -> None:
    liar = Liar("", b"")
    liar.answer = answer
    async with with_liar(tmp_path, liar) as (honest, asking):
        digest = give(honest.store)
        assert await asking.pull() == digest


async def test_when_only_a_liar_has_it_the_error_names_it(tmp_path: Path) -> None:
    digest = "sha256:" + "1" * 64
    async with with_liar(tmp_path, Liar(digest, b"{}")) as (_, asking):
        with pytest.raises(DigestMismatch, match=r"machine [0-9a-f]{16}"):
            await asking.pull(f"app@{digest}")


async def test_a_machine_without_the_role_gets_and_gives_nothing(tmp_path: Path) -> None:
    class Stranger:
        roles = frozenset({"submit"})
        peer = "somebody"
        body: Mapping[str, object] = {"name": REF}

    async with machines(tmp_path, 1) as (only,):
        give(only.store)
        for method in (only.peers._on_find, only.peers._on_blob):
            with pytest.raises(CallRefused, match="has no role 'run'"):
                await method(Stranger())  # type: ignore[arg-type]


async def test_blobs_are_handed_out_to_a_few_at_a_time(tmp_path: Path) -> None:
    async with machines(tmp_path, 2) as (first, second), AsyncExitStack() as stack:
        give(first.store, content=random.Random(1).randbytes(8 << 20))
        (layer,) = first.store.resolve(REF).layers
        body = {"digest": layer, "offset": 0}
        for _ in range(HANDED_OUT_MAX):
            await stack.enter_async_context(second.node.open_call(first.node.id, BLOB, body))
        with pytest.raises(RpcFailed) as caught:
            await second.node.call(first.node.id, BLOB, body)
        assert caught.value.code == "image.busy"
        await stack.aclose()
        assert len(await _document(second, first, layer)) > 8 << 20


class FewFriends:
    """A node that knows three machines: one may run pods, one may not, one is away. All say that they have everything."""

    id = identity_of(1).peer_id

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.asked: list[PeerId] = []

    def handle(self, method: str, handler: object) -> None:
        pass

    def peers(self) -> list[PeerInfo]:
        roles = (frozenset({"run"}), frozenset({"submit"}), frozenset({"run"}))
        return [
            PeerInfo(identity_of(number).peer_id, None, roles[number - 2], number != 4, 0)
            for number in (2, 3, 4)
        ]

    async def call(self, peer: PeerId, method: str, body: object, *, timeout: float) -> object:
        self.asked.append(peer)
        return {"digest": self.digest, "at": 1}


async def test_only_machines_that_run_pods_are_asked_and_only_what_fits_is_taken(tmp_path: Path) -> None:
    digest = "sha256:" + "1" * 64
    node = FewFriends(digest)
    peers = ImagePeers(node, Handout(ImageStore(tmp_path)), random.Random(1))  # type: ignore[arg-type]
    assert len(await peers.find_digest(digest)) == 1
    assert node.asked == [identity_of(2).peer_id]
    node.digest = "sha256:" + "2" * 64
    assert await peers.find_digest(digest) == []
