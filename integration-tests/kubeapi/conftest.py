"""The API on real sockets with the in-memory backend of the unit tests, and every kubectl that is at hand."""

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import frozen

from machineplane.kubeapi.auth import kubeconfig, load_credentials
from machineplane.kubeapi.server import ApiAddresses, ApiConfig, serve_api

sys.path.insert(0, str(Path(__file__).parents[2] / "machineplane" / "tests" / "kubeapi"))
from kubeapi_memory import MemoryBackend

#: Where several releases of kubectl may lie side by side, as kubectl.1.NN.
VERSIONED = Path("/usr/lib/google-cloud-sdk/bin")
RELEASES = ("1.28", "1.30", "1.32", "1.33")


def kubectls() -> list[str]:
    """Paths of the kubectl programs to test with: the known releases here, else the one on PATH."""
    here = [str(VERSIONED / f"kubectl.{release}") for release in RELEASES]
    found = [path for path in here if os.access(path, os.X_OK)]
    return found or [path for path in (shutil.which("kubectl"),) if path] or ["kubectl-is-missing"]


@frozen
class Outcome:
    """What a kubectl run gave."""

    status: int
    out: str
    err: str


@frozen
class Kubectl:
    """One kubectl with its kubeconfig and a private home."""

    program: str
    home: Path
    backend: MemoryBackend
    addresses: ApiAddresses

    @property
    def release(self) -> tuple[int, int]:
        """(1, 32) of …/kubectl.1.32, or (1, 0) for one whose name does not say."""
        parts = self.program.rpartition("kubectl.")[2].split(".")
        return (int(parts[0]), int(parts[1])) if len(parts) == 2 and parts[1].isdigit() else (1, 0)

    async def __call__(
        self, *words: str, stdin: bytes = b"", ok: bool = True, timeout: float = 30
    ) -> Outcome:
        """Run it; with ``ok`` it must succeed."""
        environment = {
            "HOME": str(self.home),
            "KUBECONFIG": str(self.home / "config"),
            "PATH": os.environ["PATH"],
            "KUBECTL_EXTERNAL_DIFF": "diff -u",
        }
        with trio.fail_after(timeout):
            done = await trio.run_process(
                [self.program, *words],
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment,
            )
        outcome = Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert not ok or outcome.status == 0, f"kubectl {' '.join(words)}: {outcome}"
        return outcome


@asynccontextmanager
async def served(directory: Path, backend: MemoryBackend) -> AsyncIterator[tuple[ApiAddresses, str]]:
    """The API over TLS and plain HTTP on free ports; gives the addresses and a kubeconfig."""
    credentials = await trio.to_thread.run_sync(load_credentials, directory / "api")
    config = ApiConfig(
        http_port=0,
        tls_host="127.0.0.1",
        tls_port=0,
        certificate=credentials.certificate,
        key=credentials.key,
        token=credentials.token,
    )
    async with trio.open_nursery() as nursery:
        addresses: ApiAddresses = await nursery.start(serve_api, config, backend)
        assert addresses.tls is not None
        yield addresses, kubeconfig(addresses.tls, credentials.ca_pem, credentials.token)
        nursery.cancel_scope.cancel()


@pytest.fixture(params=kubectls(), ids=lambda path: Path(path).name)
async def kubectl(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kubectl]:
    if not shutil.which(request.param):
        pytest.fail("no kubectl found: install one (Debian: apt install kubernetes-client)")
    backend = MemoryBackend()
    async with served(tmp_path, backend) as (addresses, config):
        (tmp_path / "config").write_text(config)
        yield Kubectl(request.param, tmp_path, backend, addresses)
