"""What a machine says that it has."""

import os
import platform
from pathlib import Path

import pytest

from machineplane.scheduling import capacity


def test_processors_are_those_this_process_may_use(tmp_path: Path) -> None:
    found = capacity.read_capacity(tmp_path)
    assert found.cpu_millis == 1000 * len(os.sched_getaffinity(0))
    assert found.pods == capacity.PODS_MAX


def test_memory_is_less_than_the_machines_and_disk_is_what_is_free(tmp_path: Path) -> None:
    found = capacity.read_capacity(tmp_path)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < found.memory_bytes <= total - capacity.RESERVED_MEMORY_BYTES
    disk = os.statvfs(tmp_path)
    assert 0 <= found.storage_bytes <= disk.f_blocks * disk.f_frsize


def test_the_daemons_own_limit_is_the_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(capacity, "_cgroup_limits", lambda: (256 * 1024 * 1024, 1 << 62))
    assert capacity.read_capacity(tmp_path).memory_bytes == 128 * 1024 * 1024


def test_a_machine_too_small_for_itself_has_nothing_to_give(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(capacity, "_cgroup_limits", lambda: (1024,))
    assert capacity.read_capacity(tmp_path).memory_bytes == 0


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("s390x", "s390x")])
def test_architectures_have_kubernetes_names(
    monkeypatch: pytest.MonkeyPatch, machine: str, name: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert capacity.architecture() == name
