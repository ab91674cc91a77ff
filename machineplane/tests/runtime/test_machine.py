"""What is read of the machine: archives, libraries, control groups, engines, and what helper processes import."""

import subprocess
import sys

import pytest

from machineplane.runtime.cgroups import unified, v1_hierarchies
from machineplane.runtime.crun.binding import LibcrunError, force_no_cgroup_offset
from machineplane.runtime.crun.locate import embedded_version, find_libcrun
from machineplane.runtime.debsrc import parse_deb822, parse_one_line
from machineplane.runtime.krun.locate import find_libkrun, look_for_krun, probe_kvm
from machineplane.runtime.shim.wire import MAX_MESSAGE, WireError, decode, encode

STANZAS = """\
Types: deb
# a comment
URIs: http://archive.example/debian
Suites: stable stable-updates
Components: main contrib
Signed-By: /usr/share/keyrings/k.gpg

Types: deb
Enabled: no
URIs: http://off.example/
Suites: stable
Components: main
"""


def test_archives_in_both_formats():
    assert [a.line("deb-src") for a in parse_deb822(STANZAS)] == [
        "deb-src [signed-by=/usr/share/keyrings/k.gpg] http://archive.example/debian stable main",
        "deb-src [signed-by=/usr/share/keyrings/k.gpg] http://archive.example/debian stable-updates main",
    ]
    text = "deb [arch=amd64] http://a.example/d stable main # x\n# deb http://no.example stable main\n"
    text += "deb http://b.example stable contrib\n"
    assert [a.line("deb-src") for a in parse_one_line(text)] == [
        "deb-src [arch=amd64] http://a.example/d stable main"
    ]


def test_a_library_counts_only_with_its_version(tmp_path):
    assert find_libcrun(tmp_path) is None
    (tmp_path / "libcrun.so").write_bytes(b"")
    assert find_libcrun(tmp_path) is None
    (tmp_path / "libcrun.version").write_text("1.8.1\n")
    found = find_libcrun(tmp_path)
    assert found is not None and found.version_tuple == (1, 8, 1)


def test_version_inside_a_library():
    assert embedded_version(b"a\x001.0.0\x001.8.1\x000.2.0\0") == "1.8.1"
    assert embedded_version(b"a\x001.8.1\x001.9\0") is None


def test_flags_stand_where_the_version_has_them():
    assert force_no_cgroup_offset((1, 8, 1)) == 88
    assert force_no_cgroup_offset((1, 13)) == 87
    with pytest.raises(LibcrunError, match="too old"):
        force_no_cgroup_offset((1, 4))


def test_only_controllers_that_are_on_v1_are_taken():
    text = "12:cpu,cpuacct:/\n4:memory:/x\n1:name=systemd:/\n3:perf_event:/\n0::/y\n"
    assert v1_hierarchies(text) == ["cpu,cpuacct", "memory"]


def test_unified_hierarchy_is_seen_by_the_last_mount():
    over = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    plain = "32 23 0:29 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
    below = "33 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    assert unified(plain) and not unified(over + below) and not unified(plain + over)


def test_krun_says_why_not(tmp_path):
    found = look_for_krun(tmp_path / "memory", find=lambda: "", kvm=lambda: "no KVM")
    assert found.reason == "no libkrun library found; no KVM"
    broken = tmp_path / "libkrun.so.1"
    broken.write_text("no library")
    assert find_libkrun(tmp_path) == str(broken)
    found = look_for_krun(tmp_path / "memory", find=lambda: find_libkrun(tmp_path), kvm=lambda: "")
    assert "a guest did not boot" in found.reason and "cannot be loaded" in found.reason
    found = look_for_krun(tmp_path / "memory", tmp_path / "absent.so", kvm=lambda: "not asked")
    assert found.reason.startswith("no guest can be tried") and "absent.so" in found.reason
    assert "cannot be opened" in probe_kvm(str(tmp_path / "kvm"))
    (tmp_path / "file").write_bytes(b"")
    assert "does not answer as KVM" in probe_kvm(str(tmp_path / "file"))


def test_messages_are_bounded():
    assert decode(encode({"op": "status"})) == {"op": "status"}
    for raw in (b"[]", b"{", b"\xff", b" " * (MAX_MESSAGE + 1)):
        with pytest.raises(WireError):
            decode(raw)
    with pytest.raises(WireError):
        encode({"x": "y" * MAX_MESSAGE})


def test_the_zygote_imports_little():
    code = (
        "import sys, machineplane.runtime.zygote as z; print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"trio", "attrs", "attr", "cattrs", "asyncio", "subprocess", "cryptography"} & set(
        eval_list(loaded)
    )


def eval_list(text):
    return [part.strip(" '[]\n") for part in text.split(",")]
