import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from debian_registry import Registry


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    """Starts registries on loopback; ended, with their files, afterwards."""
    running: list[Registry] = []

    def start(user: str = "", password: str = "") -> Registry:
        folder = tmp_path / f"registry{len(running)}"
        made = Registry(f"127.0.0.1:{_free_port()}", folder, user, password)
        running.append(made)
        made.start()
        return made

    yield start
    for made in running:
        made.stop()
