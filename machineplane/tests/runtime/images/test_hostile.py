"""Archives that want out, or want too much: each is refused by name, and nothing is left or changed anywhere."""

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hostile_support import assert_refused, pax_header, zeros
from hypothesis import given, settings
from hypothesis import strategies as st

from machineplane.runtime.images import ImageError, ImageStore, StoreLimits
from machineplane.runtime.images.errors import (
    DamagedArchive,
    DigestMismatch,
    NotAnImage,
    QuotaExceeded,
    SizeMismatch,
    TruncatedArchive,
    UnsafeMember,
    UnsupportedImage,
)
from machineplane.runtime.images.unpack import unpack_layer

Kit = Any
SYM, LNK, DIR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE

# name → (rule, members as (name, content, attributes))
UNSAFE: dict[str, tuple[str, list[tuple[str, bytes, dict[str, object]]]]] = {
    "absolute path": ("path.absolute", [("/etc/evil", b"x", {})]),
    "parent path": ("path.parent", [("../evil", b"x", {})]),
    "parent in the middle": ("path.parent", [("a/../../evil", b"x", {})]),
    "parent inside": ("path.parent", [("a/../b", b"x", {})]),
    "parent directory": ("path.parent", [("a/..", b"", {"type": DIR})]),
    "file through an absolute link": (
        "path.through-link",
        [("out", b"", {"type": SYM, "linkname": "OUTSIDE"}), ("out/evil", b"x", {})],
    ),
    "file through a relative link": (
        "path.through-link",
        [("out", b"", {"type": SYM, "linkname": "../../.."}), ("out/evil", b"x", {})],
    ),
    "file through two links": (
        "path.through-link",
        [
            ("a", b"", {"type": SYM, "linkname": "."}),
            ("b", b"", {"type": SYM, "linkname": "a/.."}),
            ("b/evil", b"x", {}),
        ],
    ),
    "directory over a link": (
        "path.duplicate",
        [("out", b"", {"type": SYM, "linkname": "OUTSIDE"}), ("out", b"", {"type": DIR})],
    ),
    "file over a link": (
        "path.duplicate",
        [("out", b"", {"type": SYM, "linkname": "OUTSIDE/victim"}), ("out", b"x", {})],
    ),
    "file over a file": ("path.duplicate", [("a", b"1", {}), ("a", b"2", {})]),
    "file over itself, spelled otherwise": ("path.duplicate", [("a", b"1", {}), (".//a", b"2", {})]),
    "file over a directory": ("path.duplicate", [("a/b", b"", {}), ("a", b"2", {})]),
    "directory over a file": ("path.duplicate", [("a", b"1", {}), ("a", b"", {"type": DIR})]),
    "file through a file": ("path.through-file", [("a", b"1", {}), ("a/b", b"2", {})]),
    "hard link outside": ("path.absolute", [("a", b"", {"type": LNK, "linkname": "OUTSIDE/victim"})]),
    "hard link by parents": ("path.parent", [("a", b"", {"type": LNK, "linkname": "../../../victim"})]),
    "hard link through a link": (
        "link.target",
        [
            ("out", b"", {"type": SYM, "linkname": "OUTSIDE"}),
            ("a", b"", {"type": LNK, "linkname": "out/victim"}),
        ],
    ),
    "hard link to nothing": ("link.target", [("a", b"", {"type": LNK, "linkname": "none"})]),
    "hard link to itself": ("link.target", [("a", b"", {"type": LNK, "linkname": "./a"})]),
    "hard link to a directory": (
        "link.target",
        [("d", b"", {"type": DIR}), ("a", b"", {"type": LNK, "linkname": "d"})],
    ),
    "hard link to a whiteout": (
        "link.target",
        [(".wh.w", b"", {}), ("a", b"", {"type": LNK, "linkname": "w"})],
    ),
    "symbolic link to nothing": ("link.target", [("a", b"", {"type": SYM, "linkname": ""})]),
    "character device": (
        "type.device",
        [("dev/mem", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 1})],
    ),
    "block device": ("type.device", [("sda", b"", {"type": tarfile.BLKTYPE, "devmajor": 8})]),
    "smuggled whiteout": ("type.device", [("etc", b"", {"type": tarfile.CHRTYPE})]),
    "unknown type": ("type.unknown", [("a", b"", {"type": b"Z"})]),
    "sparse, old form": ("type.sparse", [("a", b"", {"type": b"S"})]),
    "sparse, pax form": ("type.sparse", [("a", b"x", {"pax_headers": {"GNU.sparse.realsize": "1"}})]),
    "root as a link": ("path.root", [("./", b"", {"type": SYM, "linkname": "/"})]),
    "root as a file": ("path.root", [(".", b"x", {})]),
    "whiteout of the parent": ("whiteout.name", [(".wh...", b"", {})]),
    "whiteout of itself": ("whiteout.name", [("a/.wh..", b"", {})]),
    "whiteout of nothing": ("whiteout.name", [(".wh.", b"", {})]),
    "whiteout through a link": (
        "path.through-link",
        [("out", b"", {"type": SYM, "linkname": "OUTSIDE"}), ("out/.wh.victim", b"", {})],
    ),
    "opaque mark through a link": (
        "path.through-link",
        [("out", b"", {"type": SYM, "linkname": "OUTSIDE"}), ("out/.wh..wh..opq", b"", {})],
    ),
    "whiteout as a directory": ("whiteout.type", [(".wh.a", b"", {"type": DIR})]),
    "file below a whiteout": ("whiteout.path", [(".wh.a/b", b"x", {})]),
    "overlay redirect": (
        "xattr.overlay",
        [("d", b"", {"type": DIR, "pax_headers": {"SCHILY.xattr.trusted.overlay.redirect": "/etc"}})],
    ),
    "overlay attribute for users": (
        "xattr.overlay",
        [("d", b"x", {"pax_headers": {"SCHILY.xattr.user.overlay.metacopy": ""}})],
    ),
    "too deep": ("path.long", [("/".join(["d"] * 200), b"", {})]),
    "name too long": ("path.long", [("n" * 300, b"", {})]),
    "NUL in a path": ("path.nul", [("a", b"x", {"pax_headers": {"path": "a\0b"}})]),
}


def layer_of(kit: Kit, members: list[tuple[str, bytes, dict[str, object]]], outside: Path) -> bytes:
    made = []
    for name, data, fields in members:
        if isinstance(target := fields.get("linkname"), str):
            fields = {**fields, "linkname": target.replace("OUTSIDE", str(outside))}
        made.append(kit.member(name, data, **fields))
    return bytes(kit.tar(*made))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir()
    (path / "victim").write_text("untouched")
    return path


@pytest.mark.root
@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_members_are_refused_by_rule(case: str, kit: Kit, store: ImageStore, outside: Path) -> None:
    rule, members = UNSAFE[case]
    before = kit.snapshot(outside)
    error = assert_refused(store, kit.oci(layer_of(kit, members, outside)), UnsafeMember)
    assert isinstance(error, UnsafeMember)
    assert error.rule == rule
    assert kit.snapshot(outside) == before


def bomb(kit: Kit) -> bytes:
    plain = zeros(40 << 20) + bytes(40 << 20) + bytes(1024)
    return bytes(kit.image([gzip.compress(plain)], plain=[plain]).archive())


def wrong_diff_id(kit: Kit) -> bytes:
    return bytes(kit.image([kit.tar(kit.member("a", b"1"))], plain=[b"other"]).archive())


def wrong_blob(kit: Kit) -> bytes:
    image = kit.image([kit.tar(kit.member("a", b"1"))])
    image.layers[0] = kit.tar(kit.member("a", b"2"))
    return bytes(image.archive())


def wrong_size(kit: Kit) -> bytes:
    image = kit.image([kit.tar(kit.member("a", b"1"))])
    image.descriptors[0]["size"] = 7
    return bytes(image.archive())


def of_layer(layer: bytes, plain: bytes | None = None) -> Callable[[Kit], bytes]:
    return lambda kit: bytes(kit.image([layer], plain=[plain or layer]).archive())


def bad_checksum(kit: Kit) -> bytes:
    layer = bytearray(kit.tar(kit.member("a", b"1")))
    layer[0] ^= 1
    return bytes(kit.oci(bytes(layer)))


def negative_header() -> bytes:
    block = bytearray(pax_header(b"")[:512])
    block[124:136] = (-512).to_bytes(12, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


SPOILED: dict[str, tuple[type[ImageError], Callable[[Kit], bytes]]] = {
    "empty file": (NotAnImage, lambda kit: b""),
    "no tar": (DamagedArchive, lambda kit: b"hello" * 500),
    "short text": (TruncatedArchive, lambda kit: b"hello"),
    "no image": (NotAnImage, lambda kit: kit.tar(kit.member("readme", b"x"))),
    "index that is no JSON": (NotAnImage, lambda kit: kit.tar(kit.member("index.json", b"{"))),
    "index nested without end": (NotAnImage, lambda kit: kit.tar(kit.member("index.json", b"[" * 30000))),
    "index that is a list": (NotAnImage, lambda kit: kit.tar(kit.member("index.json", b"[]"))),
    "docker manifest of numbers": (NotAnImage, lambda kit: kit.tar(kit.member("manifest.json", b"[1]"))),
    "docker layer missing": (
        NotAnImage,
        lambda kit: kit.tar(kit.member("manifest.json", b'[{"Config":"c","Layers":["../../etc/passwd"]}]')),
    ),
    "bzip2": (UnsupportedImage, lambda kit: b"BZh9" + bytes(100)),
    "xz": (UnsupportedImage, lambda kit: b"\xfd7zXZ\0" + bytes(100)),
    "archive cut off": (TruncatedArchive, lambda kit: kit.oci(kit.tar(kit.member("a", b"1")))[:1300]),
    "archive of gzip cut off": (
        TruncatedArchive,
        lambda kit: gzip.compress(kit.oci(kit.tar(kit.member("a", os.urandom(9000)))))[:-4000],
    ),
    "archive of broken gzip": (DamagedArchive, lambda kit: b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 600),
    "archive of broken zstd": (DamagedArchive, lambda kit: b"\x28\xb5\x2f\xfd" + b"\xff" * 600),
    "archive member twice": (UnsafeMember, lambda kit: kit.tar(kit.member("a"), kit.member("./a"))),
    "archive member above": (UnsafeMember, lambda kit: kit.tar(kit.member("../a"))),
    "archive member absolute": (UnsafeMember, lambda kit: kit.tar(kit.member("/tmp/a"))),
    "archive link above": (
        UnsafeMember,
        lambda kit: kit.tar(kit.member("index.json", type=SYM, linkname="../../etc/passwd")),
    ),
    "archive link in a circle": (
        NotAnImage,
        lambda kit: kit.tar(kit.member("index.json", type=SYM, linkname="index.json")),
    ),
    "archive device": (UnsafeMember, lambda kit: kit.tar(kit.member("index.json", type=tarfile.CHRTYPE))),
    "archive of too many members": (
        QuotaExceeded,
        lambda kit: kit.tar(*(kit.member(str(number)) for number in range(60))),
    ),
    "archive of 10 GB of zeros": (QuotaExceeded, lambda kit: gzip_zeros(10_000)),
    "document too large": (QuotaExceeded, lambda kit: kit.tar(kit.member("index.json", b" " * (5 << 20)))),
    "layer bomb": (QuotaExceeded, bomb),
    "layer of too many members": (
        QuotaExceeded,
        lambda kit: kit.oci(kit.tar(*(kit.member(str(number)) for number in range(600)))),
    ),
    "layer cut off in a member": (TruncatedArchive, lambda kit: kit.oci(zeros(5000) + bytes(4000))),
    "layer member of terabytes": (TruncatedArchive, lambda kit: kit.oci(zeros(1 << 45))),
    "layer cut off in a header": (TruncatedArchive, lambda kit: kit.oci(zeros(0)[:300])),
    "layer that ends after an extended header": (
        TruncatedArchive,
        lambda kit: kit.oci(pax_header(b"13 path=abcd\n")),
    ),
    "layer of gzip cut off": (
        TruncatedArchive,
        lambda kit: kit.oci(gzip.compress(kit.tar(kit.member("a", os.urandom(9000))))[:-4000]),
    ),
    "layer with a bad checksum": (DamagedArchive, bad_checksum),
    "extended header too long": (
        QuotaExceeded,
        lambda kit: kit.oci(kit.tar(kit.member("a", pax_headers={"comment": "x" * 100_000}))),
    ),
    "extended header of negative size": (DamagedArchive, lambda kit: kit.oci(negative_header())),
    "extended headers without end": (
        TruncatedArchive,
        lambda kit: kit.oci(pax_header(b"") * 3000 + bytes(1024)),
    ),
    "extended header without length": (
        DamagedArchive,
        lambda kit: kit.oci(pax_header(b"path=x\n") + zeros(0)),
    ),
    "extended header with a wrong length": (
        DamagedArchive,
        lambda kit: kit.oci(pax_header(b"99 path=x\n") + zeros(0)),
    ),
    "size that is no number": (
        DamagedArchive,
        lambda kit: kit.oci(kit.tar(kit.member("a", pax_headers={"size": "-5"}))),
    ),
    "owner that means nobody": (
        DamagedArchive,
        lambda kit: kit.oci(kit.tar(kit.member("a", pax_headers={"uid": "4294967295"}))),
    ),
    "wrong diff id": (DigestMismatch, wrong_diff_id),
    "wrong layer digest": (DigestMismatch, wrong_blob),
    "wrong layer size": (SizeMismatch, wrong_size),
    "data after the end": (DigestMismatch, of_layer(bytes(1024) + b"tail", bytes(1024))),
}


def gzip_zeros(megabytes: int) -> bytes:
    """A gzip stream of a member of zeros, made of one compressed member repeated."""
    one = gzip.compress(bytes(1 << 20), compresslevel=9)
    return gzip.compress(zeros(megabytes << 20)) + one * megabytes


@pytest.mark.root
@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_archives_are_refused_by_class(case: str, kit: Kit, store: ImageStore) -> None:
    kind, make = SPOILED[case]
    assert_refused(store, make(kit), kind)


@pytest.mark.root
def test_a_zstd_bomb_stops_at_the_quota(kit: Kit, store: ImageStore) -> None:
    plain = zeros(40 << 20) + bytes(40 << 20) + bytes(1024)
    image = kit.image([zstandard.ZstdCompressor().compress(plain)], plain=[plain])
    assert_refused(store, image.archive(), QuotaExceeded)


@pytest.mark.root
def test_the_quota_counts_all_layers_of_an_image(kit: Kit, store: ImageStore) -> None:
    layers = [kit.tar(kit.member(name, bytes(5 << 20))) for name in "ab"]
    assert_refused(store, kit.oci(*layers), QuotaExceeded)
    assert store.import_file(io.BytesIO(kit.oci(layers[0])))


def test_a_layout_directory_with_links_is_not_followed(kit: Kit, store: ImageStore, tmp_path: Path) -> None:
    layout = kit.write_layout(tmp_path / "layout", kit.image([kit.tar(kit.member("a"))]).files())
    (layout / "index.json").rename(tmp_path / "elsewhere.json")
    (layout / "index.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(NotAnImage, match=r"neither index\.json nor"):
        store.import_file(layout)


def test_a_fifo_in_a_layout_directory_does_not_hang(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    os.mkfifo(tmp_path / "layout" / "index.json")
    with pytest.raises(NotAnImage):
        store.import_file(tmp_path / "layout")


NAMES = st.sampled_from(
    ["a", "b", "a/b", "a/b/c", "out", "out/a", "../x", "/x", ".", "a/..", "out/victim", "./a/"]
)
LINKS = st.sampled_from(["a", "b", "..", "../..", "out", "OUTSIDE", "OUTSIDE/victim", "a/b", ".", ""])
KINDS = st.sampled_from([tarfile.REGTYPE, DIR, SYM, LNK, tarfile.FIFOTYPE, tarfile.CHRTYPE])
MARKS = st.sampled_from(["", ".wh.", ".wh..wh..opq"])


@st.composite
def members(draw: st.DrawFn) -> tuple[str, bytes, dict[str, object]]:
    name, mark = draw(NAMES), draw(MARKS)
    directory, _, last = name.rpartition("/")
    marked = f"{directory}/{mark}{last}" if directory else f"{mark}{last}"
    kind = draw(KINDS)
    return marked, b"evil" if kind == tarfile.REGTYPE else b"", {"type": kind, "linkname": draw(LINKS)}


@pytest.mark.root
@given(made=st.lists(members(), max_size=8))
@settings(max_examples=150)
def test_whatever_members_come_nothing_outside_changes(
    made: list[tuple[str, bytes, dict[str, object]]], kit: Kit, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("property")
    outside, layers = root / "outside", root / "layers"
    for directory in (outside, layers):
        directory.mkdir()
    (outside / "victim").write_text("untouched")
    layer = layer_of(kit, made, outside)
    (root / "blob").write_bytes(layer)
    before = kit.snapshot(outside)
    try:
        unpack_layer(
            root / "blob",
            layers / "0",
            diff_id=kit.sha(layer),
            subject="layer",
            limits=StoreLimits(),
            quota=1 << 20,
        )
    except ImageError as error:
        assert str(error).isprintable()
    assert kit.snapshot(outside) == before
    assert sorted(path.name for path in root.iterdir()) == ["blob", "layers", "outside"]
    assert [path.name for path in layers.iterdir()] == ["0"]
    for path in (layers / "0").rglob("*"):
        found = path.lstat()
        assert not stat.S_ISBLK(found.st_mode)
        assert not stat.S_ISCHR(found.st_mode) or found.st_rdev == 0
