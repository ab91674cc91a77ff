"""The trial boot, as far as it goes without a library: the program, and what is said where nothing can be loaded."""

import subprocess
from pathlib import Path

from machineplane.runtime.images.store import machine_architecture
from machineplane.runtime.krun.boot import GUEST_EXIT_CODE, boot, exit_program


def test_the_program_ends_with_its_number(tmp_path: Path) -> None:
    program = tmp_path / "exit"
    program.write_bytes(exit_program(machine_architecture()))
    program.chmod(0o755)
    assert subprocess.run([program]).returncode == GUEST_EXIT_CODE


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    library = tmp_path / "libkrun.so.1"
    library.write_bytes(b"no library")
    reason = boot(str(library), machine_architecture())
    assert (
        reason.startswith("a guest did not boot: the machine ended with 1: libkrun: ")
        and str(library) in reason
    )


def test_an_architecture_without_a_program_is_told() -> None:
    assert boot("/nowhere", "riscv64") == "no program for a guest on riscv64"
