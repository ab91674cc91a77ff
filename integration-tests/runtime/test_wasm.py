"""WebAssembly pods: a module as an image, run with volumes, limits, logs and exit codes like any other."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import wasmtime

from machineplane.runtime import PodStatus
from machineplane.runtime.errors import SessionUnavailable
from machineplane.runtime.execs import ExecRequest
from machineplane.runtime.images.make import module_image

HEAD = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $say (param $to i32) (param $from i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $from)) (i32.store (i32.const 4) (local.get $length))
    (drop (call $write (local.get $to) (i32.const 0) (i32.const 1) (i32.const 8))))
"""
# Says a line, writes it into the volume as well (its file is descriptor 4, after the root), and ends with 7.
WRITER = (
    HEAD
    + """(data (i32.const 100) "hello from wasm\\n") (data (i32.const 200) "data/file")
  (func (export "_start")
    (call $say (i32.const 1) (i32.const 100) (i32.const 16))
    (if (call $open (i32.const 3) (i32.const 1) (i32.const 200) (i32.const 9) (i32.const 1)
          (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 300))
      (then (call $exit (i32.const 1))))
    (call $say (i32.load (i32.const 300)) (i32.const 100) (i32.const 16))
    (call $exit (i32.const 7))))"""
)
FOREVER = (
    HEAD
    + """(data (i32.const 100) "ready\\n")
  (func (export "_start") (call $say (i32.const 1) (i32.const 100) (i32.const 6)) (loop $again (br $again))))"""
)


def module_pod(pod: Callable[..., dict[str, Any]], runtime: Any, text: str, **spec: Any) -> dict[str, Any]:
    archive = module_image(bytes(wasmtime.wat2wasm(text)), "localhost/app:1")
    runtime.images.import_file(io.BytesIO(archive), None)
    made = pod("", **spec)
    container = made["spec"]["containers"][0]
    del container["command"]
    container["image"] = "localhost/app:1"
    return made


async def test_a_module_writes_to_its_log_and_its_volume(bench: Any, pod: Any, log: Any) -> None:
    volume = {"name": "v", "emptyDir": {}}
    mounts = {"volumeMounts": [{"name": "v", "mountPath": "/data"}]}
    async with bench.open() as runtime:
        made = module_pod(pod, runtime, WRITER, container=mounts, volumes=[volume])
        uid = made["metadata"]["uid"]
        ended = await run_to_end(runtime, made)
        assert ended.containers[0].exit_code == 7
        assert await log(runtime, uid) == "hello from wasm\n"
        written = bench.config.pod_dir(uid) / "volumes" / "v" / "file"
        assert written.read_text() == "hello from wasm\n"


async def test_a_module_that_never_ends_is_stopped_in_time(
    bench: Any, pod: Any, eventually: Any, log: Any
) -> None:
    limits = {"resources": {"limits": {"memory": "128Mi", "cpu": "500m"}}}
    async with bench.open() as runtime:
        made = module_pod(pod, runtime, FOREVER, container=limits)
        uid = made["metadata"]["uid"]
        await runtime.run_pod(made, engine="wasm")
        found = ""
        while found != "ready\n":
            found = await log(runtime, uid)
        with pytest.raises(SessionUnavailable, match="no other programs"):
            async with runtime.execute(uid, "main", ExecRequest(command=("sh",))):
                pass
        await runtime.stop_pod(uid, 10)


async def test_a_module_is_no_container(bench: Any, pod: Any) -> None:
    async with bench.open() as runtime:
        made = module_pod(pod, runtime, FOREVER)
        state = await runtime.run_pod(made, engine="crun")
        async with runtime.changes() as changes:
            while not state.containers or state.containers[0].reason != "CreateContainerConfigError":
                change = await anext(aiter(changes))
                state = change if isinstance(change, PodStatus) else state
        assert "annotate the workload magik.io/runtime: wasm" in state.containers[0].message
        await runtime.stop_pod(made["metadata"]["uid"], 0)


async def run_to_end(runtime: Any, made: dict[str, Any]) -> PodStatus:
    async with runtime.changes() as changes:
        await runtime.run_pod(made, engine="wasm")
        async for change in changes:
            if isinstance(change, PodStatus) and change.phase in ("Succeeded", "Failed"):
                return change
    raise AssertionError("the channel of changes ended")
