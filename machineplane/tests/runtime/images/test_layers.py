"""What an honest layer becomes on disk."""

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from machineplane.runtime.images import ImageStore

Kit = Any
DIR, SYM, LNK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
pytestmark = pytest.mark.root


@pytest.fixture
def unpack(kit: Kit, store: ImageStore) -> Any:
    """Imports an image of one layer of the given members; gives the layer's directory."""

    def run(*members: Any, format: int = tarfile.PAX_FORMAT) -> Path:
        store.import_file(io.BytesIO(kit.oci(kit.tar(*members, format=format))), "test")
        (path,) = store.layer_paths(store.resolve("test"))
        return path

    return run


def is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(path) and (
        os.getxattr(path, "trusted.overlay.opaque") == b"y"
    )


def test_modes_owners_times_and_links_are_kept(kit: Kit, unpack: Any) -> None:
    root = unpack(
        kit.member("./", type=DIR, mode=0o711, mtime=11),
        kit.member("bin", type=DIR, mode=0o751, uid=3, gid=4, mtime=22),
        kit.member("bin/su", b"program", mode=0o4755, uid=0, gid=5, mtime=33.5),
        kit.member("bin/also", type=LNK, linkname="bin/su"),
        kit.member("bin/sh", type=SYM, linkname="/outside/../sh", uid=6, mtime=44),
        kit.member("pipe", type=tarfile.FIFOTYPE, mode=0o620, uid=7, mtime=55),
        kit.member("tmp", type=DIR, mode=0o1777),
    )
    su = (root / "bin/su").stat()
    assert (su.st_mode, su.st_uid, su.st_gid, su.st_mtime) == (stat.S_IFREG | 0o4755, 0, 5, 33.5)
    assert (root / "bin/also").stat().st_ino == su.st_ino
    directory = (root / "bin").stat()
    assert (directory.st_mode & 0o7777, directory.st_uid, directory.st_gid, directory.st_mtime) == (
        0o751,
        3,
        4,
        22,
    )
    assert os.readlink(root / "bin/sh") == "/outside/../sh"
    assert ((root / "bin/sh").lstat().st_uid, (root / "bin/sh").lstat().st_mtime) == (6, 44)
    pipe = (root / "pipe").lstat()
    assert (pipe.st_mode, pipe.st_uid, pipe.st_mtime) == (stat.S_IFIFO | 0o620, 7, 55)
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root.stat().st_mode & 0o7777, root.stat().st_mtime) == (0o711, 11)


def test_capabilities_are_kept_and_labels_of_other_machines_are_not(kit: Kit, unpack: Any) -> None:
    capability = "\x01\0\0\x02\0\x04" + "\0" * 14  # version 2, effective, cap_net_bind_service
    headers = {
        "SCHILY.xattr.security.capability": capability,
        "SCHILY.xattr.security.selinux": "label",
        "SCHILY.xattr.user.note": "kept",
    }
    root = unpack(kit.member("ping", b"x", mode=0o755, uid=9, pax_headers=headers))
    assert os.getxattr(root / "ping", "security.capability") == capability.encode("latin-1")
    assert os.getxattr(root / "ping", "user.note") == b"kept"
    assert set(os.listxattr(root / "ping")) == {"security.capability", "user.note"}


def test_whiteouts_take_the_form_of_overlayfs(kit: Kit, unpack: Any) -> None:
    root = unpack(
        kit.member("d", type=DIR),
        kit.member("d/.wh.gone"),
        kit.member(".wh.dir"),
        kit.member("opaque", type=DIR),
        kit.member("opaque/.wh..wh..opq"),
        kit.member("opaque/kept", b"x"),
        kit.member(".wh..wh.plnk"),
    )
    assert is_whiteout(root / "d/gone")
    assert is_whiteout(root / "dir")
    assert is_opaque(root / "opaque")
    assert not is_opaque(root / "d")
    assert sorted(path.name for path in root.iterdir()) == ["d", "dir", "opaque"]
    assert [path.name for path in (root / "opaque").iterdir()] == ["kept"]


@pytest.mark.parametrize("whiteout_first", [True, False])
def test_a_whiteout_hides_lower_layers_only(kit: Kit, unpack: Any, whiteout_first: bool) -> None:
    whiteouts = [kit.member(".wh.file"), kit.member(".wh.dir"), kit.member(".wh.deep")]
    own = [kit.member("file", b"new"), kit.member("dir", type=DIR), kit.member("deep/er", b"x")]
    root = unpack(*(whiteouts + own if whiteout_first else own + whiteouts))
    assert (root / "file").read_bytes() == b"new"
    assert is_opaque(root / "dir")
    assert is_opaque(root / "deep")
    assert (root / "deep/er").read_bytes() == b"x"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_survive(kit: Kit, unpack: Any, format: int) -> None:
    name = "/".join(["long" * 20] * 10) + "/ünï\udcff"
    target = "t" * 300
    root = unpack(kit.member(name, b"x"), kit.member("l", type=SYM, linkname=target), format=format)
    assert (root / name).read_bytes() == b"x"
    assert os.readlink(root / "l") == target


def test_numbers_too_large_for_octal_survive(kit: Kit, unpack: Any) -> None:
    root = unpack(kit.member("a", uid=3_000_000_000, gid=70_000), format=tarfile.GNU_FORMAT)
    found = (root / "a").stat()
    assert (found.st_uid, found.st_gid) == (3_000_000_000, 70_000)


def test_directories_may_come_twice_and_last_attributes_hold(kit: Kit, unpack: Any) -> None:
    root = unpack(
        kit.member("d/file", b"x"),
        kit.member("d", type=DIR, mode=0o700),
        kit.member("d/", type=DIR, mode=0o750),
    )
    assert (root / "d").stat().st_mode & 0o7777 == 0o750
    assert (root / "d/file").read_bytes() == b"x"


def test_the_kernel_reads_the_layers_as_meant(kit: Kit, store: ImageStore, tmp_path: Path) -> None:
    lower = kit.tar(*(kit.member(name, b"low") for name in ("gone", "kept", "d/old", "opaque/old")))
    upper = kit.tar(kit.member(".wh.gone"), kit.member("d/new", b"up"), kit.member("opaque/.wh..wh..opq"))
    store.import_file(io.BytesIO(kit.oci(lower, upper)), "test")
    below, above = store.layer_paths(store.resolve("test"))
    script = 'mount -t overlay overlay -o "lowerdir=$1:$2" "$3" && cd "$3" && find . | sort'
    words = ["unshare", "--mount", "sh", "-c", script, "sh", str(above), str(below), str(tmp_path)]
    seen = subprocess.run(words, capture_output=True, text=True)
    assert seen.stdout.split() == [".", "./d", "./d/new", "./d/old", "./kept", "./opaque"], seen.stderr
