"""Importing, naming, resolving, pruning, and several importers at once."""

import gzip
import io
import json
import multiprocessing
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from machineplane.runtime.images import Image, ImageError, ImageInfo, ImageNotFound, ImageStore, StoreLimits
from machineplane.runtime.images.errors import StoreDamaged, StoreUnwritable, UnnamedImage, UnsupportedImage
from machineplane.runtime.images.garbage import mounted_layers

Kit = Any
NewStore = Callable[..., ImageStore]
pytestmark = pytest.mark.root


def simple(kit: Kit, content: bytes = b"1") -> Any:
    return kit.image([kit.tar(kit.member("a", content))])


def import_bytes(store: ImageStore, data: bytes, ref: str | None = None) -> list[ImageInfo]:
    return store.import_file(io.BytesIO(data), ref)


def test_an_oci_archive_is_imported_under_its_own_name(kit: Kit, store: ImageStore) -> None:
    image = simple(kit)
    (info,) = import_bytes(store, image.archive())
    found = store.resolve("example.test/app:1")
    assert store.ls() == [info]
    assert (info.ref, info.architecture, info.created) == ("example.test/app:1", "amd64", 1706933106000)
    assert (found.digest, found.size, found.index_digest) == (info.digest, info.size, None)
    assert found.layers == (kit.sha(image.layers[0]),)
    assert (found.config.cmd, found.config.env, found.config.user) == (("/run",), ("A=b",), "7")
    assert found.config.exposed_ports == ("80/tcp",)
    (path,) = store.layer_paths(found)
    assert (path / "a").read_bytes() == b"1"
    assert path.name == found.layers[0].removeprefix("sha256:")


def test_a_given_name_replaces_the_archives(kit: Kit, store: ImageStore) -> None:
    import_bytes(store, simple(kit).archive(), "busybox")
    assert [info.ref for info in store.ls()] == ["docker.io/library/busybox:latest"]
    assert store.resolve("docker.io/busybox").ref == "docker.io/library/busybox:latest"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("pack_layer", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressions_of_archive_and_layer(
    kit: Kit, store: ImageStore, pack: Callable[[bytes], bytes], pack_layer: Callable[[bytes], bytes]
) -> None:
    plain = kit.tar(kit.member("a", b"content"))
    import_bytes(store, pack(kit.image([pack_layer(plain)], plain=[plain]).archive()), "x")
    image = store.resolve("x")
    assert image.layers == (kit.sha(plain),)
    assert (store.layer_paths(image)[0] / "a").read_bytes() == b"content"


def test_a_layout_directory_gives_the_same_as_its_archive(
    kit: Kit, store: ImageStore, tmp_path: Path
) -> None:
    layout = kit.write_layout(tmp_path / "layout", simple(kit).files())
    (info,) = store.import_file(layout)
    assert import_bytes(store, simple(kit).archive()) == [info]


def test_a_pipe_need_not_be_seekable(kit: Kit, store: ImageStore) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as source, open(writing, "wb") as sink:
        threading.Thread(target=lambda: (sink.write(simple(kit).archive()), sink.close())).start()
        assert len(store.import_file(source, "piped")) == 1


def docker_archive(kit: Kit, layers: list[bytes], tags: list[str] | None) -> bytes:
    """As `docker save` wrote it before it took the OCI layout: a repeated layer is a link to the first."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/a"], "Cmd": None},
            "rootfs": {"type": "layers", "diff_ids": [kit.sha(layer) for layer in layers]},
        }
    ).encode()
    name = f"{kit.sha(config)[7:]}.json"
    members = [kit.member(f"{number}/layer.tar", layer) for number, layer in enumerate(layers)]
    members.append(kit.member("again/layer.tar", type=tarfile.SYMTYPE, linkname="../0/layer.tar"))
    paths = ["again/layer.tar", *(f"{number}/layer.tar" for number in range(1, len(layers)))]
    manifest = json.dumps([{"Config": name, "RepoTags": tags, "Layers": paths}]).encode()
    return bytes(kit.tar(kit.member(name, config), *members, kit.member("manifest.json", manifest)))


def test_a_docker_archive(kit: Kit, store: ImageStore) -> None:
    layers = [kit.tar(kit.member("a", b"1")), kit.tar(kit.member(".wh.a"), kit.member("b", b"2"))]
    data = docker_archive(kit, layers, ["busybox:1", "example.test/box:2"])
    infos = import_bytes(store, gzip.compress(data))
    assert [info.ref for info in infos] == ["docker.io/library/busybox:1", "example.test/box:2"]
    image = store.resolve("busybox:1")
    assert image.digest == infos[1].digest
    assert image.config.entrypoint == ("/a",)
    lower, upper = store.layer_paths(image)
    assert ((lower / "a").read_bytes(), (upper / "b").read_bytes()) == (b"1", b"2")


def test_an_image_without_a_name_asks_for_one(kit: Kit, store: ImageStore) -> None:
    layers = [kit.tar(kit.member("a", b"1"))]
    with pytest.raises(UnnamedImage, match="give it a name with --ref"):
        import_bytes(store, docker_archive(kit, layers, None))
    bare = simple(kit)
    bare.annotations = {"org.opencontainers.image.ref.name": "latest"}
    with pytest.raises(UnnamedImage):
        import_bytes(store, bare.archive())
    assert import_bytes(store, bare.archive(), "named")


def multi_architecture(kit: Kit, names: list[str]) -> tuple[dict[str, bytes], str, dict[str, str]]:
    """A layout whose index.json points to an index of several manifests and an attestation."""
    files: dict[str, bytes] = {}
    entries, digests = [], {}
    for name in names:
        image = kit.image([kit.tar(kit.member("arch", name.encode()))], architecture=name)
        files |= image.files()
        (entry,) = json.loads(files["index.json"])["manifests"]
        digests[name] = entry["digest"]
        entries.append({key: entry[key] for key in ("mediaType", "digest", "size", "platform")})
    entries.insert(0, {**entries[0], "platform": {"os": "unknown", "architecture": "unknown"}})
    inner = json.dumps({"manifests": entries}).encode()
    files[f"blobs/sha256/{kit.sha(inner)[7:]}"] = inner
    outer = kit.descriptor(inner, "application/vnd.oci.image.index.v1+json")
    outer["annotations"] = {"io.containerd.image.name": "example.test/multi:1"}
    files["index.json"] = json.dumps({"manifests": [outer]}).encode()
    return files, kit.sha(inner), digests


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_of_several_architectures_ours_is_taken(
    kit: Kit, new_store: NewStore, tmp_path: Path, architecture: str
) -> None:
    files, index, digests = multi_architecture(kit, ["amd64", "arm64"])
    store = new_store(architecture=architecture)
    store.import_file(kit.write_layout(tmp_path / "layout", files))
    image = store.resolve("example.test/multi:1")
    assert (image.digest, image.index_digest) == (digests[architecture], index)
    assert (store.layer_paths(image)[0] / "arch").read_text() == architecture
    assert store.resolve(f"example.test/multi@{index}").digest == image.digest
    assert store.resolve(f"example.test/multi:other@{image.digest}").digest == image.digest


def test_an_image_for_other_machines_says_so(kit: Kit, store: ImageStore, tmp_path: Path) -> None:
    files, _, _ = multi_architecture(kit, ["arm64", "s390x"])
    layout = kit.write_layout(tmp_path / "layout", files)
    with pytest.raises(UnsupportedImage, match=r"linux/arm64, linux/s390x.*not linux/amd64"):
        store.import_file(layout)
    with pytest.raises(UnsupportedImage, match="not linux/amd64"):
        import_bytes(store, kit.image([kit.tar()], architecture="riscv64").archive())


@pytest.mark.parametrize("field", ["config", "layer", "layers"])
def test_foreign_media_types_are_refused(kit: Kit, store: ImageStore, field: str) -> None:
    image = simple(kit)
    if field == "layer":
        image.descriptors[0]["mediaType"] = "application/x-other"
    elif field == "layers":
        image.layers, image.descriptors = [], []
    archive = image.archive()
    if field == "config":
        files = image.files()
        manifest = next(data for data in files.values() if b"schemaVersion" in data and b"config" in data)
        changed = manifest.replace(b"image.config.v1", b"other.config.v1")
        index = json.dumps(
            {"manifests": [kit.descriptor(changed, "application/vnd.oci.image.manifest.v1+json")]}
        )
        files |= {f"blobs/sha256/{kit.sha(changed)[7:]}": changed, "index.json": index.encode()}
        archive = kit.tar(*(kit.member(name, data) for name, data in files.items()))
    with pytest.raises(UnsupportedImage):
        import_bytes(store, archive, "x")


def test_an_unknown_image_says_how_to_import_it(store: ImageStore) -> None:
    with pytest.raises(ImageNotFound) as caught:
        store.resolve("busybox")
    ref = "docker.io/library/busybox:latest"
    assert str(caught.value) == (
        f"image {ref} is not on this machine: import it with `machineplane image import FILE --ref {ref}`"
    )
    with pytest.raises(ImageNotFound):
        store.remove("busybox")


def test_a_name_may_be_given_again(kit: Kit, store: ImageStore) -> None:
    import_bytes(store, simple(kit, b"1").archive(), "x")
    first = store.resolve("x")
    import_bytes(store, simple(kit, b"2").archive(), "x")
    assert store.resolve("x").digest != first.digest
    assert (store.layer_paths(first)[0] / "a").read_bytes() == b"1"


def tree(store: ImageStore) -> list[str]:
    return [path.name for part in ("blobs", "layers", "tmp") for path in (store.path / part).iterdir()]


def test_prune_frees_what_has_no_name_and_no_use(kit: Kit, store: ImageStore) -> None:
    for name in ("x", "y", "z"):
        import_bytes(store, simple(kit, name.encode() * 5000).archive(), name)
    kept, used, layer_used = (store.resolve(name) for name in ("x", "y", "z"))
    store.remove("y")
    store.remove("z")
    (store.path / "tmp" / "left-by-a-crash").mkdir()
    freed = store.prune(in_use=[used.digest, *layer_used.layers])
    assert freed > 0
    assert len(tree(store)) == 3 + 3 + 2 + 1
    assert store.layer_paths(kept) and store.layer_paths(used)
    assert store.has_layer(layer_used.layers[0])
    store.remove("x")
    assert store.prune() > freed
    assert tree(store) == []
    assert store.prune() == 0


def test_a_mounted_layer_survives_prune(kit: Kit, store: ImageStore) -> None:
    import_bytes(store, simple(kit).archive(), "x")
    (layer,) = store.resolve("x").layers
    store.remove("x")
    ImageStore(store.path, mounted=lambda: frozenset({layer[7:]})).prune()
    assert store.has_layer(layer)


def test_mounts_of_all_namespaces_are_seen(tmp_path: Path) -> None:
    for pid, digest in (("7", "a" * 64), ("8", "b" * 64), ("9", "c" * 64)):
        (tmp_path / pid / "ns").mkdir(parents=True)
        (tmp_path / pid / "ns" / "mnt").symlink_to(f"mnt:[{min(int(pid), 8)}]")
        line = f"36 35 0:50 / /r rw - overlay overlay rw,lowerdir=/s/{digest}:{'d' * 64},upperdir=/u\n"
        (tmp_path / pid / "mountinfo").write_text(f"1 1 8:1 / /{'e' * 64} rw - ext4 /dev/vda rw\n{line}")
    (tmp_path / "10").mkdir()  # ended meanwhile
    (tmp_path / "self").mkdir()
    assert mounted_layers(tmp_path) == {"a" * 64, "b" * 64, "d" * 64}


def test_a_lost_layer_is_unpacked_again_at_first_use(kit: Kit, store: ImageStore) -> None:
    import_bytes(store, simple(kit).archive(), "x")
    image = store.resolve("x")
    (path,) = store.layer_paths(image)
    (path / "a").unlink()
    path.rmdir()
    assert (store.layer_paths(image)[0] / "a").read_bytes() == b"1"


def test_a_damaged_store_says_what_is_missing(kit: Kit, store: ImageStore) -> None:
    (info,) = import_bytes(store, simple(kit).archive(), "x")
    (store.path / "blobs" / info.digest[7:]).unlink()
    with pytest.raises(StoreDamaged, match="import the image again"):
        store.resolve("x")
    (store.path / "index.json").write_text("[]")
    with pytest.raises(StoreDamaged, match="cannot be read"):
        store.ls()


def test_a_store_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnwritable, match="Not a directory"):
        ImageStore(tmp_path / "file" / "images")


def test_a_missing_file_says_so(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        store.import_file(tmp_path / "none.tar")


def import_many(path: Path, archives: list[bytes], start: Any) -> None:
    store = ImageStore(path, limits=StoreLimits(), architecture="amd64")
    start.wait()
    for number, archive in enumerate(archives):
        store.import_file(io.BytesIO(archive), f"image{number}")


def check_whole(store: ImageStore, count: int) -> None:
    images: list[Image] = [store.resolve(f"image{number}") for number in range(count)]
    for number, image in enumerate(images):
        (path,) = store.layer_paths(image)
        assert (path / "a").read_bytes() == str(number).encode()
    assert list((store.path / "tmp").iterdir()) == []


def test_processes_may_import_the_same_images_at_once(kit: Kit, store: ImageStore) -> None:
    archives = [simple(kit, str(number).encode()).archive() for number in range(6)]
    context = multiprocessing.get_context("fork")
    start = context.Event()
    workers = [
        context.Process(target=import_many, args=(store.path, order, start)) for order in (archives, archives)
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    check_whole(store, len(archives))


def test_threads_may_import_while_others_prune(kit: Kit, store: ImageStore) -> None:
    archives = [simple(kit, str(number).encode()).archive() for number in range(6)]
    start = threading.Barrier(3)
    importers = [threading.Thread(target=import_many, args=(store.path, archives, start)) for _ in range(2)]
    for importer in importers:
        importer.start()
    start.wait()
    while any(importer.is_alive() for importer in importers):
        store.prune()
    check_whole(store, len(archives))
