"""More of what archives may try: headers made by hand, spoiled compression, and documents that lie."""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hostile_support import assert_refused, pax_header, zeros

from machineplane.runtime.images import ImageError, ImageStore
from machineplane.runtime.images.errors import (
    DamagedArchive,
    DigestMismatch,
    NotAnImage,
    SizeMismatch,
    TruncatedArchive,
    UnsafeMember,
    UnsupportedImage,
)

Kit = Any
Build = Callable[[Kit], bytes]
pytestmark = pytest.mark.root
END = bytes(1024)


def header(name: str = "a", kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.USTAR_FORMAT)


def patched(block: bytes, place: slice, value: bytes) -> bytes:
    """A header with other bytes in it, and the checksum that makes them believed."""
    changed = bytearray(block)
    changed[place] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def record(key: str, value: bytes) -> bytes:
    body = f" {key}=".encode() + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def long_header(kind: bytes, text: bytes) -> bytes:
    """GNU's header for a name (L) or a link's target (K) of any length."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, len(text) + 1
    return info.tobuf(tarfile.USTAR_FORMAT) + text + bytes(512 - len(text) % 512)


# name → (rule, the layer's bytes)
CRAFTED: dict[str, tuple[str, bytes]] = {
    "pax path that is absolute": ("path.absolute", pax_header(record("path", b"/etc/evil")) + header() + END),
    "pax path that climbs": ("path.parent", pax_header(record("path", b"a/../../evil")) + header() + END),
    "pax path given twice": (
        "path.parent",
        pax_header(record("path", b"fine") + record("path", b"../evil")) + header() + END,
    ),
    "pax path in one of two headers": (
        "path.parent",
        pax_header(record("path", b"../evil")) + pax_header(record("comment", b"x")) + header() + END,
    ),
    "pax path over a GNU name": (
        "path.parent",
        long_header(b"L", b"fine") + pax_header(record("path", b"../evil")) + header() + END,
    ),
    "GNU name that is absolute": ("path.absolute", long_header(b"L", b"/etc/evil") + header() + END),
    "GNU name that climbs": ("path.parent", long_header(b"L", b"x/" * 60 + b"../" * 70) + header() + END),
    "GNU link that climbs": (
        "path.parent",
        long_header(b"K", b"../" * 50 + b"etc/shadow") + header("a", tarfile.LNKTYPE) + END,
    ),
    "pax link that is absolute": (
        "path.absolute",
        pax_header(record("linkpath", b"/etc/shadow")) + header("a", tarfile.LNKTYPE, linkname="b") + END,
    ),
    "pax link with a NUL": (
        "link.target",
        pax_header(record("linkpath", b"a\0b")) + header("a", tarfile.SYMTYPE, linkname="b") + END,
    ),
    "symbolic link of 5000 characters": (
        "link.target",
        pax_header(record("linkpath", b"x" * 5000)) + header("a", tarfile.SYMTYPE, linkname="b") + END,
    ),
    "ustar prefix that climbs": ("path.parent", patched(header(), slice(345, 348), b"../") + END),
    "no name at all": ("path.root", patched(header(), slice(0, 1), b"\0") + END),
    "name of dots alone": ("path.parent", header("./.././..") + END),
    "name in bytes that are no UTF-8, climbing": (
        "path.parent",
        patched(header("xxxxxxx"), slice(0, 7), b"\xff/../..") + END,
    ),
    "directory, then a link in its place": (
        "path.duplicate",
        header("d", tarfile.DIRTYPE)
        + header("d", tarfile.SYMTYPE, linkname="/etc")
        + header("d/passwd")
        + END,
    ),
    "link in the place of a directory that was made on the way": (
        "path.duplicate",
        header("d/x") + header("d", tarfile.SYMTYPE, linkname="/etc") + header("d/passwd") + END,
    ),
    "whiteout of a link, then a file through it": (
        "path.through-link",
        header("d", tarfile.SYMTYPE, linkname="/etc") + header(".wh.d") + header("d/passwd") + END,
    ),
    "hard link to a link, then a file over it": (
        "path.duplicate",
        header("l", tarfile.SYMTYPE, linkname="/etc/passwd")
        + header("h", tarfile.LNKTYPE, linkname="l")
        + header("h")
        + END,
    ),
    "hard link to the root": ("link.target", header("a", tarfile.LNKTYPE, linkname=".") + END),
    "fifo as a whiteout": ("whiteout.type", header(".wh.a", tarfile.FIFOTYPE) + END),
    "symbolic link as an opaque mark": (
        "whiteout.type",
        header(".wh..wh..opq", tarfile.SYMTYPE, linkname="/") + END,
    ),
    "attribute with a NUL in its name": (
        "xattr.overlay",
        pax_header(record("SCHILY.xattr.user.a\0b", b"x")) + header() + END,
    ),
    "continued volume": ("type.unknown", header("a", b"M") + END),
    "dump directory": ("type.unknown", header("a", b"D") + END),
    "sparse map of GNU 1.0": (
        "type.sparse",
        pax_header(record("GNU.sparse.major", b"1") + record("GNU.sparse.name", b"../evil")) + header() + END,
    ),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_members_are_refused_by_rule(case: str, kit: Kit, store: ImageStore, tmp_path: Path) -> None:
    rule, layer = CRAFTED[case]
    outside = tmp_path / "outside"
    outside.mkdir()
    before = kit.snapshot(outside)
    error = assert_refused(store, kit.oci(layer), UnsafeMember)
    assert isinstance(error, UnsafeMember)
    assert error.rule == rule
    assert kit.snapshot(outside) == before
    assert not Path("/etc/evil").exists()


def of_layer(sent: bytes, plain: bytes = END) -> Build:
    return lambda kit: bytes(kit.image([sent], plain=[plain]).archive())


def of_layers(count: int) -> Build:
    return lambda kit: bytes(kit.oci(*[END + bytes(512 * number) for number in range(count)]))


def zipped(kit: Kit) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../evil", "x" * 2000)
    return out.getvalue()


def zstd_frame_of_window(log: int) -> bytes:
    """A frame's head that asks for a window of 2^log bytes (RFC 8878, 3.1.1.1.2)."""
    return b"\x28\xb5\x2f\xfd" + b"\x00" + struct.pack("B", (log - 10) << 3) + b"\x00" * 600


def changed(change: Callable[[Any], None]) -> Build:
    """An image of one good layer, spoiled by ``change``."""

    def build(kit: Kit) -> bytes:
        image = kit.image([kit.tar(kit.member("a", b"1"))])
        change(image)
        return bytes(image.archive())

    return build


def of_documents(rewrite: Callable[[Kit, dict[str, Any]], object]) -> Build:
    """As above, but it is the manifest that is written anew, with a digest that is right."""

    def build(kit: Kit) -> bytes:
        files = kit.image([kit.tar(kit.member("a", b"1"))]).files()
        index = json.loads(files["index.json"])
        (entry,) = index["manifests"]
        manifest = json.loads(files["blobs/" + entry["digest"].replace(":", "/")])
        made = rewrite(kit, manifest)
        data = made if isinstance(made, bytes) else json.dumps(made).encode()
        entry |= {"digest": kit.sha(data), "size": len(data)}
        files["blobs/" + kit.sha(data).replace(":", "/")] = data
        files["index.json"] = json.dumps(index).encode()
        return bytes(kit.tar(*(kit.member(name, content) for name, content in files.items())))

    return build


def index_chain(kit: Kit) -> bytes:
    """Indexes in indexes, ten deep: one that named itself would need to hold its own digest."""
    kind = "application/vnd.oci.image.index.v1+json"
    files, entry = {}, kit.descriptor(b"{}", kind)
    for _ in range(10):
        data = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        files["blobs/" + kit.sha(data).replace(":", "/")] = data
        entry = kit.descriptor(data, kind)
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    return bytes(kit.tar(*(kit.member(name, content) for name, content in files.items())))


def index_text(text: str) -> Build:
    return lambda kit: bytes(kit.tar(kit.member("index.json", text.encode())))


SPOILED: dict[str, tuple[type[ImageError], Build]] = {
    "zip": (DamagedArchive, zipped),
    "gzip of nothing": (NotAnImage, lambda kit: gzip.compress(b"")),
    "zstd of nothing": (NotAnImage, lambda kit: zstandard.compress(b"")),
    "gzip head alone": (TruncatedArchive, lambda kit: b"\x1f\x8b\x08\0\0\0\0\0\0\x03"),
    "gzip within gzip": (DamagedArchive, lambda kit: gzip.compress(gzip.compress(bytes(kit.oci(END)) * 3))),
    "layer of gzip within gzip": (
        DamagedArchive,
        of_layer(gzip.compress(gzip.compress(random.Random(1).randbytes(9000)))),
    ),
    "layer of gzip and rubbish": (DamagedArchive, of_layer(gzip.compress(END) + b"rubbish" * 9)),
    "layer of gzip with a wrong checksum": (DamagedArchive, of_layer(gzip.compress(END)[:-8] + bytes(8))),
    "layer of two gzip members, of which one is not told": (
        DigestMismatch,
        of_layer(gzip.compress(END) + gzip.compress(b"x" * 512)),
    ),
    "layer of zstd cut off": (
        TruncatedArchive,
        lambda kit: of_layer(zstandard.compress(zeros(1 << 20) + bytes(1 << 20) + END)[:-20])(kit),
    ),
    "layer of zstd with a giant window": (DamagedArchive, of_layer(zstd_frame_of_window(41))),
    "layer of zstd and rubbish": (DamagedArchive, of_layer(zstandard.compress(END) + b"rubbish" * 9)),
    "member of negative size": (
        DamagedArchive,
        of_layer(patched(header(), slice(124, 136), b"\xff" * 12) + END),
    ),
    "member of a size beyond all measure": (
        TruncatedArchive,
        of_layer(patched(header(), slice(124, 136), b"\x80" + b"\x7f" * 11) + END),
    ),
    "member whose size is a word": (
        DamagedArchive,
        of_layer(patched(header(), slice(124, 132), b"manybyte") + END),
    ),
    "owner below nothing": (DamagedArchive, of_layer(patched(header(), slice(108, 116), b"\xff" * 8) + END)),
    "pax size other than the content": (
        TruncatedArchive,
        of_layer(pax_header(record("size", b"99999")) + header() + END),
    ),
    "pax length that overflows": (
        DamagedArchive,
        of_layer(pax_header(b"9" * 30 + b" path=x\n") + header() + END),
    ),
    "pax record without a name": (DamagedArchive, of_layer(pax_header(b"5 =x\n") + header() + END)),
    "data after an empty header": (DamagedArchive, of_layer(bytes(512) + header() + END)),
    "indexes ten deep": (UnsupportedImage, index_chain),
    "index with a number of 10,000 digits": (NotAnImage, index_text('{"manifests": [' + "9" * 10_000 + "]}")),
    "index of numbers": (NotAnImage, index_text('{"manifests": [1]}')),
    "index in bytes that are no text": (
        NotAnImage,
        lambda kit: kit.tar(kit.member("index.json", b"\xff\xfe{}")),
    ),
    "digest that is a path": (
        UnsupportedImage,
        index_text('{"manifests": [{"digest": "sha256:../../../etc/passwd", "size": 1}]}'),
    ),
    "digest of another algorithm": (
        UnsupportedImage,
        index_text('{"manifests": [{"digest": "sha512:%s", "size": 1}]}' % ("0" * 128)),
    ),
    "descriptor of negative size": (
        NotAnImage,
        index_text('{"manifests": [{"digest": "sha256:%s", "size": -1}]}' % ("0" * 64)),
    ),
    "manifest that is not there": (
        NotAnImage,
        index_text('{"manifests": [{"digest": "sha256:%s", "size": 1}]}' % ("0" * 64)),
    ),
    "manifest larger than it says": (SizeMismatch, lambda kit: _resized(kit, -1)),
    "manifest without layers": (UnsupportedImage, of_documents(lambda kit, m: {**m, "layers": []})),
    "layer of a foreign type": (
        UnsupportedImage,
        of_documents(lambda kit, m: {**m, "layers": [{**m["layers"][0], "mediaType": "text/html"}]}),
    ),
    "layer that is to be fetched from elsewhere": (
        UnsupportedImage,
        of_documents(
            lambda kit, m: {
                **m,
                "layers": [
                    {
                        **m["layers"][0],
                        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                        "urls": ["http://192.0.2.1/x"],
                    }
                ],
            }
        ),
    ),
    "configuration of a foreign type": (
        UnsupportedImage,
        of_documents(lambda kit, m: {**m, "config": {**m["config"], "mediaType": "application/json"}}),
    ),
    "layer as its own configuration": (
        NotAnImage,
        of_documents(
            lambda kit, m: {**m, "config": {**m["layers"][0], "mediaType": m["config"]["mediaType"]}}
        ),
    ),
    "manifest that is a list": (NotAnImage, of_documents(lambda kit, m: [m])),
    "manifest whose layers are a text": (NotAnImage, of_documents(lambda kit, m: {**m, "layers": "all"})),
    "more layers than overlayfs stacks": (UnsupportedImage, lambda kit: _repeated(kit, 128)),
    "configuration with fewer layers": (
        NotAnImage,
        changed(lambda i: i.config["rootfs"].update(diff_ids=[])),
    ),
    "configuration with a path for a layer": (
        UnsupportedImage,
        changed(lambda i: i.config["rootfs"].update(diff_ids=["../../etc"])),
    ),
    "configuration whose command is a number": (
        NotAnImage,
        changed(lambda i: i.config.update(config={"Cmd": [1]})),
    ),
    "configuration for another system": (UnsupportedImage, changed(lambda i: i.config.update(os="windows"))),
}


def _resized(kit: Kit, by: int) -> bytes:
    files = kit.image([kit.tar(kit.member("a", b"1"))]).files()
    index = json.loads(files["index.json"])
    index["manifests"][0]["size"] += by
    files["index.json"] = json.dumps(index).encode()
    return bytes(kit.tar(*(kit.member(name, content) for name, content in files.items())))


def _repeated(kit: Kit, count: int) -> bytes:
    """One layer many times: an archive of few members, an image of many layers."""
    layer = kit.tar(kit.member("a", b"1"))
    return bytes(kit.image([layer] * count).archive())


@pytest.mark.parametrize("case", SPOILED)
def test_more_spoiled_archives_are_refused_by_class(case: str, kit: Kit, store: ImageStore) -> None:
    kind, make = SPOILED[case]
    assert_refused(store, make(kit), kind)


def test_what_only_looks_strange_is_taken(kit: Kit, store: ImageStore) -> None:
    """Set-id bits, fifos, bytes that are no UTF-8, global headers, several gzip members: honest images have them."""
    info = tarfile.TarInfo("global")
    data = record("path", b"../ignored")
    info.type, info.size = tarfile.XGLTYPE, len(data)
    plain = (
        info.tobuf(tarfile.USTAR_FORMAT)
        + data.ljust(512, b"\0")
        + header("su", mode=0o4755)
        + header("pipe", tarfile.FIFOTYPE)
        + patched(header("xxxx"), slice(0, 4), b"\xff\xfe..")
        + END
    )
    sent = gzip.compress(plain[:700]) + gzip.compress(plain[700:])
    store.import_file(io.BytesIO(kit.image([sent], plain=[plain]).archive()))
    (layer,) = store.layer_paths(store.resolve("example.test/app:1"))
    assert sorted(path.name for path in layer.iterdir()) == ["pipe", "su", "\udcff\udcfe.."]
    assert (layer / "su").stat().st_mode & 0o7777 == 0o4755
