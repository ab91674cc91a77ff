"""Makes small images from given files: reproducibly, in this process, with no tool of the machine.

``python -m machineplane.runtime.images.make busybox OUT.tar`` writes the image of the demo and the tests.
"""

import io
import posixpath
import struct
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import click
from attrs import frozen

from machineplane.linux.files import replace_file
from machineplane.runtime.images.documents import (
    MODULE,
    MODULE_CONFIG,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    WASM_ARCHITECTURE,
    encode,
    encode_manifest,
    sha256,
)
from machineplane.runtime.images.errors import ImageError, ImageNotFound, UnsupportedImage
from machineplane.runtime.images.formats import blob_name
from machineplane.runtime.images.model import Image
from machineplane.runtime.images.names import normalise
from machineplane.runtime.images.pause import PAUSE_ELF
from machineplane.runtime.images.store import ImageStore, machine_architecture

PAUSE_REF = "localhost/magik/pause:latest"
BUSYBOX_REF = "localhost/busybox:latest"

_CREATED = "1970-01-01T00:00:00Z"  # the same files give the same image, whenever and wherever it is made
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP = b"root:x:0:\nnobody:x:65534:\n"
_PT_INTERP = 3


def make_image(
    out: Path,
    *,
    ref: str,
    files: Mapping[str, tuple[bytes | Path, int]],
    symlinks: Mapping[str, str] | None = None,
    directories: Mapping[str, int] | None = None,
    entrypoint: Sequence[str] = (),
    cmd: Sequence[str] = (),
    env: Sequence[str] = (),
    user: str = "",
    architecture: str | None = None,
) -> None:
    """Write an OCI archive of one layer: ``files`` maps paths to (content or source, mode), owned by root.

    Parents are made with mode 0755; ``directories`` names those that shall have another. The same
    arguments always give the same bytes. ``out`` is replaced atomically. Raises ``BadReference``.
    """
    layer = _layer(files, symlinks or {}, directories or {})
    run = {"Entrypoint": list(entrypoint), "Cmd": list(cmd), "Env": list(env), "User": user}
    archive = _archive(layer, normalise(ref), run, architecture or machine_architecture())
    replace_file(out, archive, 0o644)


def pause_image(architecture: str | None = None) -> bytes:
    """An OCI archive of the pause image. Raises ``UnsupportedImage`` where there is no program for it."""
    architecture = architecture or machine_architecture()
    program = PAUSE_ELF.get(architecture)
    if program is None:
        raise UnsupportedImage("pause image", f"does not exist for {architecture}", "use amd64 or arm64")
    layer = _layer({"pause": (program, 0o555)}, {}, {})
    return _archive(layer, PAUSE_REF, {"Entrypoint": ["/pause"]}, architecture)


def ensure_pause(store: ImageStore) -> Image:
    """The pause image, put into the store unless it is there. Its entrypoint is ``/pause``."""
    program = sha256(_layer({"pause": (PAUSE_ELF.get(store.architecture, b""), 0o555)}, {}, {}))
    try:
        image = store.resolve(PAUSE_REF)
        if image.layers == (program,):
            return image
    except ImageNotFound:
        pass
    store.import_file(io.BytesIO(pause_image(store.architecture)))
    return store.resolve(PAUSE_REF)


def module_image(module: bytes, ref: str) -> bytes:
    """An OCI archive of a WebAssembly module (for pods with the engine ``wasm``). Raises ``BadReference``.

    In the layout of CNCF's TAG Runtime, so that any registry and other runtimes take it.
    """
    platform = {"architecture": WASM_ARCHITECTURE, "os": "wasip1"}
    config = encode({"created": _CREATED, **platform, "layerDigests": [sha256(module)]})
    blobs = (_descriptor(MODULE_CONFIG, config), config), (_descriptor(MODULE, module), module)
    return _layout(normalise(ref), platform, *blobs)


def busybox_image(out: Path, *, binary: Path = Path("/bin/busybox")) -> None:
    """Write Debian's static busybox as an image. Raises ``UnsupportedImage`` if missing or not static."""
    check_static(binary)
    listed = subprocess.run([binary, "--list"], check=True, capture_output=True, text=True, timeout=10)
    applets = sorted(set(listed.stdout.split()) - {"busybox"})
    make_image(
        out,
        ref=BUSYBOX_REF,
        files={
            "bin/busybox": (binary, 0o755),
            "etc/passwd": (_PASSWD, 0o644),
            "etc/group": (_GROUP, 0o644),
        },
        symlinks={f"bin/{applet}": "busybox" for applet in applets},
        directories={"tmp": 0o1777, "root": 0o700},
        cmd=["sh"],
        env=["PATH=/bin"],
    )


def check_static(binary: Path) -> None:
    """Raises ``UnsupportedImage`` unless ``binary`` is an ELF executable without PT_INTERP."""
    remedy = "install the package busybox-static"
    try:
        with binary.open("rb") as file:
            kinds = _segment_kinds(file)
    except (OSError, ValueError, struct.error) as error:
        raise UnsupportedImage(str(binary), f"is no executable that can be read ({error})", remedy) from error
    if kinds is None:
        raise UnsupportedImage(str(binary), "is no 64-bit ELF executable", remedy)
    if _PT_INTERP in kinds:
        raise UnsupportedImage(str(binary), "is not static", remedy)


def _segment_kinds(file: BinaryIO) -> set[int] | None:
    """``p_type`` of every program header of a little-endian ELF64 file; None for anything else."""
    header = file.read(64)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        return None
    (offset,) = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    kinds = set()
    for number in range(count):
        file.seek(offset + number * size)
        kinds.add(struct.unpack("<I", file.read(4))[0])
    return kinds


@frozen
class _Entry:
    """One member of a tar to be written."""

    kind: bytes
    mode: int
    data: bytes = b""
    link: str = ""


def _layer(
    files: Mapping[str, tuple[bytes | Path, int]], symlinks: Mapping[str, str], directories: Mapping[str, int]
) -> bytes:
    entries = {_inside(path): _Entry(tarfile.DIRTYPE, mode) for path, mode in directories.items()}
    for path, (content, mode) in files.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        entries[_inside(path)] = _Entry(tarfile.REGTYPE, mode, data)
    for path, target in symlinks.items():
        entries[_inside(path)] = _Entry(tarfile.SYMTYPE, 0o777, link=target)
    for path in list(entries):
        while path := posixpath.dirname(path):
            entries.setdefault(path, _Entry(tarfile.DIRTYPE, 0o755))
    return _tar(entries)


def _inside(path: str) -> str:
    """``/bin//sh`` → ``bin/sh``: all paths of an image are below its root."""
    return posixpath.normpath("/" + path).lstrip("/")


def _tar(entries: Mapping[str, _Entry]) -> bytes:
    """Sorted (so parents come first), owned by root, time 0: the bytes depend on the entries alone."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, entry in sorted(entries.items()):
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.linkname, info.size = (
                entry.kind,
                entry.mode,
                entry.link,
                len(entry.data),
            )
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def _archive(layer: bytes, ref: str, run: Mapping[str, object], architecture: str) -> bytes:
    """An OCI image layout as a tar. The layer is not compressed: compressors differ in what they write."""
    config = encode(
        {
            "created": _CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {key: value for key, value in run.items() if value},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer)]},
        }
    )
    blobs = (_descriptor(OCI_CONFIG, config), config), (_descriptor(OCI_LAYER, layer), layer)
    return _layout(ref, {"architecture": architecture, "os": "linux"}, *blobs)


_Blob = tuple[dict[str, object], bytes]


def _layout(ref: str, platform: Mapping[str, str], config: _Blob, layer: _Blob) -> bytes:
    """A configuration and a layer, with their descriptors, as an image layout with one name."""
    manifest = encode_manifest(config[0], [layer[0]])
    names = {"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": ref}
    entry = {**_descriptor(OCI_MANIFEST, manifest), "annotations": names, "platform": dict(platform)}
    index = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    return _tar(_layout_files(index, (config[1], manifest, layer[1])))


def _layout_files(index: bytes, blobs: Iterable[bytes]) -> dict[str, _Entry]:
    files = {"oci-layout": encode({"imageLayoutVersion": "1.0.0"}), "index.json": index}
    files.update({blob_name(sha256(blob)): blob for blob in blobs})
    return {name: _Entry(tarfile.REGTYPE, 0o644, data) for name, data in files.items()}


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}


@click.group()
def main() -> None:
    """Make small images."""


@main.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def busybox(out: Path) -> None:
    """Write Debian's static busybox as the image localhost/busybox:latest to OUT."""
    try:
        busybox_image(out)
    except ImageError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"wrote {BUSYBOX_REF} to {out}")


if __name__ == "__main__":
    main()
