"""`machineplane image pull` against Debian's docker-registry."""

import gzip
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
import zstandard
from debian_registry import push_index, tar

BIN = Path(sys.executable).parent
BIG = 128 << 20  # bytes of a layer; far more than the memory that a pull may take


def pull(state: Path, config: Path, *refs: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [
            str(BIN / "machineplane"),
            "image",
            "pull",
            *refs,
            "--state-dir",
            str(state),
            "--registry-config",
            str(config),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def layers_of(plain: bytes) -> list[tuple[bytes, bytes, str]]:
    second = tar("second", b"2" * 1000)
    return [
        (plain, gzip.compress(plain), "+gzip"),
        (second, zstandard.ZstdCompressor().compress(second), "+zstd"),
    ]


def test_by_tag_and_by_digest(registry: Callable[..., Any], tmp_path: Path) -> None:
    served = registry()
    index = push_index(served, "team/app", "1", *layers_of(tar("first", b"1" * 1000)))
    state = tmp_path / "state"
    done = pull(state, served.config, f"{served.address}/team/app:1", f"{served.address}/team/app@{index}")
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{served.address}/team/app:1 sha256:")
    assert second.split()[0].endswith(index) and second.split()[1] == first.split()[1]
    assert f"from registry {served.address}: team/app" in done.stderr
    unpacked = {path.name for path in (state / "images" / "layers").glob("*/*")}
    assert unpacked == {"first", "second"}


def test_with_a_password(registry: Callable[..., Any], tmp_path: Path) -> None:
    served = registry("user", "s3cret")
    push_index(served, "team/app", "1", *layers_of(tar("first", b"1")))
    state, ref = tmp_path / "state", f"{served.address}/team/app:1"
    refused = pull(state, served.config, ref, check=False)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(
        f"Error: registry {served.address}: team/app is not given (it wants credentials"
    )
    document = yaml.safe_load(served.config.read_text())
    document["auths"] = {served.address: {"username": "user", "password": "s3cret"}}
    (tmp_path / "with.yaml").write_text(yaml.safe_dump(document))
    pull(state, tmp_path / "with.yaml", ref)


def test_a_mirror_stands_in(registry: Callable[..., Any], tmp_path: Path) -> None:
    served = registry()
    push_index(served, "library/app", "1", *layers_of(tar("first", b"1")))
    config = tmp_path / "mirror.yaml"
    config.write_text(
        yaml.safe_dump({"registries": {"docker.io": {"mirrors": [f"http://{served.address}"]}}})
    )
    assert pull(tmp_path / "state", config, "app:1").stdout.startswith("docker.io/library/app:1 sha256:")


def test_what_is_not_there(registry: Callable[..., Any], tmp_path: Path) -> None:
    served = registry()
    done = pull(tmp_path / "state", served.config, f"{served.address}/nothing:1", check=False)
    assert done.returncode == 1
    said = f"registry {served.address}: nothing has no manifests/1: see the image's name and tag"
    assert done.stderr.splitlines()[-1] == f"Error: {said}"


MEASURED = """
import re, sys
from machineplane.cli import main
main(sys.argv[1:], standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak(state: Path, served: Any, name: str) -> int:
    """Bytes of memory that a pull had at its peak: its own, for what ``getrusage`` says begins with the parent's."""
    words = ("image", "pull", f"{served.address}/{name}:1", "--state-dir", str(state))
    command = [sys.executable, "-c", MEASURED, *words, "--registry-config", str(served.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) << 10


def test_a_large_layer_goes_through_little_memory(registry: Callable[..., Any], tmp_path: Path) -> None:
    """The pull's peak of memory stays far below the layer: nothing holds a blob as a whole."""
    served = registry()
    plain = tar("big", zlib.compress(os.urandom(1 << 20), 0) * (BIG >> 20))
    push_index(served, "team/big", "1", (plain, plain, ""))
    push_index(served, "team/small", "1", *layers_of(tar("first", b"1")))
    small, big = (peak(tmp_path / name, served, f"team/{name}") for name in ("small", "big"))
    assert big - small < BIG / 6, f"{small >> 20} and {big >> 20} MiB: memory grows with the layer"
