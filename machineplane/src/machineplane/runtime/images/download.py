"""Downloads blobs: several at a time, each from one source after another, going on where a broken one ended.

A blob is hashed as it comes. Whoever sends too much, too little or something else is named, and the next source is asked.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import trio
from attrs import frozen

from machineplane.runtime.images.documents import Descriptor
from machineplane.runtime.images.errors import (
    DigestMismatch,
    ImageError,
    PullFailed,
    SizeMismatch,
    Unreachable,
)
from machineplane.runtime.images.partial import PartialBlob
from machineplane.runtime.images.sources import Source
from machineplane.runtime.images.waits import Waits

PIECE = 1 << 20  # bytes handed to a thread at once, to be hashed and written; so much memory a download takes
FRUITLESS_TRIES = 3  # in a row, of one source, that bring no byte; a guess
PAUSE_S = 1.0  # after one, doubling; a guess
LEAST_RATE = 4096  # bytes a second on the average; who is slower holds up a pod for hours. A guess
_GRACE_S = 120.0  # that even the smallest blob may take; a guess above the read timeout and its tries


@frozen
class Progress:
    """How far a blob is, in bytes, and where it comes from."""

    digest: str
    done: int
    size: int
    source: str


Watch = Callable[[Progress], None]


class Downloader:
    """``at_once`` downloads run at the same time, whatever images they are of; others wait their turn."""

    def __init__(self, folder: Path, *, at_once: int, waits: Waits) -> None:
        self._folder = folder
        self._turns = trio.CapacityLimiter(at_once)
        self._waits = waits

    async def fetch(self, wanted: Descriptor, sources: Sequence[Source], watch: Watch) -> PartialBlob:
        """The whole blob, verified; the caller closes it. Raises what the last source's failure was, or ``OSError``."""
        async with self._turns:
            part = await trio.to_thread.run_sync(PartialBlob, self._folder, wanted.digest, wanted.size)
            try:
                await self._fill(part, sources, watch)
            except BaseException as error:
                part.close(keep=not isinstance(error, OSError))  # what fills the disk does not stay on it
                raise
            return part

    async def _fill(self, part: PartialBlob, sources: Sequence[Source], watch: Watch) -> None:
        failure: ImageError | None = None
        for source in sources:
            if part.complete:
                break
            try:
                await self._from_source(part, source, watch)
                return
            except (PullFailed, DigestMismatch, SizeMismatch) as error:
                failure = error
        if not part.complete:
            raise failure or PullFailed(f"blob {part.digest}", "is to be had nowhere")
        watch(Progress(part.digest, part.size, part.wanted, "this machine"))

    async def _from_source(self, part: PartialBlob, source: Source, watch: Watch) -> None:
        """Until the blob is whole, the source has lied, or it has brought nothing for several tries."""
        fruitless, own = 0, part.size == 0
        with trio.move_on_after(_GRACE_S + (part.wanted - part.size) / LEAST_RATE):
            while True:
                before = part.size
                failure: ImageError | None = await self._once(part, source, watch)
                if part.size == part.wanted and not failure:
                    if part.complete:
                        return
                    problem = _lied(part, source)
                    part.restart()
                    if own:
                        raise problem
                    own, failure = (
                        True,
                        problem,
                    )  # it may have been the others' part: once more, all by this one
                fruitless = 0 if part.size > before else fruitless + 1
                if fruitless == FRUITLESS_TRIES:
                    raise failure or _cut(part, source)
                await self._waits.pause(PAUSE_S * 2**fruitless)
        raise Unreachable(source.subject, f"sends {part.digest} too slowly", "it is tried again later")

    async def _once(self, part: PartialBlob, source: Source, watch: Watch) -> PullFailed | None:
        """One request; what broke it is returned, for what came before that is kept."""
        try:
            async with source.blob(part.digest, part.size) as stream:
                if stream.start != part.size:
                    part.restart()
                async with aclosing(_pieces(stream.chunks)) as pieces:
                    async for piece in pieces:
                        if part.size + len(piece) > part.wanted:
                            part.restart()
                            raise SizeMismatch(
                                f"{source.subject}: {part.digest}", f"is longer than its {part.wanted} bytes"
                            )
                        await trio.to_thread.run_sync(part.write, piece)
                        watch(Progress(part.digest, part.size, part.wanted, source.subject))
        except Unreachable as error:
            return error
        return None


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Chunks as they come, joined up to about a mebibyte: what was there when a stream broke comes before the error."""
    pending: list[bytes] = []
    size = 0
    broken: PullFailed | None = None
    try:
        async for chunk in chunks:
            pending.append(chunk)
            size += len(chunk)
            if size >= PIECE:
                yield b"".join(pending)
                pending, size = [], 0
    except PullFailed as error:
        broken = error
    if pending:
        yield b"".join(pending)
    if broken is not None:
        raise broken


def _lied(part: PartialBlob, source: Source) -> DigestMismatch:
    return DigestMismatch(
        f"{source.subject}: {part.digest}",
        f"has content with the digest {part.found_digest}",
        "it is refused",
    )


def _cut(part: PartialBlob, source: Source) -> SizeMismatch:
    said = f"ends after {part.size} of its {part.wanted} bytes, again and again"
    return SizeMismatch(f"{source.subject}: {part.digest}", said)
