"""What `machineplane check` makes of what it reads."""

import json
import socket
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from machineplane import enginecheck, hostcheck
from machineplane.cli import main
from machineplane.runtime import EngineStatus, RuntimeFault, ZygoteReport
from machineplane.runtime.images.agent import AGENT_REF
from machineplane.runtime.images.make import make_image
from machineplane.runtime.images.store import ImageStore, machine_architecture

MOUNTS = """\
1 0 0:1 / / rw - ext4 /dev/a rw
2 1 0:2 / /var/lib rw - xfs /dev/b rw
3 2 0:3 / /var/lib/magik rw - tmpfs none rw
4 2 0:4 / /var/lib/magik rw - overlay none rw
"""


def report(mode="v2", reason=""):
    return ZygoteReport(cgroups=mode, cgroups_reason=reason, libcrun=None, error="")


@pytest.mark.parametrize(
    ("finding", "state", "word"),
    [
        (hostcheck.privileges(("CAP_SYS_ADMIN",)), "missing", "run it as root"),
        (hostcheck.privileges(()), "ok", ""),
        (hostcheck.kernel("5.4.0-generic"), "missing", "5.6"),
        (hostcheck.kernel("6.1.0-18-amd64"), "ok", ""),
        (hostcheck.kernel("strange"), "missing", "5.6"),
        (hostcheck.namespaces(Path("/nonexistent")), "missing", "kernel"),
        (hostcheck.control_groups(report("none", "no controllers")), "warn", "cgroup v2"),
        (hostcheck.control_groups(report("v1")), "ok", ""),
        (hostcheck.control_groups(None), "warn", "root"),
        (hostcheck.overlay("nodev\tsysfs\n\text4\n"), "missing", "modprobe overlay"),
        (hostcheck.overlay("nodev\toverlay\n"), "ok", ""),
        (hostcheck.state_folder(Path("/var/lib/magik/state"), MOUNTS), "missing", "--state-dir"),
        (hostcheck.seccomp("Name: x\n"), "missing", "CONFIG_SECCOMP_FILTER"),
        (hostcheck.kvm("/dev/kvm cannot be opened"), "warn", "virtualisation"),
        (hostcheck.open_files(1024), "warn", "LimitNOFILE"),
        (hostcheck.open_files(-1), "ok", ""),
        (hostcheck.clock(False), "warn", "chrony"),
        (
            hostcheck.engine(EngineStatus(name="krun", available=False, reason="no KVM")),
            "warn",
            "other machines",
        ),
        (
            hostcheck.engine(EngineStatus(name="crun", available=False, reason="no library")),
            "missing",
            "libcrun",
        ),
        (hostcheck.engine(EngineStatus(name="crun", available=True, reason="", version="1.8")), "ok", ""),
    ],
)
def test_findings(finding, state, word):
    assert finding.state == state and word in finding.advice


def test_the_last_mount_at_a_place_counts_and_the_nearest():
    kinds = {
        path: hostcheck.file_system_of(Path(path), MOUNTS)
        for path in ("/x", "/var/lib/x", "/var/lib/magik/x")
    }
    assert kinds == {"/x": "ext4", "/var/lib/x": "xfs", "/var/lib/magik/x": "overlay"}


def test_a_taken_port_is_a_matter_of_who_has_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert hostcheck.port(number, udp=False, serving=False, what="the API").state == "warn"
        assert hostcheck.port(number, udp=False, serving=True, what="the API").state == "ok"
    assert hostcheck.port(0, udp=True, serving=False, what="the mesh").state == "ok"


@pytest.mark.parametrize("again", [True, False])
def test_a_remembered_boot_is_forgotten_when_asked(tmp_path, monkeypatch, *, again):
    memory, looked = tmp_path / "krun.json", []
    memory.write_text("{}")
    monkeypatch.setattr(enginecheck, "missing_privileges", lambda: ())

    def look(remembered, library, timeout):
        looked.append((remembered.exists(), library, timeout))
        raise RuntimeFault("enough")

    monkeypatch.setattr(enginecheck, "look_for_krun", look)
    monkeypatch.setattr(enginecheck, "start_zygote", lambda **_: nullcontext(SimpleNamespace(report=None)))
    assert enginecheck.look_at_engines(tmp_path, tmp_path / "libkrun.so", again=again, timeout=90)[0] is None
    assert looked == [(not again, tmp_path / "libkrun.so", 90)]


@pytest.mark.parametrize(("available", "status"), [(True, 0), (False, 1)])
def test_the_command_says_it_as_a_table_and_as_json(tmp_path, monkeypatch, available, status):
    crun = EngineStatus(name="crun", available=available, reason="", version="1.8.1")
    monkeypatch.setattr(enginecheck, "look_at_engines", lambda *_, **__: (report(), (crun,)))
    good = hostcheck.Finding("x", "ok", "fine")
    for name in ("privileges", "overlay", "libcrun", "nftables"):
        monkeypatch.setattr(hostcheck, name, lambda: good)
    monkeypatch.setattr(hostcheck, "state_folder", lambda folder: good)
    options = ["check", "--state-dir", str(tmp_path), "--run-dir", str(tmp_path), "--rest-api-port", "0"]
    said = CliRunner().invoke(main, [*options, "--json"])
    assert said.exit_code == status
    found = json.loads(said.output)
    assert found["runs_pods"] is available
    assert {"name", "state", "detail", "advice"} == found["findings"][0].keys()
    table = CliRunner().invoke(main, options).output
    assert "engine crun" in table and ("no pods can run here" in table) is not available


def test_the_agents_image_is_looked_for_in_the_installation_and_in_the_store(tmp_path: Path) -> None:
    baked, state = tmp_path / "baked", tmp_path / "state"
    found = hostcheck.agent_image(state, baked)
    assert found.state == "warn" and "nox -s workplane-image" in found.advice
    archive = tmp_path / "a.tar"
    make_image(archive, ref=AGENT_REF, files={"x": (b"", 0o644)})
    (info,) = ImageStore(state / "images").import_file(archive)
    found = hostcheck.agent_image(state, baked)
    assert found.state == "ok" and f"in the store: {info.digest[:19]}" in found.detail
    (state / "images" / "index.json").write_text("{")
    assert hostcheck.agent_image(state, baked).state == "warn"
    baked.mkdir()
    (baked / f"workplane-{machine_architecture()}.json").write_text('{"digest": "sha256:abc", "key": ""}')
    assert "came with this installation: sha256:abc" in hostcheck.agent_image(state, baked).detail
