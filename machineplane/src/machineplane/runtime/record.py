"""What the daemon keeps of a pod beside the shim's own state: ``pod.json`` in the pod's folder."""

import contextlib
import os
from pathlib import Path

from attrs import field, frozen
from cattrs.errors import BaseValidationError
from cattrs.preconf.json import make_converter

from machineplane.runtime.status import PodStatus

_VERSION = 1
_NAME = "pod.json"


@frozen(kw_only=True)
class AgentRecord:
    """The pod's agent. ``id`` is its container's, empty while there is none; ``runs`` counts those that there were.

    ``token`` and ``key`` are of this run: what it shows at its socket, and the public key (hex) that a pass was asked for.
    """

    token: str = field(default="", repr=False)
    id: str = ""
    runs: int = 0
    key: str = ""


@frozen(kw_only=True)
class PodRecord:
    """A pod as a restarted daemon needs it. ``infra_id`` is empty until the pod's network namespace is made.

    ``agent`` is None for a pod without one, which it is for good.
    """

    status: PodStatus
    infra_id: str = ""
    infra_pid: int = 0
    verdict: str = ""  # a phase that stands whatever the containers do ("Failed")
    grace_s: float | None = None
    agent: AgentRecord | None = None
    version: int = _VERSION


def save(folder: Path, record: PodRecord) -> None:
    """Replace the file atomically. It survives the daemon's death; a power cut ends the pod as well."""
    fresh = folder / f"{_NAME}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(make_converter().dumps(record))
    fresh.replace(folder / _NAME)


def discard(folder: Path) -> None:
    """Remove a folder in which nothing but a record may be, without a descriptor: there may be none left."""
    with contextlib.suppress(OSError):
        for name in (_NAME, f"{_NAME}.new"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def load(folder: Path) -> PodRecord | None:
    """The record in a pod's folder; none if there is none, or if it is not ours to read."""
    try:
        text = (folder / _NAME).read_text()
        record = make_converter().loads(text, PodRecord)
    except (OSError, ValueError, BaseValidationError, KeyError, TypeError):
        return None
    return record if record.version == _VERSION else None
