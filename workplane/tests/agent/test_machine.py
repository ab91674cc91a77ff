"""Calls to a machine that is of another version, broken, slow, or not there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from rig import UID

from magik_proto.identity import Identity
from workplane.answers import AnswerError, Passport, State
from workplane.machine import MAX_BODY, Machine, MachineError, patiently

KEY = Identity.generate().peer_id
PASSPORT: dict[str, Any] = {
    "pass": None,
    "root": None,
    "advertise": ["192.0.2.1:30001"],
    "pod": {"metadata": {"name": "web-1"}, "spec": {"containers": [{"name": "app"}]}},
    "uid": str(UID),
    "generation": 3,
    "replicas": 0,
}
STATE: dict[str, Any] = {"version": 1, "containers": {"app": "1"}, "generation": 1, "replicas": 2}


@asynccontextmanager
async def machine_that_says(folder: Path, answer: bytes) -> AsyncIterator[tuple[Machine, list[bytes]]]:
    """A socket at which every request gets these bytes."""
    asked: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        asked.append(bytes(await stream.receive_some(65_536)))
        with suppress(trio.BrokenResourceError):  # it has had enough
            await stream.send_all(answer)

    path = folder / "machine.sock"
    listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listening.bind(str(path))
    listening.listen(8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
        yield Machine(f"unix:{path}", "the token"), asked
        nursery.cancel_scope.cancel()


def ok(value: object, status: str = "200 OK") -> bytes:
    body = json.dumps(value).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def test_a_call_names_its_token_and_fields_not_known_are_left_aside(tmp_path: Path) -> None:
    async with machine_that_says(tmp_path, ok(PASSPORT | {"of a later version": [1]})) as (machine, asked):
        passport = await machine.passport(KEY)
    assert (passport.generation, passport.replicas, passport.uid) == (3, 0, UID)
    head = asked[0].decode()
    assert head.startswith("POST /v1/pass HTTP/1.1\r\n") and "Bearer the token" in head
    assert json.loads(head.partition("\r\n\r\n")[2]) == {"key": str(KEY)}
    assert "the token" not in repr(machine)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP"),
        (b"", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{]}", "no JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000, "no JSON"),
        (ok("x" * MAX_BODY), f"more than {MAX_BODY} bytes"),
        (ok(PASSPORT | {"uid": "no"}), "uid: expected a UUID"),
        (ok({"message": "who is this?"}, "401 Unauthorized"), r"who is this\? \(HTTP status 401\)"),
        (ok([1], "500 Oops"), "HTTP status 500"),
    ],
)
async def test_whatever_the_machine_says_is_an_error_with_a_reason(
    answer: bytes, why: str, tmp_path: Path
) -> None:
    async with machine_that_says(tmp_path, answer) as (machine, _):
        with pytest.raises(MachineError, match=why) as error:
            await machine.passport(KEY)
    assert "/v1/pass" in str(error.value) and isinstance(error.value, OSError)


async def test_a_machine_that_is_not_there_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="is machineplane running there"):
        await Machine(f"unix:{tmp_path}/none.sock", "t").state(0)


async def test_a_service_that_is_not_there_is_none(tmp_path: Path) -> None:
    async with machine_that_says(tmp_path, ok({}, "404 Not Found")) as (machine, _):
        assert await machine.service("default", "web") is None
        with pytest.raises(MachineError):
            await machine.restart("app", "for no reason")


async def test_patience_tries_until_it_works_unless_told_otherwise(autojump_clock: object) -> None:
    tried: list[float] = []

    async def call() -> str:
        tried.append(trio.current_time())
        if len(tried) < 8:
            raise MachineError("a call", "not yet", 409 if len(tried) == 7 else None)
        return "done"

    with pytest.raises(MachineError):
        await patiently(call, unless=409)
    assert await patiently(call) == "done"
    waits = [later - sooner for sooner, later in pairwise(tried[:7])]
    assert 0.1 <= waits[0] <= 0.2 and all(wait <= 5.0 for wait in waits) and waits[-1] > 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"version": -1},
        {"version": True},
        {"version": None},
        {"containers": []},
        {"containers": {"app": 1}},
        {"bootstrap": ["nobody@nowhere"]},
        {"bootstrap": {}},
        {"services": ["web"]},
        {"disposed": "yes"},
        {"revocations": "AAAA"},
        {"revocations": "no base64"},
    ],
)
def test_a_state_that_cannot_be_is_refused_by_its_field(changes: dict[str, Any]) -> None:
    assert State.of(STATE).version == 1
    with pytest.raises(AnswerError, match=next(iter(changes))):
        State.of(STATE | changes)


@pytest.mark.parametrize(
    "changes",
    [{"root": "me"}, {"advertise": ["here"]}, {"pod": {}}, {"pod": {"spec": {"containers": [{}]}}}],
)
def test_a_passport_that_cannot_be_is_refused_by_its_field(changes: dict[str, Any]) -> None:
    assert Passport.of(PASSPORT).advertise == ("192.0.2.1:30001",)
    with pytest.raises(AnswerError, match=next(iter(changes))):
        Passport.of(PASSPORT | changes)
