"""Run one WebAssembly module under WASI: the first process of a container whose engine is ``wasm``.

A program by itself: it is started by its path, isolated, in a container that has Python and the package wasmtime but
nothing else of Magik. ``runner.py OPTIONS MODULE ARGUMENT…``; OPTIONS is JSON: ``root`` (the folder that the guest sees as
``/``), ``cwd`` (inside it), ``environment`` and ``memory`` (bytes of linear memory, 0 for the container's own limit alone).

It ends with the guest's exit code; 134 after a trap, 126 where the module cannot be run, 127 where it is not there, and
128 + n after signal n, as a shell would say.
"""

import json
import os
import signal
import sys
import threading
from typing import Any

import wasmtime

NOT_THERE = 127
NOT_RUNNABLE = 126
TRAPPED = 134  # what a program that aborts ends with: 128 + SIGABRT
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def find_module(root: str, cwd: str, name: str) -> str | None:
    """Where the module lies on this side; None if it is not a file inside ``root``."""
    base = os.path.realpath(root)
    path = os.path.realpath(os.path.join(base, os.path.join(cwd, name).lstrip("/")))
    inside = path.startswith(base.rstrip("/") + "/")
    return path if inside and os.path.isfile(path) else None


def run_module(path: str, options: dict[str, Any], words: list[str]) -> int:
    """Run the module's ``_start``; what it ends with."""
    engine = wasmtime.Engine()
    try:
        module = wasmtime.Module.from_file(engine, path)
    except (wasmtime.WasmtimeError, OSError) as error:
        return _fail(NOT_RUNNABLE, f"{words[0]} is no module that can be run: {error}")
    store = wasmtime.Store(engine)
    if options["memory"]:
        store.set_limits(memory_size=options["memory"])
    store.set_wasi(_wasi(options, words))
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    try:
        start = linker.instantiate(store, module).exports(store).get("_start")
    except wasmtime.WasmtimeError as error:
        return _fail(NOT_RUNNABLE, f"{words[0]} cannot be started: {error}")
    if not isinstance(start, wasmtime.Func):
        return _fail(NOT_RUNNABLE, f"{words[0]} is no command: it has no function _start")
    return _call(store, start)


def _wasi(options: dict[str, Any], words: list[str]) -> wasmtime.WasiConfig:
    wasi = wasmtime.WasiConfig()
    wasi.argv = words
    wasi.env = list(options["environment"].items())
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    wasi.preopen_dir(options["root"], "/")
    return wasi


def _call(store: wasmtime.Store, start: wasmtime.Func) -> int:
    try:
        start(store)
    except wasmtime.ExitTrap as ended:
        return int(ended.code)
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        return _fail(TRAPPED, str(error))
    return 0


def _fail(status: int, message: str) -> int:
    print(message, file=sys.stderr)
    return status


def _run(path: str, options: dict[str, Any], words: list[str]) -> None:
    status = TRAPPED
    try:
        status = run_module(path, options, words)
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """The guest gets a thread, and this one waits for signals: whoever runs the guest sees none until it returns."""
    options, words = json.loads(sys.argv[1]), sys.argv[2:]
    path = find_module(options["root"], options["cwd"], words[0])
    if path is None:
        os._exit(_fail(NOT_THERE, f"{words[0]}: no such module in the image"))
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # for the guest's thread as well
    threading.Thread(target=_run, args=(path, options, words), daemon=True).start()
    os._exit(128 + signal.sigwait(_ENDING))


if __name__ == "__main__":
    main()
