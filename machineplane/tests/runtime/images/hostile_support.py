"""How a refusal has to look, and headers that no honest tool writes."""

import io
import tarfile

import pytest

from machineplane.runtime.images import ImageError, ImageStore


def assert_refused(store: ImageStore, archive: bytes, kind: type[ImageError]) -> ImageError:
    """The import fails with ``kind``, in one printable line, and the store is as before."""
    with pytest.raises(kind) as caught:
        store.import_file(io.BytesIO(archive))
    assert type(caught.value) is kind
    assert str(caught.value).isprintable()
    assert store.ls() == []
    assert [
        path
        for path in store.path.rglob("*")
        if path.name not in ("gc.lock", "blobs", "layers", "partial", "tmp")
    ] == []
    return caught.value


def zeros(count: int) -> bytes:
    """A tar header that promises so many bytes, without them."""
    info = tarfile.TarInfo("zeros")
    info.size = count
    return info.tobuf(tarfile.GNU_FORMAT)


def pax_header(data: bytes) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
