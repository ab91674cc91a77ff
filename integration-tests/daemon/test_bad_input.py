"""What is wrong around a daemon gets one clear line, or a Kubernetes Status, and never a traceback."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_support import AS_NOBODY, BIN, Daemon, wait_for

Start = Callable[..., Daemon]


@pytest.mark.parametrize(
    ("port", "kind", "option"),
    [
        (3000, "SOCK_STREAM", "--rest-api-port"),
        (6443, "SOCK_STREAM", "--rest-api-tls-port"),
        (4001, "SOCK_DGRAM", "--mesh-port"),
    ],
)
def test_a_port_that_is_taken(start: Start, tmp_path: Path, port: int, kind: str, option: str) -> None:
    code = (
        f"import socket,time; s=socket.socket(socket.AF_INET, socket.{kind}); s.bind(('0.0.0.0', {port})); "
    )
    code += (
        "s.listen(); " if kind == "SOCK_STREAM" else ""
    ) + f"open('{tmp_path}/held', 'w'); time.sleep(30)"
    taken = f'python3 -c "{code}" >/dev/null 2>&1 & while [ ! -e {tmp_path}/held ]; do sleep 0.05; done'
    line = start("--mesh-port", "4001", setup=taken).refuses()
    assert option in line and str(port) in line


def test_no_such_address_here(start: Start) -> None:
    assert "--rest-api-tls-port" in start("--rest-api-host", "192.0.2.77", name="a").refuses()
    assert "192.0.2.77" in start("--mesh-host", "192.0.2.77", name="b").refuses()


def test_a_registry_configuration_that_cannot_be_used(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "registries.yaml"
    path.write_text("registries: {a.test: {insecure: true}}")
    line = start("--registry-config", str(path)).refuses()
    assert f"{path}: registries.a.test.insecure is not known" in line


def test_a_bootstrap_peer_with_another_identity_is_said_and_the_daemon_goes_on(
    start: Start, tmp_path: Path
) -> None:
    first = start("--mesh-port", "4001", name="first")
    said = first.ready()
    root = first.state / "keys" / "fabric-root"
    invite = subprocess.run(
        [BIN / "machineplane", "fabric", "invite", "--root", root], capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / "invite").write_text(invite)
    wrong = "ab" * 32
    options = ("--invite", str(tmp_path / "invite"), "--bootstrap-peer", f"{wrong}@127.0.0.1:4001")
    ports = ("--rest-api-port", "3001", "--rest-api-tls-port", "6444")
    link = "ip link show magik0 >/dev/null"  # one network: the second daemon adopts the first one's bridge
    second = start(
        *options, *ports, "--pod-subnet", bridge_subnet(first), name="second", netns=first.pid, setup=link
    )
    second.ready()
    wait_for("the warning", lambda: wrong in second.stderr and said["identity"] in second.stderr)
    assert second.process.poll() is None and "Traceback" not in second.stderr
    warnings = [line for line in second.stderr.splitlines() if wrong in line and '"warning"' in line]
    assert len(warnings) == 1, warnings


def bridge_subnet(daemon: Daemon) -> str:
    shown = subprocess.run(
        ["nsenter", f"--net=/proc/{daemon.pid}/ns/net", "ip", "-j", "-4", "addr", "show", "magik0"],
        capture_output=True,
        check=True,
    ).stdout
    (address,) = json.loads(shown)[0]["addr_info"]
    return f"{address['local'].rpartition('.')[0]}.0/{address['prefixlen']}"


def test_without_libcrun_it_serves_and_says_so_and_bids_for_nothing(start: Start) -> None:
    hide = "mkdir -p /usr/local/lib/magik; mount -t tmpfs none /usr/local/lib/magik"
    daemon = start(setup=hide)
    daemon.ready()
    reasons = {e["runtime"]: e["reason"] for e in daemon.events("runtime-unavailable")}
    assert "machineplane.runtime.libcrun_build" in reasons["crun"]
    status, _ = daemon.call("POST", "/api/v1/namespaces/default/pods", pod("once"))
    assert status == 201

    def reason() -> str:
        found = daemon.call("GET", "/api/v1/namespaces/default/pods/once")[1]["status"]
        assert found["phase"] == "Pending"
        return " ".join(c.get("message", "") for c in found.get("conditions", []))

    wait_for("the reason", lambda: "this machine has none" in reason())


def test_krun_by_name_does_not_become_crun(start: Start) -> None:
    daemon = start("--runtime", "krun")
    daemon.ready()
    assert [e["runtime"] for e in daemon.events("runtime-unavailable")] == ["krun"]
    assert not daemon.events("runtime-default")
    assert daemon.call("POST", "/api/v1/namespaces/default/pods", pod("once"))[0] == 201

    def waits() -> bool:
        found = daemon.call("GET", "/api/v1/namespaces/default/pods/once")[1]["status"]
        return "needs runtime krun, this machine has crun" in json.dumps(found)

    wait_for("the reason", waits)


def test_not_root(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o777)
    (tmp_path / "a").chmod(0o777)
    line = start(prefix=AS_NOBODY).refuses()
    assert "CAP_NET_ADMIN" in line and "run it as root" in line
    assert not (tmp_path / "a" / "s").exists()


@pytest.mark.parametrize(("place", "option"), [("s", "--state-dir"), ("r", "--run-dir")])
def test_a_directory_that_cannot_be_written(start: Start, tmp_path: Path, place: str, option: str) -> None:
    folder = tmp_path / "a" / place
    line = start(setup=f"mkdir -p {folder}; mount -t tmpfs -o ro none {folder}").refuses()
    assert f"{option} {folder}: Read-only file system" in line


def test_a_disk_that_is_full(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "s"
    mount = f"mkdir -p {folder}; mount -t tmpfs -o size=64k none {folder}"
    fill = f"{mount}; head -c 1M /dev/zero >{folder}/x 2>/dev/null || true"
    line = start(setup=fill).refuses()
    assert str(folder) in line and "No space left" in line


def test_an_expired_invite(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "root"
    run = [BIN / "machineplane", "fabric"]
    subprocess.run([*run, "init", "--out", root], check=True, capture_output=True)
    made = subprocess.run(
        [*run, "invite", "--root", root, "--expires", "1s"], check=True, capture_output=True, text=True
    ).stdout
    (tmp_path / "invite").write_text(made)
    time.sleep(1.1)
    line = start("--invite", str(tmp_path / "invite")).refuses()
    assert "--invite" in line and "invite-expired" in line and "ask for a new one" in line


def test_joining_without_an_invite(start: Start) -> None:
    line = start("--bootstrap-peer", f"{'ab' * 32}@127.0.0.1:4001").refuses()
    assert "--invite FILE" in line


def test_keys_of_the_api_that_are_none(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a/s/api").mkdir(parents=True)
    (tmp_path / "a/s/api/ca.key").write_text("rubbish")
    assert str(tmp_path / "a/s/api") in start().refuses()


def pod(name: str, **spec: object) -> bytes:
    container = {"name": "main", "image": "localhost/none:1"}
    obj = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], **spec},
    }
    return json.dumps(obj).encode()


def test_requests_that_make_no_sense_get_a_status_and_the_daemon_goes_on(start: Start) -> None:
    daemon = start()
    daemon.ready()
    pods, deployments = "/api/v1/namespaces/default/pods", "/apis/apps/v1/namespaces/default/deployments"
    cases = [
        (pods, b"{", 400, "BadRequest"),
        (pods, b"[1]", 400, "BadRequest"),
        (pods, b'{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}', 422, "Invalid"),
        (pods, pod("Not A Name"), 422, "Invalid"),
        (pods, pod("x", priority="high"), 400, "BadRequest"),
        (pods, b" " * (4 << 20) + pod("x"), 413, "RequestEntityTooLarge"),
        (deployments, pod("x"), 400, "BadRequest"),
        ("/apis/apps/v1/namespaces/default/daemonsets", b"{}", 404, "NotFound"),
        ("/apis/example.com/v1/namespaces/default/widgets", b"{}", 404, "NotFound"),
    ]
    for path, body, code, reason in cases:
        status, answer = daemon.call("POST", path, body)
        assert (status, answer["kind"], answer["reason"]) == (code, "Status", reason), (
            path,
            body[:80],
            answer,
        )
        assert answer["message"]
    status, answer = daemon.call("POST", pods, b"a: [1", content="application/yaml")
    assert (status, answer["kind"]) == (400, "Status")
    assert daemon.call("GET", pods)[0] == 200
    assert "Traceback" not in daemon.stderr
