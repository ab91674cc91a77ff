"""Two workloads on two machines speak by a service's name; what passes between the machines is listened to."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab_support import Lab, deployment, running_lab, wait_for

from machineplane.runtime.images.agent import Baked
from machineplane.runtime.images.store import machine_architecture
from magik_mesh import relay_wire

MARK = "what-nobody-but-the-two-is-to-read-" * 20
BEACON = b"a-clear-word-that-the-ear-has-to-hear"
SERVER = f"mkdir /www; echo {MARK} > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"
UDP = 17
PROBE = 39  # bytes of the longest


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two machines whose pods have the agent that is baked here."""
    assert Baked.find(machine_architecture()), (
        "no agent's image here: bake it by `python scripts/workplane_image`"
    )
    yield from running_lab("itestt", 2, tmp_path_factory.mktemp("pair"))


def start(lab: Lab) -> str:
    """A server on m1, its Service, and a client on m0, which is returned."""
    lab.kubectl("m0", "create", "service", "clusterip", "web", "--tcp=80:8080")
    lab.apply("m0", deployment("web", 1, SERVER, nodeSelector={"kubernetes.io/hostname": "m1"}))
    lab.apply(
        "m0",
        deployment("client", 1, "while :; do sleep 0.1; done", nodeSelector={"kubernetes.io/hostname": "m0"}),
    )
    assert set(lab.wait_running("m0", "web", 1).values()) == {"m1"}
    (client,) = lab.wait_running("m0", "client", 1)
    return client


# Debian's static busybox has no resolver but that of its nslookup, and its wget ends by SIGSEGV.
FETCH = """
A=$(nslookup web.default.svc.cluster.local | awk '/^Address: /{a=$2} END {print a}')
printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc "$A" 80
"""


def fetch(lab: Lab, client: str) -> str:
    return lab.kubectl("m0", "exec", client, "--", "sh", "-c", FETCH, check=False)


def wait_for_mark(lab: Lab, client: str) -> None:
    said: list[str] = []

    def attempt() -> bool:
        said[:] = [fetch(lab, client)]
        return MARK in said[0]

    try:
        wait_for("the client reaches the server by its name", attempt)
    except AssertionError as error:
        seen = lab.kubectl(
            "m0", "exec", client, "--", "nslookup", "web.default.svc.cluster.local", check=False
        )
        raise AssertionError(f"{error}; nc: {said}; nslookup: {seen}") from None


def inside(lab: Lab, machine: str, *command: str) -> list[str]:
    return ["nsenter", f"--net=/proc/{lab.machines[machine]['pid']}/ns/net", sys.executable, *command]


def host(lab: Lab, machine: str) -> str:
    return str(lab.machines[machine]["mesh"]).rpartition(":")[0]


@contextmanager
def listening(lab: Lab, path: Path) -> Iterator[None]:
    script = str(Path(__file__).with_name("wire.py"))
    command = inside(lab, "m0", script, "eth0", str(path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "listening\n"
            yield
        finally:
            process.terminate()


def frames(path: Path) -> list[bytes]:
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : end])
        at = end
    return found


def between(frame: bytes, one: str, other: str) -> bool:
    """Whether it is an IPv4 packet from one of the two hosts to the other."""
    if frame[12:14] != b"\x08\x00":
        return False
    ends = {".".join(map(str, frame[26:30])), ".".join(map(str, frame[30:34]))}
    return ends == {one, other}


def is_sealed(frame: bytes) -> bool:
    """A UDP datagram with QUIC's fixed bit (RFC 9000, 17.2 and 17.3), or a probe of the mesh, which has no room for more."""
    data = frame[14 + (frame[14] & 15) * 4 :]
    size = int.from_bytes(data[4:6], "big") - 8
    probe = data[8:].startswith(relay_wire.MAGIC) and size <= PROBE
    return frame[23] == UDP and (bool(data[8] & 0x40) or probe)


def test_pods_speak_by_name_and_nobody_between_can_read_it(pair: Lab, tmp_path: Path) -> None:
    client = start(pair)
    wait_for_mark(pair, client)
    with listening(pair, tmp_path / "wire"):
        for _ in range(5):
            assert MARK in fetch(pair, client)
        beacon = f"import socket; socket.socket(2, 2).sendto({BEACON!r}, ({host(pair, 'm1')!r}, 9))"
        subprocess.run(inside(pair, "m0", "-c", beacon), check=True)
        wait_for("the beacon is heard", lambda: BEACON in (tmp_path / "wire").read_bytes(), 10)
    heard = [f for f in frames(tmp_path / "wire") if between(f, host(pair, "m0"), host(pair, "m1"))]
    heard = [f for f in heard if BEACON not in f]  # nor the ICMP that sends it back
    assert not [f.hex() for f in heard if not is_sealed(f)]
    assert sum(map(len, heard)) > 5 * len(MARK)  # the answers are among them
    assert not any(word in frame for frame in heard for word in (MARK[:30].encode(), b"HTTP/1."))
    said = json.loads(pair.kubectl("m1", "get", "pod", client, "-o", "json"))
    assert said["spec"]["nodeName"] == "m0"


def test_a_server_that_is_killed_is_replaced_and_found_again(pair: Lab) -> None:
    """Its Deployment has two replicas then: one is deleted without grace, and requests go on."""
    (client,) = pair.wait_running("m0", "client", 1)
    pair.kubectl("m0", "patch", "deployment", "web", "-p", '{"spec": {"replicas": 2}}')
    (gone, _) = pair.wait_running("m0", "web", 2)
    wait_for_mark(pair, client)
    pair.kubectl("m0", "delete", "pod", gone, "--grace-period=0", "--force")
    time.sleep(2.0)
    assert [MARK in fetch(pair, client) for _ in range(10)] == [True] * 10
    pair.remove("m0", "web")
    pair.remove("m0", "client")
