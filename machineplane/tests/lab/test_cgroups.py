"""Removing control groups: ours only, from every hierarchy. (Plain directories behave as groups do here.)"""

from pathlib import Path

from machineplane.lab import cgroups


def test_version_1_and_mixed_hierarchies(tmp_path: Path) -> None:
    for controller in ("memory", "pids", "unified"):
        (tmp_path / controller / "magik-lab-m0" / "pod-a" / "inner").mkdir(parents=True)
        (tmp_path / controller / "magik-other-m0" / "pod-b").mkdir(parents=True)
    (tmp_path / "cpu").symlink_to("pids")
    assert cgroups.remove(["/magik-lab-m0"], tmp_path) == []
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["magik-other-m0"] * 4


def test_one_hierarchy_and_empty_parents_of_ours(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "user" / "magik" / "lab-m0" / "pod").mkdir(parents=True)
    assert cgroups.remove(["/user/magik/lab-m0/pod"], tmp_path) == []
    assert (tmp_path / "user" / "magik" / "lab-m0").exists()
    assert cgroups.remove(["/user/magik/lab-m0"], tmp_path) == []
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["user"]


def test_a_group_in_use_is_reported(tmp_path: Path) -> None:
    (tmp_path / "pids" / "magik-lab-m0").mkdir(parents=True)
    (
        tmp_path / "pids" / "magik-lab-m0" / "busy"
    ).touch()  # a real group refuses with EBUSY, this one with ENOTEMPTY
    assert cgroups.remove(["/magik-lab-m0", "/magik-none"], tmp_path) == ["/magik-lab-m0"]
