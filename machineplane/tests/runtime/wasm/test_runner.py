"""The runner as a container would start it: a program of its own, given options, a module and arguments."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from machineplane.runtime.wasm.config import RUNNER

HEAD = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
"""
TRAP = HEAD + '(func (export "_start") unreachable))'
QUIET = HEAD + '(func (export "_start")))'
FOREVER = (
    HEAD
    + '(func (export "_start") (call $say) (loop $again (br $again)))'
    + """
  (data (i32.const 100) "ready\\n")
  (func $say
    (i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 6))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"""
)
# Ends with 16 × the number of arguments + that of variables.
COUNT = (
    HEAD
    + """(func (export "_start")
  (drop (call $args (i32.const 0) (i32.const 4))) (drop (call $environ (i32.const 8) (i32.const 12)))
  (call $exit (i32.add (i32.mul (i32.const 16) (i32.load (i32.const 0))) (i32.load (i32.const 8))))))"""
)
# Grows its memory by 64 pages of 64 KiB, and ends with 9 if it may not.
GROW = (
    HEAD
    + """(func (export "_start")
  (if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then (call $exit (i32.const 9))))))"""
)


def opening(path: str) -> str:
    """Opens a path below the first folder that it was given; ends with WASI's error number."""
    return (
        HEAD
        + f"""(data (i32.const 64) "{path}")
      (func (export "_start") (call $exit (call $open (i32.const 3) (i32.const 1)
        (i32.const 64) (i32.const {len(path)}) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 0)))))"""
    )


Command = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    root = tmp_path / "image"
    root.mkdir()

    def made(text: str, *words: str, name: str = "app.wasm", **options: Any) -> list[str]:
        (root / "app.wasm").write_bytes(wasmtime.wat2wasm(text))
        given = {"root": str(root), "cwd": "/", "environment": {}, "memory": 0, **options}
        return [sys.executable, "-I", str(RUNNER), json.dumps(given), name, *words]

    return made


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_module_that_returns_has_done_well(command: Command) -> None:
    assert run(command(QUIET)).returncode == 0


def test_arguments_environment_and_exit_code(command: Command) -> None:
    """The module's own name is its first argument; of this process's environment it sees nothing."""
    assert run(command(COUNT, "a", "b", environment={"A": "1"})).returncode == 16 * 3 + 1


def test_a_trap_is_told(command: Command) -> None:
    done = run(command(TRAP))
    assert done.returncode == 134 and "unreachable" in done.stderr


def test_memory_is_limited(command: Command) -> None:
    assert run(command(GROW)).returncode == 0
    assert run(command(GROW, memory=1 << 20)).returncode == 9


@pytest.mark.parametrize("name", ["none.wasm", "/", "../secret.wasm", "link.wasm"])
def test_only_what_lies_in_the_image_is_a_module(command: Command, tmp_path: Path, name: str) -> None:
    words = command(QUIET, name=name)
    (tmp_path / "secret.wasm").write_bytes(wasmtime.wat2wasm(QUIET))
    (tmp_path / "image" / "link.wasm").symlink_to(tmp_path / "secret.wasm")
    done = run(words)
    assert done.returncode == 127 and name in done.stderr


def test_what_is_no_module_is_told(command: Command, tmp_path: Path) -> None:
    words = command(QUIET)
    (tmp_path / "image" / "app.wasm").write_bytes(b"#!/bin/sh")
    assert run(words).returncode == 126
    assert run(command("(module)")).returncode == 126


def test_the_guest_sees_the_image_and_nothing_around_it(command: Command, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    words = command(opening("app.wasm"))
    (tmp_path / "image" / "out").symlink_to("../secret")
    assert run(words).returncode == 0
    for path in ("../secret", "out", "missing"):
        assert run(command(opening(path))).returncode > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_module_that_never_returns(command: Command, number: signal.Signals) -> None:
    with subprocess.Popen(command(FOREVER), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        try:
            assert process.wait(timeout=30) == 128 + number
        finally:
            process.kill()
