"""The guest's init as an ordinary process: what the stand-in cannot show, for its guests may mount nothing."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import workplane
from machineplane.runtime.orphans import children
from magik_proto import guest as wire
from workplane.guest.init import LISTENER

pytestmark = pytest.mark.root
SITES = [str(Path(module.__file__).parents[1]) for module in (wire, workplane) if module.__file__]
RUN = f"import sys; sys.path[:0] = {SITES!r}; from workplane.guest."
APP = {"first": True, "grace": 30}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with busybox alone."""
    (tmp_path / "root/bin").mkdir(parents=True)
    for name in ("sh", "cat", "mount", "hostname", "sleep", "grep", "id", "setsid"):
        (tmp_path / "root/bin" / name).write_bytes(Path("/bin/busybox").read_bytes())
        (tmp_path / "root/bin" / name).chmod(0o755)
    return tmp_path / "root"


@pytest.mark.parametrize("privileged", [False, True])
def test_a_kernel_of_its_own_is_furnished(root: Path, *, privileged: bool) -> None:
    """In namespaces that end with it. What was put below /dev for the app, a file and a folder, stays in sight; no more."""
    (root / "dev/volume").mkdir(parents=True)
    (root / "dev/volume/mine").touch()
    (root / "dev/termination-log").touch()
    (root / "dev/of-the-image").touch()
    (root / "etc").mkdir()
    (root / "etc/hostname").write_text("own\n")
    text = (
        "hostname; cat /proc/self/comm; test -c /dev/null && echo null; test -d /sys/class && echo sys;"
        "echo words > /dev/termination-log; mount | grep -q ' /sys .*[(]ro,' && echo read-only;"
        "test -e /dev/volume/mine && echo volume; test -e /dev/of-the-image || echo hidden; mount | grep -c ' /dev/'"
    )
    code = f"{RUN}furnish import furnish; import os; kept = ['/dev/termination-log', '/dev/volume', '/dev/none'];"
    code += f"furnish({str(root)!r}, kept, privileged={privileged}); os.chroot({str(root)!r});"
    code += "os.execv('/bin/sh', ['sh', '-c', sys.argv[1]])"
    isolated = ["unshare", "--mount", "--uts", "--pid", "--fork"]
    done = subprocess.run(
        [*isolated, sys.executable, "-ISB", "-c", code, text], capture_output=True, text=True, timeout=30
    )
    told = [*([] if privileged else ["read-only"]), "volume", "hidden"]
    assert done.stdout.splitlines()[:-1] == ["own", "cat", "null", "sys", *told], done.stderr
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
        code = f"{RUN}init import Init; import socket; listener = socket.socket(fileno={listener.fileno()});"
        code += f"sys.exit(Init(listener, {str(root)!r}).run())"
        command = [sys.executable, "-ISB", "-c", code]
        self.process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        listener.close()

    def app(self, *words: str, **more: object) -> "Link":
        """Run the app."""
        return self.run(*words, **APP, **more)

    def beside(self, *words: str, **more: object) -> "Link":
        """Run something beside an app that only waits."""
        if not self.links:
            assert self.app("sleep", "1000").take() == (wire.STARTED, b"")
        return self.run(*words, **more)

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
    everything = children({running.process.pid})  # which would end with a kernel of its own
    for link in running.links:
        link.sock.close()
    for pid in everything:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    running.process.wait()


def test_it_ends_with_the_app_and_its_code_and_the_others_before(guest: Guest) -> None:
    app = guest.app("sh", "-c", "echo hello; read x; exit 7")
    assert [app.take() for _ in range(2)] == [(wire.STARTED, b""), (wire.STDOUT, b"hello\n")]
    other = guest.run("sh", "-c", "sleep 1000")
    assert other.take() == (wire.STARTED, b"")
    app.sock.sendall(wire.frame(wire.STDIN, b"go\n"))
    assert other.take() == (wire.EXIT, bytes([137]))
    assert [kind for kind, _ in (app.take(), app.take())] == [wire.TAKEN, wire.EXIT]
    assert guest.process.wait(20) == 7


def test_nothing_runs_before_the_app_and_there_is_one(guest: Guest) -> None:
    with pytest.raises((EOFError, ConnectionResetError)):
        guest.run("sh", "-c", "exit 3").take()
    app = guest.app("sleep", "1000")
    assert app.take() == (wire.STARTED, b"")
    with pytest.raises((EOFError, ConnectionResetError)):
        guest.app("sh", "-c", "exit 3").take()
    assert guest.run("sh", "-c", "exit 3").take() == (wire.STARTED, b"")


def test_told_to_end_the_app_has_its_grace_and_is_then_killed(guest: Guest) -> None:
    app = guest.run(
        "sh", "-c", "trap 'echo told' TERM; echo up; while :; do sleep 0.02; done", first=True, grace=0.5
    )
    assert [app.take() for _ in range(2)][1] == (wire.STDOUT, b"up\n")
    app.sock.sendall(wire.frame(wire.SIGNAL, bytes([signal.SIGTERM])))
    assert app.take() == (wire.STDOUT, b"told\n")
    assert app.take() == (wire.EXIT, bytes([137]))
    assert guest.process.wait(20) == 137


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def pending(pid: int) -> bool:
    """Whether a process has a signal that it has not taken yet: one that ends it does so when it next runs."""
    status = Path(f"/proc/{pid}/status").read_text()
    return any(
        int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))
    )


def wait_for_the_end_of(pid: int) -> None:
    """Within 20 s."""
    deadline = time.monotonic() + 20
    while runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("as_app", [True, False])
def test_a_signal_is_for_a_process_and_its_group_but_for_the_app_alone(
    guest: Guest, root: Path, *, as_app: bool
) -> None:
    (root / "dev").mkdir()
    (root / "dev/null").touch()  # for the shell's background job
    script = "trap 'echo above' USR1; sh -c 'echo $$; exec sleep 1000' & while :; do sleep 0.02; done"
    link = (guest.app if as_app else guest.beside)("sh", "-c", script)
    below = [link.take() for _ in range(2)][1][1]
    for _ in range(3):  # the first reaches all at once, if it reaches them; then they have had their time
        link.sock.sendall(wire.frame(wire.SIGNAL, bytes([signal.SIGUSR1])))
        while link.take() != (wire.STDOUT, b"above\n"):
            pass  # the shell says which signal ended its sleep
    if as_app:
        assert runs(int(below)) and not pending(int(below))
    else:
        wait_for_the_end_of(int(below))


def test_whose_peer_goes_is_killed_with_its_group(guest: Guest, root: Path) -> None:
    (root / "dev").mkdir()
    (root / "dev/null").touch()
    link = guest.beside("sh", "-c", "sleep 1000 & echo $!; wait")
    assert link.take() == (wire.STARTED, b"")
    below = int(link.take()[1])
    link.sock.close()
    wait_for_the_end_of(below)


def test_a_process_has_the_user_groups_and_rights_that_were_asked_for_and_no_others(guest: Guest) -> None:
    """Seen from outside. The init's own groups, of whoever runs this test, are not its."""
    user = {"uid": 1000, "gid": 2000, "additionalGids": [3000]}
    rights = {"bounding": ["CAP_KILL"]}
    link = guest.beside(
        "sh", "-c", "echo $$; sleep 1000", user=user, capabilities=rights, noNewPrivileges=True
    )
    assert link.take() == (wire.STARTED, b"")
    told = Path(f"/proc/{int(link.take()[1])}/status").read_text()
    status = dict(line.split(":\t", 1) for line in told.splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["1000"] * 4 and status["Gid"].split() == ["2000"] * 4
    assert status["Groups"].split() == ["3000"]
    assert int(status["CapBnd"], 16) == 1 << 5 and status["NoNewPrivs"] == "1"  # CAP_KILL is 5


def test_a_machine_whose_side_goes_away_ends(guest: Guest) -> None:
    first = guest.app("sh", "-c", "sleep 1000")
    assert first.take() == (wire.STARTED, b"")
    first.sock.close()
    assert guest.process.wait(20) == 125


def test_orphans_are_reaped(guest: Guest, root: Path) -> None:
    """A grandchild whose parent has ended is nobody's; it is no zombie for long."""
    (root / "dev").mkdir()
    (root / "dev/null").touch()  # for the shell's background job
    link = guest.beside("sh", "-c", "(sh -c 'echo $$; exec sleep 0.2' &) ; sleep 1")
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
    guest.app("sleep", "1000").take()
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
        kind, told = guest.beside("sh", **process).take()
        assert (kind, told[0]) == (wire.REFUSED, 126), told
    assert guest.run("sh", "-c", "exit 3").take() == (wire.STARTED, b"")


def test_the_variable_that_names_its_listener_is_not_the_programs(guest: Guest) -> None:
    link = guest.beside("sh", "-c", f"echo ${{{LISTENER}-none}}")
    assert [link.take() for _ in range(2)][1] == (wire.STDOUT, b"none\n")
