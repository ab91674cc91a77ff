"""WebAssembly modules as OCI artifacts: one bare layer, and configurations of several makers."""

import io
import json
from typing import Any

import pytest
from pull_support import pull_one
from registry_support import Content, serving

from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.documents import OCI_INDEX, OCI_MANIFEST, encode
from machineplane.runtime.images.errors import DigestMismatch, QuotaExceeded, UnsupportedImage
from machineplane.runtime.images.export import DOCKER_ARCHIVE, OCI_ARCHIVE, export_archive
from machineplane.runtime.images.model import StoreLimits

MODULE = b"\0asm\x01\0\0\0" + b"\0\x04\x03abc"
COMPONENT = b"\0asm\x0d\0\x01\0"
TAG_CONFIG = "application/vnd.wasm.config.v0+json"
MAKERS = [
    (
        TAG_CONFIG,
        {"architecture": "wasm", "os": "wasip1", "created": "2024-02-03T04:05:06Z"},
        "application/wasm",
    ),
    ("application/vnd.wasm.config.v1+json", {}, "application/vnd.wasm.content.layer.v1+wasm"),
    ("application/vnd.oci.empty.v1+json", {}, "application/wasm"),
]


def artifact(
    *modules: bytes, config_type: str = TAG_CONFIG, config: Any = None, layer_type: str = "application/wasm"
) -> tuple[Content, dict[str, Any]]:
    content = Content()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": content.add(encode(config or {}), config_type),
        "layers": [content.add(module, layer_type) for module in modules],
    }
    return content, content.add(encode(manifest), OCI_MANIFEST)


def archive(kit: Any, content: Content, entry: dict[str, Any]) -> io.BytesIO:
    """An OCI archive of it, as tools write them."""
    named = {**entry, "annotations": {"org.opencontainers.image.ref.name": "example.test/module:1"}}
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [named]}).encode(),
        **{f"blobs/sha256/{digest[7:]}": data for digest, data in content.blobs.items()},
    }
    return io.BytesIO(kit.tar(*(kit.member(name, data) for name, data in files.items())))


@pytest.mark.parametrize(("config_type", "config", "layer_type"), MAKERS)
async def test_a_module_is_pulled_and_is_an_image_with_that_one_file(
    store: ImageStore, config_type: str, config: dict[str, Any], layer_type: str
) -> None:
    content, entry = artifact(MODULE, config_type=config_type, config=config, layer_type=layer_type)
    content.tag("1", entry)
    async with serving(content.answer) as server:
        info = await pull_one(store, server)
    assert info.architecture == "wasm"
    image = store.resolve(info.ref)
    assert image.config.entrypoint == ("/app.wasm",)
    (root,) = store.layer_paths(image)
    assert [path.name for path in root.iterdir()] == ["app.wasm"]
    assert (root / "app.wasm").read_bytes() == MODULE
    assert (root / "app.wasm").stat().st_mode & 0o7777 == 0o444


async def test_an_index_that_has_nothing_for_this_machine_may_have_a_module(
    store: ImageStore, kit: Any
) -> None:
    content, module = artifact(MODULE, config={"architecture": "wasm", "os": "wasi"})
    layer = kit.tar(kit.member("file", b"x"))
    other = {**content.image([layer], architecture="arm64")}
    wasm = {**module, "platform": {"os": "wasi", "architecture": "wasm"}}
    content.tag("1", content.index(other, wasm))
    content.tag("2", content.index(wasm, content.image([layer])))
    async with serving(content.answer) as server:
        assert (await pull_one(store, server)).architecture == "wasm"
        assert (await pull_one(store, server, "team/app:2")).architecture == "amd64"


def test_a_module_is_unpacked_again_from_its_blob_and_pruned(store: ImageStore, kit: Any) -> None:
    store.import_file(archive(kit, *artifact(MODULE)))
    image = store.resolve("example.test/module:1")
    (root,) = store.layer_paths(image)
    (root / "app.wasm").unlink()
    root.rmdir()
    (again,) = store.layer_paths(image)
    assert (again / "app.wasm").read_bytes() == MODULE
    store.remove("example.test/module:1")
    store.prune()
    assert not root.exists()


def test_a_module_leaves_as_an_oci_archive_and_comes_back(store: ImageStore, kit: Any) -> None:
    store.import_file(archive(kit, *artifact(MODULE)))
    out = io.BytesIO()
    export_archive(store, ["example.test/module:1"], out, OCI_ARCHIVE)
    store.remove("example.test/module:1")
    store.prune()
    (info,) = store.import_file(io.BytesIO(out.getvalue()))
    assert (info.ref, info.architecture) == ("example.test/module:1", "wasm")
    with pytest.raises(UnsupportedImage, match="bare WebAssembly module"):
        export_archive(store, ["example.test/module:1"], io.BytesIO(), DOCKER_ARCHIVE)


@pytest.mark.parametrize(
    ("modules", "config", "why"),
    [
        ((COMPONENT,), {}, "no core WebAssembly module"),
        ((b"#!/bin/sh\n",), {}, "no core WebAssembly module"),
        ((b"",), {}, "no core WebAssembly module"),
        ((MODULE, MODULE + b"\0\0"), {}, "a module is one layer"),
        ((MODULE,), {"architecture": "wasm", "os": "wasip2"}, "wasip2/wasm"),
        ((MODULE,), {"architecture": "riscv64", "os": "linux"}, "linux/riscv64"),
    ],
)
def test_what_does_not_run_here_is_refused(
    store: ImageStore, kit: Any, modules: tuple[bytes, ...], config: dict[str, str], why: str
) -> None:
    with pytest.raises(UnsupportedImage, match=why):
        store.import_file(archive(kit, *artifact(*modules, config=config)))
    assert store.ls() == []
    assert list((store.path / "layers").iterdir()) == []


def test_the_quota_holds_for_modules(new_store: Any, kit: Any) -> None:
    store = new_store(StoreLimits(image_bytes=len(MODULE) - 1))
    with pytest.raises(QuotaExceeded):
        store.import_file(archive(kit, *artifact(MODULE)))


def test_another_content_is_refused(store: ImageStore, kit: Any) -> None:
    content, entry = artifact(MODULE)
    for digest, data in content.blobs.items():
        if data == MODULE:
            content.blobs[digest] = MODULE[:-1] + b"x"
    with pytest.raises(DigestMismatch):
        store.import_file(archive(kit, content, entry))
