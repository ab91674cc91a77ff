"""exec, cp, attach and port-forward by real kubectl, through each machine to a pod on one of them.

Debian's own kubectl (1.20) speaks only SPDY here, and no package of Debian or PyPI brings a newer one: where there is none,
what needs one is skipped by its name, and Python's client (`test_python_client.py`) is what runs.
"""

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_support import IMAGE, Lab, is_ready, running_lab, wait_for

MACHINES = ("m0", "m1")
KUBECTLS = ("1.30", "1.31", "1.32", "1.33")
"""Those that speak WebSockets. Where a version is not installed its tests are skipped by name."""
VERSIONED = "/usr/lib/google-cloud-sdk/bin/kubectl."
"""Where several releases may lie side by side."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from running_lab("stest", 2, tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module", autouse=True)
def box(lab: Lab) -> None:
    lab.apply("m0", pod("box", "while :; do sleep 0.2; done"))
    wait_for("the pod runs", lambda: is_ready(lab.get("m1", "pod", "box")[0]))


def pod(name: str, script: str, **container: object) -> dict[str, object]:
    main = {
        "name": "main",
        "image": IMAGE,
        "command": ["sh", "-c", f"trap 'exit 0' TERM; {script}"],
        **container,
    }
    spec = {"terminationGracePeriodSeconds": 1, "restartPolicy": "Never", "containers": [main]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def program(version: str = "") -> str:
    """A release of kubectl; without a version any that speaks WebSockets for all of this (1.31)."""
    for candidate in (version,) if version else ("1.32", "1.33", "1.31"):
        if Path(VERSIONED + candidate).exists():
            return VERSIONED + candidate
    found = shutil.which("kubectl")
    if found and not version and _minor(found) >= 31:
        return found
    pytest.skip(f"no kubectl {version or '1.31 or later'} on this machine")


def _minor(path: str) -> int:
    said = subprocess.run([path, "version", "--client", "-o", "json"], capture_output=True, check=True).stdout
    return int(json.loads(said)["clientVersion"]["minor"].rstrip("+"))


def environment(lab: Lab, machine: str) -> dict[str, str]:
    return {**os.environ, "KUBECONFIG": str(lab.directory / machine), "HOME": str(lab.directory)}


def kubectl(
    lab: Lab, machine: str, *arguments: str, stdin: bytes = b"", version: str = ""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program(version), *arguments],
        env=environment(lab, machine),
        input=stdin,
        capture_output=True,
        timeout=60,
    )


# -- exec


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("version", KUBECTLS)
def test_exec_keeps_outputs_apart_and_passes_the_exit_code_on(lab: Lab, machine: str, version: str) -> None:
    done = kubectl(
        lab, machine, "exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7", version=version
    )
    assert done.returncode == 7
    assert done.stdout == b"out\n"
    assert done.stderr == b"err\ncommand terminated with exit code 7\n"
    assert kubectl(lab, machine, "exec", "box", "--", "true", version=version).returncode == 0


@pytest.mark.parametrize("machine", MACHINES)
def test_exec_carries_binary_stdin_to_its_end_and_back(lab: Lab, machine: str) -> None:
    data = os.urandom(300_000)
    done = kubectl(lab, machine, "exec", "-i", "box", "--", "cat", stdin=data)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")


@pytest.mark.parametrize("machine", MACHINES)
def test_exec_says_what_cannot_be_run(lab: Lab, machine: str) -> None:
    for arguments, said in (
        (("box", "--", "nosuch"), b"nosuch cannot be run"),
        (("-c", "other", "box", "--", "true"), b"container other is not valid for pod box"),
        (("nopod", "--", "true"), b'pods "nopod" not found'),
    ):
        done = kubectl(lab, machine, "exec", *arguments)
        assert done.returncode == 1 and said in done.stderr, done.stderr


def test_a_kubectl_that_speaks_only_spdy_is_told_so(lab: Lab) -> None:
    done = kubectl(lab, "m0", "exec", "box", "--", "true", version="1.28")
    assert done.returncode == 1 and b"need kubectl 1.30 or later" in done.stderr


def test_output_that_others_hold_open_does_not_hold_the_client(lab: Lab) -> None:
    began = time.monotonic()
    done = kubectl(lab, "m0", "exec", "box", "--", "sh", "-c", "sleep 20 & echo begun")
    assert (done.returncode, done.stdout) == (0, b"begun\n")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("machine", MACHINES)
def test_a_client_that_goes_takes_its_process_along(lab: Lab, machine: str) -> None:
    mark = f"31{ord(machine[1])}"
    client = subprocess.Popen(
        [program(), "exec", "box", "--", "sh", "-c", f"echo begun; sleep {mark}; true"],
        env=environment(lab, machine),
        stdout=subprocess.PIPE,
    )
    assert client.stdout is not None and client.stdout.readline() == b"begun\n"
    assert _processes(lab, mark)
    client.kill()
    client.communicate()
    wait_for("nothing of it runs", lambda: not _processes(lab, mark), 10)


def _processes(lab: Lab, mark: str) -> list[bytes]:
    listed = kubectl(lab, "m0", "exec", "box", "--", "ps", "-o", "args").stdout.splitlines()
    return [line for line in listed if b"sleep " + mark.encode() in line]


@pytest.mark.parametrize("flags", [(), ("-i",)])
def test_a_command_has_its_own_three_descriptors_and_no_other(lab: Lab, flags: tuple[str, ...]) -> None:
    script = "ls -1 /proc/$$/fd; true"
    done = kubectl(lab, "m0", "exec", *flags, "box", "--", "sh", "-c", script)
    assert done.stdout.split() == [b"0", b"1", b"2"], done.stdout


class Terminal:
    """kubectl on a terminal of ours."""

    def __init__(self, lab: Lab, machine: str, *arguments: str) -> None:
        path = program()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(path, ["kubectl", *arguments], environment(lab, machine))

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.kill(self.pid, signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, wanted: bytes, seconds: float = 20) -> bytes:
        seen, deadline = b"", time.monotonic() + seconds
        while wanted not in seen:
            assert time.monotonic() < deadline, f"{wanted!r} did not come; this did: {seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    seen += os.read(self.fd, 65536)
        return seen

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.parametrize("machine", MACHINES)
def test_a_terminal_with_its_size_its_signals_and_its_exit_code(lab: Lab, machine: str) -> None:
    terminal = Terminal(lab, machine, "exec", "-it", "box", "--", "sh")
    terminal.until(b"/ # ")
    terminal.type("tty; echo $TERM\n")
    terminal.until(b"/dev/pts/0\r\nxterm")
    for rows, columns in ((33, 99), (44, 111)):
        terminal.resize(rows, columns)

        def sized(rows: int = rows, columns: int = columns) -> bool:
            terminal.type("stty size; echo do''ne\n")
            return f"\n{rows} {columns}\r\n".encode() in terminal.until(b"done")

        wait_for("the new size", sized, 10)
    terminal.type("sleep 1000; echo code $?\n")
    time.sleep(0.3)
    terminal.type("\x03")
    terminal.until(b"^C")
    terminal.type("exit 5\n")
    terminal.until(b"exit code 5")
    assert terminal.exit_code() == 5


# -- cp


@pytest.mark.parametrize("machine", MACHINES)
def test_cp_both_ways(lab: Lab, machine: str, tmp_path: Path) -> None:
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "there" / "a").write_text("hello")
    (tmp_path / "there" / "deep" / "b").write_bytes(os.urandom(200_000))
    into = f"box:/tmp/cp-{machine}"
    assert kubectl(lab, machine, "cp", str(tmp_path / "there"), into).returncode == 0
    assert kubectl(lab, machine, "cp", into, str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back" / "a").read_text() == "hello"
    assert (tmp_path / "back" / "deep" / "b").read_bytes() == (tmp_path / "there" / "deep" / "b").read_bytes()


# -- attach


@pytest.mark.parametrize("machine", MACHINES)
def test_attach_shows_output_from_now_on_and_leaves_the_container_alone(lab: Lab, machine: str) -> None:
    script = "echo early; while :; do sleep 0.3; echo out; echo err >&2; done"
    lab.apply("m0", pod("talk", script))
    wait_for("the pod runs", lambda: is_ready(lab.get("m1", "pod", "talk")[0]))
    with subprocess.Popen(
        [program(), "attach", "talk"],
        env=environment(lab, machine),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        assert client.stdout is not None and client.stderr is not None
        assert client.stdout.readline() == b"out\n"
        assert b"err\n" in (client.stderr.readline(), client.stderr.readline())
        client.kill()
    assert is_ready(lab.get("m1", "pod", "talk")[0])
    refused = kubectl(lab, machine, "attach", "-i", "talk")
    assert refused.returncode == 1 and b"stdin" in refused.stderr, refused.stderr


@pytest.mark.parametrize("machine", MACHINES)
def test_attach_gives_stdin_and_ends_with_the_container(lab: Lab, machine: str) -> None:
    name = f"read-{machine}"
    script = "while read line; do echo got $line; done; echo end of stdin"
    lab.apply("m0", pod(name, script, stdin=True, stdinOnce=True))
    wait_for("the pod runs", lambda: is_ready(lab.get("m1", "pod", name)[0]))
    done = kubectl(lab, machine, "attach", "-i", name, stdin=b"one\ntwo\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"got one\ngot two\nend of stdin\n"
    wait_for("it has ended", lambda: lab.get(machine, "pod", name)[0]["status"]["phase"] == "Succeeded", 10)


# -- nothing is left


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _memory(pid: int) -> int:
    """kB that are this process's own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


def _helpers(daemon: int) -> set[int]:
    """The shims and zygotes of the machine's process namespace, by the daemon's."""
    space = os.readlink(f"/proc/{daemon}/ns/pid")
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "ns" / "pid") == space:
                found |= {int(entry.name)} if (entry / "comm").read_text().startswith("magik-") else set()
    return found


def test_a_hundred_execs_leave_nothing(lab: Lab) -> None:
    owner = lab.get("m0", "pod", "box")[0]["spec"]["nodeName"]
    other = next(machine for machine in MACHINES if machine != owner)
    daemons = [int(lab.machines[machine]["pid"]) for machine in MACHINES]

    def rounds(count: int) -> None:
        for number in range(count):
            machine = owner if number % 2 else other
            assert kubectl(lab, machine, "exec", "-i", "box", "--", "cat", stdin=b"x").stdout == b"x"

    def count() -> tuple[list[int], list[int], list[int]]:
        pids = sorted({*daemons, *_helpers(daemons[MACHINES.index(owner)])})
        return pids, [_open_files(pid) for pid in pids], [_memory(pid) for pid in pids]

    rounds(10)
    pids, files, memory = count()
    rounds(100)

    def settled() -> bool:
        now, open_now, _ = count()
        return now == pids and all(new <= old + 2 for new, old in zip(open_now, files, strict=True))

    wait_for("no process and no descriptor more than before", settled, 20)
    grown = [new - old for new, old in zip(count()[2], memory, strict=True)]
    assert max(grown) < 8_000, f"kB grown by 100 execs: {dict(zip(pids, grown, strict=True))}"


# -- port-forward


@contextlib.contextmanager
def forwarding(lab: Lab, machine: str, version: str, name: str, remote: int) -> Iterator[int]:
    client = subprocess.Popen(
        [program(version), "port-forward", name, f":{remote}"],
        env=environment(lab, machine),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert client.stdout is not None
        line = client.stdout.readline()
        assert line.startswith(b"Forwarding from 127.0.0.1:"), (line, client.poll())
        yield int(line.split()[2].rpartition(b":")[2])
    finally:
        client.kill()
        client.communicate()


@pytest.fixture(scope="module")
def echo(lab: Lab) -> Iterator[str]:
    """A pod in which port 7000 gives back what comes."""
    script = "exec nc -ll -p 7000 -e cat"
    lab.apply("m0", pod("echo", script))
    wait_for("the pod runs", lambda: is_ready(lab.get("m1", "pod", "echo")[0]))
    yield "echo"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("version", KUBECTLS[1:])
def test_port_forward_carries_connections_side_by_side(
    lab: Lab, echo: str, machine: str, version: str
) -> None:
    data = os.urandom(200_000)
    with (
        forwarding(lab, machine, version, echo, 7000) as port,
        socket.create_connection(("127.0.0.1", port)) as idle,
    ):
        idle.settimeout(20)
        with socket.create_connection(("127.0.0.1", port)) as busy:
            busy.settimeout(20)
            assert _exchange(busy, data) == data
        assert _exchange(idle, b"still here") == b"still here"


def _exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send in pieces, and read as much back."""
    got = b""
    for sent in range(0, len(data), 20_000):
        sock.sendall(data[sent : sent + 20_000])
        while len(got) < min(sent + 20_000, len(data)):
            got += sock.recv(65536)
    return got


@pytest.mark.parametrize("machine", MACHINES)
def test_port_forward_says_where_nobody_listens(lab: Lab, machine: str) -> None:
    with subprocess.Popen(
        [program(), "port-forward", "box", ":7999"],
        env=environment(lab, machine),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        assert client.stdout is not None and client.stderr is not None
        port = int(client.stdout.readline().split()[2].rpartition(b":")[2])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(10) == b""
        assert b"connection refused" in client.stderr.readline()
        client.kill()
