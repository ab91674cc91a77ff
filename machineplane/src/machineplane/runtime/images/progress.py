"""Shows how a pull goes: a bar on a terminal, else a line for each blob; for a daemon, lines in its log."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import click

from machineplane.runtime.images.download import Progress

LOG_PERIOD_S = 10.0  # a guess: often enough to see that it goes on
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

    def say(self, text: str) -> None:
        """One line about the whole."""
        click.echo(f"{self._label}: {text}", file=self._out)

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


class Account:
    """For the daemon: how much has come and from where, logged now and then. ``now`` is in seconds."""

    def __init__(self, image: str, log: Any, now: Callable[[], float]) -> None:
        self._image = image
        self._log = log
        self._now = now
        self._said = now()
        self._seen: dict[str, Progress] = {}

    def watch(self, progress: Progress) -> None:
        """Called for every piece of every blob."""
        self._seen[progress.digest] = progress
        if self._now() - self._said >= LOG_PERIOD_S:
            self._said = self._now()
            done, size = (
                sum(getattr(seen, name) for seen in self._seen.values()) for name in ("done", "size")
            )
            self._log.info("image-pulling", image=self._image, done=done, size=size)

    @property
    def sources(self) -> Mapping[str, int]:
        """How many blobs each source has finished."""
        return Counter(seen.source for seen in self._seen.values() if seen.done == seen.size)
