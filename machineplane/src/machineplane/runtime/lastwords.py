"""What a container says of its own end: its termination message."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machineplane.runtime.logtail import log_tail

# Kubernetes' bounds: bytes of a message; of one taken from the log, bytes and lines.
MAX_MESSAGE = 4096
MAX_FROM_LOG = 2048
MAX_LINES = 80


def last_words(spec: Mapping[str, Any], file: Path, log: Path, exit_code: int) -> str:
    """What the container wrote into its termination log; else, if its spec says so and it failed, the end of its output.

    Blocks. Whatever is in the file, no more than the bounds is read, and bytes that are no UTF-8 are replaced.
    """
    text = _read(file)
    if text or spec.get("terminationMessagePolicy") != "FallbackToLogsOnError" or not exit_code:
        return text
    return log_tail(log, MAX_LINES)[-MAX_FROM_LOG:].decode(errors="replace")


def _read(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        return file.read(MAX_MESSAGE).decode(errors="replace")
