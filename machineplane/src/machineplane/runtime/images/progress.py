"""Shows how a pull goes: a bar on a terminal, else a line for each blob."""

from typing import TextIO

import click

from machineplane.runtime.images.download import Progress

_SHORT = len("sha256:") + 12


class Display:
    """Use as a context manager. ``watch`` is what a pull is given."""

    def __init__(self, out: TextIO, label: str) -> None:
        self._out = out
        self._label = label
        self._seen: dict[str, Progress] = {}
        self._bar = None if not out.isatty() else click.progressbar(length=1, label=label, file=out)

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()

    def watch(self, progress: Progress) -> None:
        """Called for every piece of every blob; the whole grows as blobs come up."""
        before = self._seen.get(progress.digest)
        self._seen[progress.digest] = progress
        if self._bar is not None:
            self._draw()
        elif progress.done == progress.size or before is None:
            self._line(progress)

    def _draw(self) -> None:
        assert self._bar is not None
        self._bar.length = sum(progress.size for progress in self._seen.values())
        self._bar.pos = sum(progress.done for progress in self._seen.values())
        self._bar.update(0)
        self._bar.render_progress()

    def _line(self, progress: Progress) -> None:
        what = progress.digest[:_SHORT]
        done = "done" if progress.done == progress.size else "begun"
        click.echo(
            f"{self._label}: {what} {done}, {progress.size} bytes from {progress.source}", file=self._out
        )
