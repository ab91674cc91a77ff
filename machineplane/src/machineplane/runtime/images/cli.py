"""``machineplane image …``: what is in this machine's image store. Works with and without a running daemon."""

import io
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import click
import trio

from machineplane.linux.files import replacing
from machineplane.runtime.images.desk import SOCKET, NoDaemon, pull_by_daemon
from machineplane.runtime.images.download import Downloader, Watch
from machineplane.runtime.images.errors import ImageError
from machineplane.runtime.images.export import FORMS, OCI_ARCHIVE, OCI_LAYOUT, export_archive, export_layout
from machineplane.runtime.images.make import module_image
from machineplane.runtime.images.model import ImageInfo
from machineplane.runtime.images.names import Reference, parse_reference
from machineplane.runtime.images.peers import NoPeers
from machineplane.runtime.images.progress import Display
from machineplane.runtime.images.pull import Puller
from machineplane.runtime.images.registry.client import open_registries
from machineplane.runtime.images.registry.credentials import Keyring
from machineplane.runtime.images.registry.settings import RegistrySettings, load_settings
from machineplane.runtime.images.store import ImageStore
from machineplane.runtime.images.unpack import is_wasm
from machineplane.runtime.images.waits import Waits

_UNITS = ("B", "kB", "MB", "GB", "TB")
_MODULE_BYTES = 256 << 20  # it is read as a whole; a guess, far above what compilers make
_SHORT_DIGEST = len("sha256:") + 12

_state_dir: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/magik"),
    show_default=True,
    help="The daemon's state directory; images are below it.",
)


@click.group()
def image() -> None:
    """Images on this machine."""


@image.command("import")
@click.argument("file")
@click.option("--ref", help="The image's name, in place of the one in the archive.")
@_state_dir
def import_(file: str, ref: str | None, state_dir: Path) -> None:
    """Import FILE: an OCI layout directory, an OCI or docker archive (gzip, zstd or plain), or - for stdin.

    A WebAssembly module (with --ref) becomes an image that runs it.
    """
    source: Path | BinaryIO = sys.stdin.buffer if file == "-" else Path(file)
    with _told():
        if isinstance(source, Path) and source.is_file() and is_wasm(source):
            source = _wrapped(source, ref)
        for info in _store(state_dir).import_file(source, ref):
            click.echo(f"{info.ref} {info.digest}")


@image.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option(
    "--registry-config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Mirrors, authorities and credentials of registries, as the daemon takes it.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/run/magik"),
    show_default=True,
    help="The daemon's run directory, where it is asked.",
)
@_state_dir
def pull(refs: tuple[str, ...], registry_config: Path | None, run_dir: Path, state_dir: Path) -> None:
    """Pull images by tag or by digest; what is here already is not fetched again.

    Where the machine's daemon runs, it pulls, from other machines first; else, or with --registry-config, the registries
    are asked from here.
    """
    with _told():
        wanted = [parse_reference(ref) for ref in refs]
        settings = load_settings(registry_config) if registry_config else None
        store = _store(state_dir)
        for reference in wanted:
            with Display(sys.stderr, str(reference)) as display:
                ref, digest = trio.run(_pull, store, settings, reference, run_dir / SOCKET, display)
            click.echo(f"{ref} {digest}")


async def _pull(
    store: ImageStore,
    settings: RegistrySettings | None,
    reference: Reference,
    daemon: Path,
    display: Display,
) -> tuple[str, str]:
    """Name and digest; who pulls is said first."""
    if settings is None:
        try:
            return await pull_by_daemon(
                daemon, store.path, str(reference), display.watch, lambda: display.say("the daemon pulls")
            )
        except NoDaemon as error:
            display.say(f"no daemon is asked ({error}): from the registry")
    else:
        display.say("from the registry, as --registry-config says; other machines are not asked")
    info = await _pull_here(store, settings or RegistrySettings(), reference, display.watch)
    return info.ref, info.digest


async def _pull_here(
    store: ImageStore, settings: RegistrySettings, reference: Reference, watch: Watch
) -> ImageInfo:
    waits = Waits(random.SystemRandom())
    async with open_registries(settings, waits) as registries:
        downloader = Downloader(store.partials, at_once=settings.at_once, waits=waits)
        puller = Puller(store=store, registries=registries, peers=NoPeers(), downloader=downloader)
        return await puller.pull(reference, Keyring(), watch)


@image.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option(
    "--output",
    "-o",
    required=True,
    help="A file, `-` for stdout, or for oci-layout a directory that is new or empty.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMS),
    default=OCI_ARCHIVE,
    show_default=True,
    help="What to write.",
)
@_state_dir
def export(refs: tuple[str, ...], output: str, form: str, state_dir: Path) -> None:
    """Write images to a file that `image import`, skopeo, podman or (docker-archive) `docker load` can read."""
    with _told():
        store = _store(state_dir)
        if form == OCI_LAYOUT:
            export_layout(store, refs, Path(output))
        elif output == "-":
            _refuse_terminal()
            export_archive(store, refs, sys.stdout.buffer, form)
        else:
            _export_file(store, refs, Path(output), form)


def _refuse_terminal() -> None:
    if sys.stdout.isatty():
        raise click.UsageError("--output -: an archive is nothing for a terminal: redirect it")


def _export_file(store: ImageStore, refs: Sequence[str], path: Path, form: str) -> None:
    """The file appears when it is whole; what was there before stays until then."""
    try:
        with replacing(path, 0o644) as out:
            export_archive(store, refs, out, form)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error


@image.command()
@_state_dir
def ls(state_dir: Path) -> None:
    """List the images."""
    with _told():
        rows = [_row(info) for info in _store(state_dir).ls()]
    _table(("REFERENCE", "DIGEST", "ARCHITECTURE", "CREATED", "SIZE"), rows)


@image.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@_state_dir
def rm(refs: tuple[str, ...], state_dir: Path) -> None:
    """Remove names; `prune` then frees what nothing names."""
    with _told():
        store = _store(state_dir)
        for ref in refs:
            store.remove(ref)
            click.echo(f"removed {ref}")


@image.command()
@_state_dir
def prune(state_dir: Path) -> None:
    """Free the space of images without a name. What running containers have mounted stays."""
    with _told():
        click.echo(f"freed {_size(_store(state_dir).prune())}")


def _wrapped(path: Path, ref: str | None) -> BinaryIO:
    if ref is None:
        raise click.ClickException(f"{path} is a WebAssembly module and has no name in it: give one by --ref")
    size = path.stat().st_size
    if size > _MODULE_BYTES:
        raise click.ClickException(f"{path} has {size} bytes, a module has at most {_MODULE_BYTES}")
    return io.BytesIO(module_image(path.read_bytes(), ref))


def _store(state_dir: Path) -> ImageStore:
    return ImageStore(state_dir / "images")


@contextmanager
def _told() -> Iterator[None]:
    """An image's error becomes one line and status 1; Ctrl-C keeps what was downloaded."""
    try:
        yield
    except ImageError as error:
        raise click.ClickException(str(error)) from error


def _row(info: ImageInfo) -> tuple[str, ...]:
    created = f"{datetime.fromtimestamp(info.created / 1000, UTC):%Y-%m-%d}" if info.created else "-"
    return (info.ref, info.digest[:_SHORT_DIGEST], info.architecture, created, _size(info.size))


def _size(count: float) -> str:
    """Decimal units, as in Docker's listing."""
    power = 0
    while count >= 1000 and power < len(_UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {_UNITS[power]}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    for row in (heads, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
