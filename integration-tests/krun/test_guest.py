"""The guest's init as an ordinary process: what the stand-in cannot show, for its guests may mount nothing."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from machineplane.runtime.krun.guest import wire
from machineplane.runtime.krun.guest.init import LISTENER

pytestmark = pytest.mark.root
GUEST = Path(wire.__file__).parents[1]
RUN = f"import sys; sys.path.insert(0, {str(GUEST)!r}); from guest.init import "


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with busybox alone."""
    (tmp_path / "root/bin").mkdir(parents=True)
    for name in ("sh", "cat", "mount", "hostname", "sleep"):
        (tmp_path / "root/bin" / name).write_bytes(Path("/bin/busybox").read_bytes())
        (tmp_path / "root/bin" / name).chmod(0o755)
    return tmp_path / "root"


def test_a_kernel_of_its_own_is_furnished(root: Path) -> None:
    """In namespaces that end with it. What was put below /dev for the program, its last words' file, stays in sight."""
    (root / "dev").mkdir()
    (root / "dev/termination-log").touch()
    (root / "etc").mkdir()
    (root / "etc/hostname").write_text("own\n")
    text = (
        "hostname; cat /proc/self/comm; test -c /dev/null && echo null; test -d /sys/class && echo sys;"
        "echo words > /dev/termination-log; echo x 2>/dev/null > /sys/x || echo read-only"
    )
    code = f"{RUN} furnish; import os; furnish({str(root)!r}); os.chroot({str(root)!r});"
    code += "os.execv('/bin/sh', ['sh', '-c', sys.argv[1]])"
    isolated = ["unshare", "--mount", "--uts", "--pid", "--fork"]
    done = subprocess.run(
        [*isolated, sys.executable, "-ISB", "-c", code, text], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.splitlines() == ["own", "cat", "null", "sys", "read-only"], done.stderr
    assert (root / "dev/termination-log").read_text() == "words\n"
    assert not (root / "proc/self").exists()


class Guest:
    """A running init, and the way to it."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.links: list[Link] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        code = f"{RUN} Init; import socket; sys.exit(Init(socket.socket(fileno={listener.fileno()}), {str(root)!r}).run())"
        command = [sys.executable, "-ISB", "-c", code]
        self.process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        listener.close()

    def run(self, *words: str, **more: object) -> "Link":
        return self.link({"args": list(words), "env": [], "cwd": "/", **more})

    def link(self, process: dict[str, object] | None = None) -> "Link":
        self.links.append(Link(self.path, process))
        return self.links[-1]


class Link:
    def __init__(self, path: Path, process: dict[str, object] | None) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(path))
        self._frames, self._got = wire.Frames(), list[tuple[bytes, bytes]]()
        if process is not None:
            self.sock.sendall(wire.spawn(process))

    def take(self) -> tuple[bytes, bytes]:
        while not self._got:
            data = self.sock.recv(4096)
            if not data:
                raise EOFError
            self._got += self._frames.feed(data)
        return self._got.pop(0)


@pytest.fixture
def guest(tmp_path: Path, root: Path) -> Iterator[Guest]:
    running = Guest(tmp_path / "sock", root)
    yield running
    for link in running.links:
        link.sock.close()
    running.process.kill()
    running.process.wait()


def test_it_ends_with_the_machines_own_program_and_its_code(guest: Guest) -> None:
    other = guest.run("sh", "-c", "sleep 1000")
    assert other.take() == (wire.STARTED, b"")
    first = guest.run("sh", "-c", "echo hello; exit 7", first=True)
    assert [first.take() for _ in range(3)] == [
        (wire.STARTED, b""),
        (wire.STDOUT, b"hello\n"),
        (wire.EXIT, b"\x07"),
    ]
    assert guest.process.wait(20) == 7


def test_a_machine_whose_side_goes_away_ends(guest: Guest) -> None:
    first = guest.run("sh", "-c", "sleep 1000", first=True)
    assert first.take() == (wire.STARTED, b"")
    first.sock.close()
    assert guest.process.wait(20) == 125


def test_orphans_are_reaped(guest: Guest, root: Path) -> None:
    """A grandchild whose parent has ended is nobody's; it is no zombie for long."""
    (root / "dev").mkdir()
    (root / "dev/null").touch()  # for the shell's background job
    link = guest.run("sh", "-c", "(sh -c 'echo $$; exec sleep 0.2' &) ; sleep 1")
    assert link.take() == (wire.STARTED, b"")
    orphan = int(link.take()[1])
    assert link.take() == (wire.EXIT, b"\0")
    assert not os.path.exists(f"/proc/{orphan}")


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff\xff",
        wire.frame(wire.STDOUT, b"x"),
        wire.frame(wire.SPAWN, b"{}"),
        wire.frame(wire.STDIN, b"x" * 65536) * 2,
        wire.frame(wire.RESIZE, b"x"),
    ],
)
def test_who_does_not_speak_the_protocol_is_cut_off_alone(guest: Guest, said: bytes) -> None:
    link = guest.link()
    link.sock.sendall(said)
    with pytest.raises((EOFError, ConnectionResetError)):
        while True:
            link.take()
    assert guest.run("sh", "-c", "exit 3").take() == (wire.STARTED, b"")


def test_odd_processes_are_refused_with_the_reason_and_nothing_ends(guest: Guest) -> None:
    for process in (
        {"rlimits": [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]},
        {"capabilities": {"bounding": ["CAP_NONE"]}},
        {"user": {"uid": -7}},
        {"env": ["no equals sign"]},
    ):
        kind, told = guest.run("sh", **process).take()
        assert (kind, told[0]) == (wire.REFUSED, 126), told
    assert guest.run("sh", "-c", "exit 3").take() == (wire.STARTED, b"")


def test_the_variable_that_names_its_listener_is_not_the_programs(guest: Guest) -> None:
    link = guest.run("sh", "-c", f"echo ${{{LISTENER}-none}}")
    assert [link.take() for _ in range(2)][1] == (wire.STDOUT, b"none\n")
