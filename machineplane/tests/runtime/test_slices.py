"""Slices and scopes by which systemd makes control groups: names, paths, and when they can be had."""

import os

import pytest

from machineplane.runtime import RuntimeConfig, cgroups, slices
from machineplane.runtime.crun.binding import Context

UID = "0a1b2c3d-0000-4000-8000-00000000000f"


@pytest.fixture
def config(tmp_path):
    return RuntimeConfig(state_dir=tmp_path, cgroup_parent="/site/magik", cgroup_driver="systemd")


def test_a_pod_is_a_slice_and_a_container_a_scope_in_it(config):
    pod = "/site.slice/site-magik.slice/site-magik-0a1b2c3d_0000_4000_8000_00000000000f.slice"
    assert config.pods_cgroup == "/site.slice/site-magik.slice"
    assert config.pod_cgroup(UID) == pod
    assert config.container_cgroup(UID, "c" * 64) == f"{pod}/magik-cccccccccccc.scope"


def test_without_systemd_they_are_plain_folders(tmp_path):
    config = RuntimeConfig(state_dir=tmp_path, cgroup_parent="/site/magik")
    assert config.pods_cgroup == "/site/magik"
    assert config.container_cgroup(UID, "c" * 64) == f"/site/magik/{UID}/cccccccccccc"


def test_libcrun_is_told_in_its_own_form(config):
    path = slices.oci_path(config.container_cgroup(UID, "c" * 64))
    assert path == f"site-magik-{UID.replace('-', '_')}.slice:magik:cccccccccccc"
    assert slices.oci_path(f"/magik/{UID}/cccccccccccc") == f"/magik/{UID}/cccccccccccc"


def test_a_pod_is_known_by_its_slice_and_other_machines_slices_are_not_its(config):
    assert slices.uid_of(os.path.basename(config.pod_cgroup(UID))) == UID
    assert (
        slices.uid_of("site-magik-lab.slice") == ""
    )  # below it is another machine's, whose parent is site/magik/lab
    assert slices.uid_of(UID) == UID


@pytest.mark.parametrize("parent", ["a--b", "-a", "a b", "a@b", "ä"])
def test_what_systemd_could_not_name_is_refused(parent):
    with pytest.raises(ValueError, match="no name for a slice"):
        slices.slice_of(parent)


def test_why_systemd_cannot_be_used_is_told(tmp_path):
    library = tmp_path / "libcrun.so"
    library.write_bytes(b"\x7fELF libcap.so.2")
    assert "does not run" in slices.unusable(True, str(library), booted=False)
    assert "cgroup v2" in slices.unusable(False, str(library), booted=True)
    assert f"{library} was built without" in slices.unusable(True, str(library), booted=True)
    library.write_bytes(b"\x7fELF libcap.so.2\0libsystemd.so.0\0")
    assert slices.unusable(True, str(library), booted=True) == ""


def test_the_flag_stands_where_libcrun_reads_it():
    # <container.h> of libcrun: int fifo_exec_wait_fd at 80, then bool systemd_cgroup, bool detach.
    plain, ours = (Context((1, 8, 1), state_root="/s", container_id="c") for _ in range(2))
    assert (plain.pointer.raw[84], plain.pointer.raw[85]) == (0, 1)
    assert (ours.by_systemd().pointer.raw[84], ours.pointer.raw[85]) == (1, 1)


@pytest.fixture
def hierarchy(tmp_path, monkeypatch):
    """A hierarchy of plain folders, and a systemd that removes those of the units it stops."""
    stopped = []

    def stop(path):
        stopped.append(os.path.basename(path))
        for folder, _, _ in os.walk(f"{tmp_path}{path}", topdown=False):
            os.rmdir(folder)

    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    monkeypatch.setattr(slices, "stop", stop)
    return tmp_path, stopped


def test_the_last_container_takes_the_pods_slice_along_and_leaves_the_machines(config, hierarchy):
    root, stopped = hierarchy
    groups = cgroups.Cgroups("v2", "", slices.SYSTEMD)
    first, second = (config.container_cgroup(UID, name * 12) for name in "ab")
    for path in (first, second):
        os.makedirs(f"{root}{path}")
    assert cgroups.remove(groups, first)
    assert stopped == ["magik-aaaaaaaaaaaa.scope"]
    assert os.path.isdir(f"{root}{second}")
    os.rmdir(f"{root}{second}")  # as libcrun's delete does
    assert cgroups.remove(groups, second)
    assert stopped[1:] == [os.path.basename(config.pod_cgroup(UID))]
    assert os.path.isdir(f"{root}{config.pods_cgroup}")


def test_a_scope_that_is_gone_ended_for_memory_by_the_count_of_its_pod(config, hierarchy):
    root, _ = hierarchy
    groups, path = cgroups.Cgroups("v2", "", slices.SYSTEMD), config.container_cgroup(UID, "c" * 12)
    events = root / config.pod_cgroup(UID)[1:] / "memory.events"
    events.parent.mkdir(parents=True)

    def ended(kills, *, killed, before):
        events.write_text(f"low 0\noom {kills}\noom_kill {kills}\n")
        return cgroups.out_of_memory(groups, path, killed=killed, before=before)

    assert ended(0, killed=True, before=0) == (False, 0)
    assert ended(1, killed=True, before=0) == (True, 1)
    assert ended(1, killed=True, before=1) == (False, 1)
    assert ended(2, killed=False, before=1) == (False, 2)
