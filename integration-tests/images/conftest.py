"""Debian's own registry, as its users run it, on loopback."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from attrs import frozen

_START_S = 20


@frozen
class Registry:
    """A running registry."""

    address: str
    folder: Path
    auth: tuple[str, str] | None

    @property
    def config(self) -> Path:
        """A registry configuration by which it is reached, without credentials."""
        path = self.folder / "registries.yaml"
        path.write_text(yaml.safe_dump({"registries": {self.address: {"plain-http": True}}}))
        return path

    def push_blob(self, name: str, data: bytes, digest: str) -> None:
        """By the protocol's two steps: begin an upload, then put it whole."""
        with httpx.Client(base_url=f"http://{self.address}", auth=self.auth, timeout=60) as client:
            begun = client.post(f"/v2/{name}/blobs/uploads/").raise_for_status()
            url = httpx.URL(begun.headers["location"]).copy_merge_params({"digest": digest})
            headers = {"Content-Type": "application/octet-stream"}
            client.put(url, content=data, headers=headers).raise_for_status()

    def push_manifest(self, name: str, tag: str, data: bytes, kind: str) -> None:
        url = f"http://{self.address}/v2/{name}/manifests/{tag}"
        httpx.put(url, content=data, headers={"Content-Type": kind}, auth=self.auth).raise_for_status()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _bcrypt(password: str) -> str:
    salt = "$2b$05$" + "abcdefghijklmnopqrstuu"
    made = subprocess.run(
        ["perl", "-e", "print crypt($ARGV[0], $ARGV[1])", password, salt],
        check=True,
        capture_output=True,
        text=True,
    )
    return made.stdout


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    """Starts registries; ``user`` and ``password`` make one that wants them. Ended, with their files, afterwards."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.fail("docker-registry is missing: apt-get install docker-registry")
    running: list[subprocess.Popen[bytes]] = []

    def start(user: str = "", password: str = "") -> Registry:
        folder = tmp_path / f"registry{len(running)}"
        folder.mkdir()
        address = f"127.0.0.1:{_free_port()}"
        config: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": address},
        }
        if user:
            (folder / "htpasswd").write_text(f"{user}:{_bcrypt(password)}\n")
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        (folder / "config.yml").write_text(yaml.safe_dump(config))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, "serve", str(folder / "config.yml")],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
            )
        running.append(process)
        _wait(address, process, folder / "log")
        return Registry(address, folder, (user, password) if user else None)

    yield start
    for process in running:
        process.terminate()
        process.wait(10)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://{address}/v2/")
            return
        except httpx.ConnectError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
    pytest.fail(f"the registry does not answer: {log.read_text()}")
