"""What is exported can be imported again, here and by the formats' own rules; damage is found on the way out."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner

from machineplane.runtime.images import ImageNotFound, ImageStore
from machineplane.runtime.images.cli import image
from machineplane.runtime.images.errors import StoreDamaged, StoreUnwritable
from machineplane.runtime.images.export import (
    DOCKER_ARCHIVE,
    FORMS,
    OCI_ARCHIVE,
    export_archive,
    export_layout,
)
from machineplane.runtime.images.make import make_image

Kit = Any
pytestmark = pytest.mark.root
REF = "example.test/app:1"


def filled(kit: Kit, store: ImageStore, compress: Callable[[bytes], bytes] = lambda data: data) -> ImageStore:
    plain = [kit.tar(kit.member("a", b"1" * 9000)), kit.tar(kit.member("b", b"2"))]
    made = kit.image([compress(layer) for layer in plain], plain=plain)
    store.import_file(io.BytesIO(made.archive()))
    return store


def exported(store: ImageStore, form: str, *refs: str) -> bytes:
    out = io.BytesIO()
    export_archive(store, refs or (REF,), out, form)
    return out.getvalue()


def files_of(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("form", [OCI_ARCHIVE, DOCKER_ARCHIVE])
def test_round_trip(form: str, compress: Any, kit: Kit, store: ImageStore, tmp_path: Path) -> None:
    before = filled(kit, store, compress).resolve(REF)
    other = ImageStore(tmp_path / "other", architecture="amd64", mounted=frozenset)
    other.import_file(io.BytesIO(exported(store, form)))
    after = other.resolve(REF)
    assert (after.layers, after.config, after.config_digest) == (
        before.layers,
        before.config,
        before.config_digest,
    )
    if form == OCI_ARCHIVE:
        assert after.digest == before.digest


def test_a_layout_directory_can_be_imported(kit: Kit, store: ImageStore, tmp_path: Path) -> None:
    filled(kit, store)
    export_layout(store, [REF], tmp_path / "layout")
    other = ImageStore(tmp_path / "other", architecture="amd64", mounted=frozenset)
    (info,) = other.import_file(tmp_path / "layout")
    assert info.digest == store.resolve(REF).digest
    with pytest.raises(StoreUnwritable, match="is not empty"):
        export_layout(store, [REF], tmp_path / "layout")


def test_the_same_images_give_the_same_bytes(kit: Kit, store: ImageStore) -> None:
    filled(kit, store, gzip.compress)
    for form in (OCI_ARCHIVE, DOCKER_ARCHIVE):
        assert exported(store, form) == exported(store, form)


def test_docker_archives_have_plain_layers_by_diff_id(kit: Kit, store: ImageStore) -> None:
    filled(kit, store, gzip.compress)
    files = files_of(exported(store, DOCKER_ARCHIVE))
    (entry,) = json.loads(files["manifest.json"])
    assert entry["RepoTags"] == [REF]
    assert [f"sha256:{name[:-4]}" for name in entry["Layers"]] == list(store.resolve(REF).layers)
    assert all(kit.sha(files[name]) == f"sha256:{name[:-4]}" for name in entry["Layers"])
    assert kit.sha(files[entry["Config"]])[7:] + ".json" == entry["Config"]


def test_several_images_share_their_layers(kit: Kit, store: ImageStore) -> None:
    shared, own = kit.tar(kit.member("a", b"1" * 9000)), kit.tar(kit.member("b"))
    store.import_file(io.BytesIO(kit.oci(shared)), "x/one")
    store.import_file(io.BytesIO(kit.oci(shared, own)), "x/two")
    refs = ("docker.io/x/one:latest", "docker.io/x/two:latest")
    for form in (OCI_ARCHIVE, DOCKER_ARCHIVE):
        archive = exported(store, form, *refs)
        assert len(archive) < 2 * len(shared) + 20 * 1024
        store.remove(refs[0])
        store.remove(refs[1])
        assert tuple(info.ref for info in store.import_file(io.BytesIO(archive))) == refs


@pytest.mark.parametrize("form", [OCI_ARCHIVE, DOCKER_ARCHIVE])
@pytest.mark.parametrize("spoil", ["change", "cut", "lose"])
def test_damage_is_not_handed_on(spoil: str, form: str, kit: Kit, store: ImageStore) -> None:
    filled(kit, store)
    blob = max((store.path / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    data = blob.read_bytes()
    if spoil == "lose":
        blob.unlink()
    else:
        blob.write_bytes(data[:-512] if spoil == "cut" else b"x" + data[1:])
    with pytest.raises(StoreDamaged):
        exported(store, form)


def run(state: Path, *words: str, stdin: bytes = b"") -> Any:
    return CliRunner().invoke(image, [*words, "--state-dir", str(state)], input=io.BytesIO(stdin))


@pytest.mark.parametrize("form", FORMS)
def test_by_the_command_line(form: str, tmp_path: Path) -> None:
    archive, out = tmp_path / "a.tar", tmp_path / "out"
    make_image(archive, ref="localhost/a", files={"a": (b"x" * 9000, 0o644)})
    run(tmp_path / "one", "import", str(archive))
    done = run(tmp_path / "one", "export", "localhost/a", "-o", str(out), "--format", form)
    assert done.exit_code == 0, done.output
    assert run(tmp_path / "two", "import", str(out)).output.startswith("localhost/a:latest sha256:")


def test_to_a_pipe_and_from_it(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    make_image(archive, ref="localhost/a", files={"a": (b"x" * 9000, 0o644)})
    run(tmp_path / "one", "import", str(archive))
    piped = run(tmp_path / "one", "export", "localhost/a", "-o", "-").stdout_bytes
    assert run(tmp_path / "two", "import", "-", stdin=piped).exit_code == 0


def test_a_failed_export_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    out.write_text("before")
    failed = run(tmp_path / "one", "export", "localhost/a", "-o", str(out))
    assert failed.exit_code == 1
    assert failed.output.startswith("Error: image localhost/a:latest is not on this machine")
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.tar"]
    lost = run(tmp_path / "one", "export", "localhost/a", "-o", str(tmp_path / "no" / "out.tar"))
    assert lost.output.startswith("Error: ") and "cannot be written: No such file" in lost.output


def test_what_is_not_there(store: ImageStore) -> None:
    with pytest.raises(ImageNotFound):
        exported(store, OCI_ARCHIVE, "none")
