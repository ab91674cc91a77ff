import io
import os
import platform
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.errors import BadReference, UnsupportedImage
from machineplane.runtime.images.make import (
    PAUSE_REF,
    busybox_image,
    check_static,
    ensure_pause,
    make_image,
    pause_image,
)
from machineplane.runtime.images.pause import PAUSE_ELF
from machineplane.runtime.images.store import machine_architecture


@pytest.mark.root
def test_round_trip(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"from a file")
    out = tmp_path / "image.tar"
    make_image(
        out,
        ref="localhost/made:1",
        files={"/bin/run": (b"program", 0o755), "etc/deep/er/conf": (tmp_path / "source", 0o640)},
        symlinks={"bin/sh": "run"},
        directories={"tmp": 0o1777},
        entrypoint=["/bin/run"],
        cmd=["-v"],
        env=["A=b"],
        architecture="amd64",
    )
    store.import_file(out)
    image = store.resolve("localhost/made:1")
    assert (image.config.entrypoint, image.config.cmd, image.config.env) == (("/bin/run",), ("-v",), ("A=b",))
    (root,) = store.layer_paths(image)
    assert (root / "bin/run").read_bytes() == b"program"
    assert (root / "bin/run").stat().st_mode & 0o7777 == 0o755
    assert (root / "etc/deep/er/conf").read_bytes() == b"from a file"
    assert os.readlink(root / "bin/sh") == "run"
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert {path.lstat().st_mtime for path in root.rglob("*")} == {0}


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    files = {"a": (b"1", 0o644), "b": (b"2", 0o600)}
    make_image(tmp_path / "1", ref="x", files=files)
    make_image(tmp_path / "2", ref="x", files=dict(reversed(files.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_bad_name_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadReference):
        make_image(tmp_path / "out", ref="Bad Name", files={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("architecture", "machine"), [("amd64", 62), ("arm64", 183)])
def test_the_pause_program_is_a_small_static_executable(
    architecture: str, machine: int, tmp_path: Path
) -> None:
    program = PAUSE_ELF[architecture]
    assert len(program) <= 200
    assert struct.unpack_from("<H", program, 18) == (machine,)
    (tmp_path / "pause").write_bytes(program)
    check_static(tmp_path / "pause")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no pause program for this machine"
)
def test_the_pause_program_sleeps_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "pause"
    path.write_bytes(PAUSE_ELF[machine_architecture()])
    path.chmod(0o755)
    process = subprocess.Popen([path])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        assert state(process.pid) == "S"
    finally:
        process.terminate()
    assert process.wait(timeout=10) == -signal.SIGTERM


@pytest.mark.root
def test_the_pause_image_is_put_in_the_store_once(store: ImageStore) -> None:
    image = ensure_pause(store)
    assert (image.ref, image.config.entrypoint) == (PAUSE_REF, ("/pause",))
    index = (store.path / "index.json").stat().st_ino
    assert ensure_pause(store) == image
    assert (store.path / "index.json").stat().st_ino == index
    assert (store.layer_paths(image)[0] / "pause").read_bytes() == PAUSE_ELF["amd64"]


@pytest.mark.root
def test_another_image_of_that_name_is_replaced(store: ImageStore, tmp_path: Path) -> None:
    make_image(tmp_path / "x", ref=PAUSE_REF, files={"pause": (b"other", 0o755)}, architecture="amd64")
    store.import_file(tmp_path / "x")
    (layer,) = store.layer_paths(ensure_pause(store))
    assert (layer / "pause").read_bytes() == PAUSE_ELF["amd64"]


def test_no_pause_for_an_unknown_architecture() -> None:
    with pytest.raises(UnsupportedImage, match="s390x"):
        pause_image("s390x")


@pytest.mark.root
def test_the_busybox_image_runs(tmp_path: Path) -> None:
    busybox_image(tmp_path / "busybox.tar")
    store = ImageStore(tmp_path / "images")
    store.import_file(io.BytesIO((tmp_path / "busybox.tar").read_bytes()))
    image = store.resolve("localhost/busybox")
    (root,) = store.layer_paths(image)
    said = subprocess.run(
        ["/bin/sh", "-c", "id -un; ls /etc"],
        executable=str(root / "bin/busybox"),
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert os.readlink(root / "bin/sleep") == "busybox"
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert "root:x:0:0" in (root / "etc/passwd").read_text()


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01" + b"\xff" * 60])
def test_what_is_no_static_program_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(content)
    with pytest.raises(UnsupportedImage, match="busybox-static"):
        busybox_image(tmp_path / "out", binary=tmp_path / "busybox")


def test_a_dynamic_program_is_refused() -> None:
    with pytest.raises(UnsupportedImage, match="is not static"):
        check_static(Path("/bin/ls"))
