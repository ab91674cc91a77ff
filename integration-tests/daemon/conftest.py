import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from daemon_support import Daemon

Start = Callable[..., Daemon]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name, for sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="magik-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a daemon; what still runs at the end is killed."""
    assert os.geteuid() == 0, "these tests need root: they make namespaces"
    started: list[Daemon] = []

    def begin(*options: str, name: str = "a", **more: Any) -> Daemon:
        started.append(Daemon(tmp_path / name, *options, **more))
        return started[-1]

    yield begin
    for daemon in started:
        daemon.close()
