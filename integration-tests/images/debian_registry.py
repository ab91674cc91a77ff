"""Debian's own registry, as its users run it, on loopback or inside a machine of a lab; and the two steps of a push."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tarfile import TarInfo
from tarfile import open as open_tar
from typing import Any

import httpx
import yaml

_START_S = 20
TYPES = "application/vnd.oci.image"


class Registry:
    """Use ``start``, and ``stop`` at the end. ``user`` and ``password``: only for who has them."""

    def __init__(self, address: str, folder: Path, user: str = "", password: str = "") -> None:
        self.address = address
        self.folder = folder
        self.auth = (user, password) if user else None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        """A registry configuration by which it is reached, without credentials."""
        path = self.folder / "registries.yaml"
        path.write_text(yaml.safe_dump({"registries": {self.address: {"plain-http": True}}}))
        return path

    def start(self, *prefix: str) -> None:
        """``prefix`` is a command that runs it somewhere else."""
        program = shutil.which("docker-registry")
        assert program, "docker-registry is missing: apt-get install docker-registry"
        self.folder.mkdir(exist_ok=True)
        config: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "data")}},
            "http": {"addr": self.address},
        }
        if self.auth:
            users = self.folder / "htpasswd"
            users.write_text(f"{self.auth[0]}:{_bcrypt(self.auth[1])}\n")
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(users)}}
        (self.folder / "config.yml").write_text(yaml.safe_dump(config))
        command = [*prefix, program, "serve", str(self.folder / "config.yml")]
        with (self.folder / "log").open("wb") as log:
            environment = {"PATH": os.environ["PATH"]}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._wait(self._process)

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        log, deadline = self.folder / "log", time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                httpx.get(f"http://{self.address}/v2/")
                return
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"the registry does not answer: {log.read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def push_blob(self, name: str, data: bytes) -> None:
        """Begin an upload, then put it whole."""
        with httpx.Client(base_url=f"http://{self.address}", auth=self.auth, timeout=60) as client:
            begun = client.post(f"/v2/{name}/blobs/uploads/").raise_for_status()
            url = httpx.URL(begun.headers["location"]).copy_merge_params({"digest": digest_of(data)})
            headers = {"Content-Type": "application/octet-stream"}
            client.put(url, content=data, headers=headers).raise_for_status()

    def push_manifest(self, name: str, tag: str, data: bytes, kind: str) -> None:
        url = f"http://{self.address}/v2/{name}/manifests/{tag}"
        httpx.put(url, content=data, headers={"Content-Type": kind}, auth=self.auth).raise_for_status()

    def push_layout(self, name: str, tag: str, archive: Path) -> str:
        """Push the one image of an OCI archive; its digest."""
        with open_tar(archive) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
        (entry,) = json.loads(files["index.json"])["manifests"]
        manifest = files[_blob(entry["digest"])]
        document = json.loads(manifest)
        for blob in (document["config"], *document["layers"]):
            self.push_blob(name, files[_blob(blob["digest"])])
        self.push_manifest(name, tag, manifest, entry["mediaType"])
        return str(entry["digest"])


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def digest_of(data: bytes) -> str:
    return "sha256:" + sha256(data).hexdigest()


def described(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}


def tar(name: str, data: bytes) -> bytes:
    out = BytesIO()
    with open_tar(fileobj=out, mode="w") as archive:
        info = TarInfo(name)
        info.size = len(data)
        archive.addfile(info, BytesIO(data))
    return out.getvalue()


def push_index(registry: Registry, name: str, tag: str, *layers: tuple[bytes, bytes, str]) -> str:
    """An index of an image for this machine and one for another; ``layers`` are (plain, sent, suffix of the type)."""
    entries = [
        _push_image(registry, name, architecture, layers)
        for architecture in ("riscv64", {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine])
    ]
    kind = f"{TYPES}.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode()
    registry.push_manifest(name, tag, index, kind)
    return digest_of(index)


def _push_image(
    registry: Registry, name: str, architecture: str, layers: Sequence[tuple[bytes, bytes, str]]
) -> dict[str, Any]:
    diff_ids = [digest_of(plain) for plain, _, _ in layers]
    config = json.dumps(
        {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()
    for data in (config, *(sent for _, sent, _ in layers)):
        registry.push_blob(name, data)
    kind = f"{TYPES}.manifest.v1+json"
    document = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": described(config, f"{TYPES}.config.v1+json"),
        "layers": [described(sent, f"{TYPES}.layer.v1.tar{suffix}") for _, sent, suffix in layers],
    }
    manifest = json.dumps(document).encode()
    registry.push_manifest(name, digest_of(manifest), manifest, kind)
    return {**described(manifest, kind), "platform": {"os": "linux", "architecture": architecture}}


def _bcrypt(password: str) -> str:
    salt = "$2b$05$" + "abcdefghijklmnopqrstuu"
    script = ["perl", "-e", "print crypt($ARGV[0], $ARGV[1])", password, salt]
    return subprocess.run(script, check=True, capture_output=True, text=True).stdout
