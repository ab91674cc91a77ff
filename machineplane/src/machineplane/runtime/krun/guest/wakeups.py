"""Signals as bytes of a pipe, so that one wait serves for them and for connections."""

import os
import signal
from collections.abc import Iterable


def wake_pipe(numbers: Iterable[int]) -> int:
    """From now on each of these signals is a byte by this descriptor, and nothing else. It never blocks."""
    reader, writer = os.pipe()
    for fd in (reader, writer):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reader
