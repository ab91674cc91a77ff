"""The agent's image of this distribution, put into the store."""

import json
from pathlib import Path

import pytest
import zstandard

from machineplane.runtime.images.agent import AGENT_REF, Baked, ensure_agent
from machineplane.runtime.images.errors import ImageError, ImageNotFound
from machineplane.runtime.images.make import make_image
from machineplane.runtime.images.store import ImageStore


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store", architecture="amd64")


@pytest.fixture
def baked(tmp_path: Path) -> Path:
    folder = tmp_path / "baked"
    folder.mkdir()
    return folder


def bake(folder: Path, content: bytes) -> str:
    """As the build does it; the image's digest."""
    archive = folder.parent / "image.tar"
    make_image(
        archive,
        ref=AGENT_REF,
        files={"agent": (content, 0o755)},
        entrypoint=["/agent"],
        user="65534:65534",
        architecture="amd64",
    )
    (info,) = ImageStore(folder.parent / f"scratch-{content.hex()}", architecture="amd64").import_file(
        archive
    )
    made = Baked(architecture="amd64", digest=info.digest, key="k", folder=folder)
    made.archive.write_bytes(zstandard.compress(archive.read_bytes()))
    made.description.write_text(json.dumps({"digest": info.digest, "key": "k"}))
    return info.digest


@pytest.mark.root
def test_it_is_imported_once(store: ImageStore, baked: Path) -> None:
    digest = bake(baked, b"one")
    assert ensure_agent(store, baked)
    image = store.resolve(AGENT_REF)
    assert image.digest == digest
    assert (image.config.entrypoint, image.config.user) == (("/agent",), "65534:65534")
    assert not ensure_agent(store, baked)


@pytest.mark.root
def test_another_version_takes_its_place(store: ImageStore, baked: Path) -> None:
    bake(baked, b"one")
    ensure_agent(store, baked)
    digest = bake(baked, b"two")
    assert ensure_agent(store, baked)
    assert store.resolve(AGENT_REF).digest == digest


@pytest.mark.root
def test_content_that_was_lost_is_brought_again(store: ImageStore, baked: Path) -> None:
    digest = bake(baked, b"one")
    ensure_agent(store, baked)
    for blob in (store.path / "blobs").iterdir():
        blob.unlink()
    assert ensure_agent(store, baked)
    assert store.resolve(AGENT_REF).digest == digest


def test_an_installation_without_one_does_nothing(store: ImageStore, baked: Path) -> None:
    assert not ensure_agent(store, baked)
    assert not ensure_agent(store, baked / "nowhere")
    with pytest.raises(ImageNotFound):
        store.resolve(AGENT_REF)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": "x"}', "\xff"])
def test_a_description_that_is_none_counts_as_no_image(store: ImageStore, baked: Path, text: str) -> None:
    (baked / "workplane-amd64.json").write_text(text, encoding="latin-1")
    assert Baked.find("amd64", baked) is None
    assert not ensure_agent(store, baked)


def test_another_architectures_is_none_for_this_machine(store: ImageStore, baked: Path) -> None:
    (baked / "workplane-arm64.json").write_text('{"digest": "sha256:a", "key": "k"}')
    assert not ensure_agent(store, baked)


def test_a_broken_archive_is_said_and_leaves_no_image(store: ImageStore, baked: Path) -> None:
    bake_as = Baked(architecture="amd64", digest="sha256:a", key="k", folder=baked)
    bake_as.description.write_text('{"digest": "sha256:a", "key": "k"}')
    for content in (None, b"no archive"):
        if content is not None:
            bake_as.archive.write_bytes(content)
        with pytest.raises(ImageError, match="workplane-amd64"):
            ensure_agent(store, baked)
    with pytest.raises(ImageNotFound):
        store.resolve(AGENT_REF)
