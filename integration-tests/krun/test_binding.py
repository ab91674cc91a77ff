"""libkrun's binding: a machine is set up and entered, with the stand-in as it would be with the real one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from machineplane.runtime.images.store import machine_architecture
from machineplane.runtime.krun.binding import KrunError, Library, Share, VmPlan, VsockPort
from machineplane.runtime.krun.boot import boot, remembered_boot
from machineplane.runtime.krun.config import INIT
from magik_proto.guest import PORT

BUSYBOX = Path("/bin/busybox")
ENTER = """
import sys
from machineplane.runtime.krun.binding import *
library = Library(sys.argv[1])
library.enter(library.configure(eval(sys.argv[2])))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with busybox's shell, which is static."""
    folder = tmp_path / "root"
    for name in ("bin", "mnt/data", "work"):
        (folder / name).mkdir(parents=True)
    (folder / "bin/sh").write_bytes(BUSYBOX.read_bytes())
    (folder / "bin/sh").chmod(0o755)
    return folder


def run(library: str, plan: VmPlan) -> "subprocess.CompletedProcess[str]":
    """Enter the machine in a process of its own, as it takes it over."""
    return subprocess.run(
        [sys.executable, "-c", ENTER, library, repr(plan)], capture_output=True, text=True, timeout=30
    )


def script(root: Path, text: str, **more: object) -> VmPlan:
    return VmPlan(  # type: ignore[arg-type]
        vcpus=1, memory_mib=64, root=str(root), program="/bin/sh", arguments=("-c", text), **more
    )


def test_the_guest_gets_program_arguments_environment_and_folder(stand_in: str, root: Path) -> None:
    console = root.parent / "console"
    told = script(
        root, 'echo "$GREETING $0 $(pwd) $$"; exit 7', environment={"GREETING": "hello"}, workdir="/work"
    )
    done = run(stand_in, VmPlan(**{**_fields(told), "console": str(console)}))
    assert done.returncode == 7, done.stderr
    assert console.read_text() == "hello /bin/sh /work 1\n"


def test_a_share_is_mounted_by_its_tag(stand_in: str, root: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    done = run(stand_in, script(root, "echo there > /mnt/data/file", shares=(Share("data", str(shared)),)))
    assert done.returncode == 0, done.stderr
    assert (shared / "file").read_text() == "there\n"


def test_read_only_is_kept_or_refused(build: Callable[..., str], root: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    plan = script(root, "echo no > /mnt/data/file", shares=(Share("data", str(shared), read_only=True),))
    assert run(build(), plan).returncode == 1 and not (shared / "file").exists()
    refused = run(build("-DOLD"), plan)
    assert refused.returncode == 1 and "no krun_add_virtiofs3" in refused.stderr
    frozen = script(root, "echo no > /file", root_read_only=True)
    assert run(build(), frozen).returncode == 1 and not (root / "file").exists()


def test_ports_are_added_to_a_socket_device(stand_in: str, root: Path, tmp_path: Path) -> None:
    ports = (VsockPort(1024, str(tmp_path / "s"), listen=True),)
    assert run(stand_in, script(root, "exit 3", ports=ports)).returncode == 3


@pytest.mark.parametrize(("program", "code"), [("/bin/nothing", 127), ("/work", 126)])
def test_what_cannot_be_run_ends_as_libkrun_says(stand_in: str, root: Path, program: str, code: int) -> None:
    plan = VmPlan(vcpus=1, memory_mib=64, root=str(root), program=program)
    assert run(stand_in, plan).returncode == code


def test_a_refused_call_is_named_and_the_context_freed(stand_in: str, tmp_path: Path) -> None:
    library = Library(stand_in)
    wrong = VmPlan(vcpus=1, memory_mib=64, root=str(tmp_path / "missing"), program="/x")
    for _ in range(2):  # a second context is refused while the first is there
        with pytest.raises(KrunError, match=r"libkrun: krun_(set_root|add_virtiofs3): Invalid argument"):
            library.configure(wrong)


def test_a_guest_that_runs_makes_the_engine_available(stand_in: str) -> None:
    assert boot(stand_in, machine_architecture()) == ""


def test_a_guest_that_hangs_is_given_up(stand_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_HANGS", "1")
    assert boot(stand_in, machine_architecture(), timeout=1.0) == "a guest did not boot within 1 s"


def test_the_answer_is_remembered_for_this_library_and_kernel(
    build: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, memory = build(), tmp_path / "krun.json"
    assert remembered_boot(first, machine_architecture(), memory) == ""
    monkeypatch.setenv("STAND_IN_HANGS", "1")
    assert remembered_boot(first, machine_architecture(), memory) == ""
    assert "did not boot" in remembered_boot(build("-DOLD"), machine_architecture(), memory, timeout=1.0)
    memory.write_text("{")
    assert "did not boot" in remembered_boot(first, machine_architecture(), memory, timeout=1.0)


def test_a_real_library_takes_the_whole_plan(real: str, root: Path, tmp_path: Path) -> None:
    """Up to the entering: whether a guest boots is the machine's matter."""
    library = Library(real)
    plan = script(
        root,
        "true",
        environment={"A": "b"},
        shares=(Share("data", str(root), read_only=True),),
        ports=(VsockPort(1024, str(tmp_path / "s"), listen=True),),
        console=str(tmp_path / "console"),
        root_read_only=True,
    )
    assert library.configure(plan) >= 0


def test_a_real_library_takes_the_plan_of_a_pods_machine(real: str, root: Path, tmp_path: Path) -> None:
    """What the monitor asks for: the guest's init, its port, and the sockets of this process."""
    ports = (VsockPort(PORT, str(tmp_path / "guest.sock"), listen=True),)
    plan = VmPlan(vcpus=2, memory_mib=64, root=str(root), program=INIT, ports=ports, tsi=True)
    assert Library(real).configure(plan) >= 0


def test_a_real_boot_gives_an_answer(real: str) -> None:
    """Where KVM runs guests there is nothing to say; where it does not, why."""
    reason = boot(real, machine_architecture(), timeout=5.0)
    assert reason == "" or reason.startswith("a guest did not boot"), reason


def _fields(plan: VmPlan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in VmPlan.__annotations__}
