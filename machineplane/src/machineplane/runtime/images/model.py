"""The values of the image store. All frozen; sizes are bytes, times milliseconds since the epoch."""

from collections.abc import Mapping

from attrs import field, frozen

MIB = 1 << 20
GIB = 1 << 30


@frozen(kw_only=True)
class StoreLimits:
    """What an image may cost; over any of them an import ends with ``QuotaExceeded`` and leaves nothing.

    The numbers are guesses with room for every common base image; what real sites run would settle them.
    """

    archive_bytes: int = 16 * GIB  # an archive, uncompressed once (its layers may still be compressed)
    archive_entries: int = 10_000  # files in an archive
    image_bytes: int = 8 * GIB  # all layers of one image, uncompressed
    layer_entries: int = 1_000_000  # members of one layer
    layers: int = 127  # overlayfs stacks 128 at most; Docker has the same bound
    document_bytes: int = 4 * MIB  # a manifest, index or configuration (registries refuse more than 4 MiB)
    header_bytes: int = MIB  # one extended tar header (long names, attributes)
    headers_bytes: int = 64 * MIB  # all extended headers of one archive or layer


@frozen(kw_only=True)
class ImageConfig:
    """How the image wants to be run (the ``config`` object of the OCI image configuration)."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()  # "NAME=value", in the image's order
    working_dir: str = ""
    user: str = ""  # "name", "uid", "name:group", "uid:gid" or empty for root
    exposed_ports: tuple[str, ...] = ()  # "80/tcp"
    stop_signal: str = ""
    labels: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class Image:
    """An image in the store. ``digest`` is its manifest's, ``index_digest`` that of its index, if any."""

    ref: str
    digest: str
    index_digest: str | None
    config: ImageConfig
    config_digest: str
    architecture: str  # as Go and OCI name it: "amd64", "arm64"
    layers: tuple[str, ...]  # diff ids ("sha256:…" of the uncompressed layer), lowest first
    size: int  # of manifest, configuration and layers as stored


@frozen(kw_only=True)
class ImageInfo:
    """One line of ``machineplane image ls``. ``created`` is 0 when the image does not say."""

    ref: str
    digest: str
    size: int
    created: int
    architecture: str
