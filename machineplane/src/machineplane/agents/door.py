"""One pod's door: its agent's connections, its token, and what its agent waits for."""

import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import structlog
import trio

from machineplane.agents.calls import (
    Call,
    ExecCall,
    HealCall,
    PassCall,
    Refusal,
    RestartCall,
    ServiceCall,
    StateCall,
    StatusReport,
    not_found,
    parse_call,
)
from machineplane.agents.http import Connection, Request, Response
from magik_proto.identity import PeerId

POLL_S: Final = 30.0
"""How long a question for news is held (workplane-spec)."""
GATHER_S: Final = 0.05
"""News within this time is one answer; a guess."""
MAX_CONNECTIONS: Final = 32
"""Of a pod at a time, a guess: one for news, the others for probes by exec. At it no more are accepted until one ends."""
RATE: Final = 50.0
BURST: Final = 100.0
"""Requests a second, and at once, of a pod; guesses. Beyond them each waits for its turn."""

Json = Mapping[str, Any]


class Host(Protocol):
    """What stands behind the door. All raise Refusal."""

    async def passport(self, uid: str, key: PeerId) -> Json:
        """The answer to ``POST /v1/pass``."""
        ...

    def state(self, uid: str) -> Json:
        """The answer to ``GET /v1/state`` without its version: as things are now."""
        ...

    def report(self, uid: str, report: StatusReport) -> None:
        """Take in what the agent says of its pod."""
        ...

    async def restart(self, uid: str, container: str, reason: str) -> None:
        """Begin to restart a container."""
        ...

    async def execute(
        self, uid: str, container: str, command: tuple[str, ...], timeout_s: float
    ) -> tuple[int, str]:
        """Run a command; its exit code and the beginning of its output."""
        ...

    async def service(self, uid: str, namespace: str, name: str) -> Json:
        """A Service that this pod may know of."""
        ...

    async def heal(self, uid: str, missing: int, generation: int) -> bool:
        """Have the pod's workload looked at; whether it is disposed of."""
        ...


class Pace:
    """A bucket of tokens: who comes too fast waits."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = trio.current_time()

    async def turn(self) -> None:
        """Wait for one's turn."""
        now = trio.current_time()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - 1
        self._at = now
        if self._left < 0:
            await trio.sleep(-self._left / self._rate)


class Door:
    """Serves one pod. ``token`` says what counts now; ``first_version`` is above all that an earlier daemon has given."""

    def __init__(self, uid: str, token: Callable[[], str], host: Host, first_version: int) -> None:
        self._uid = uid
        self._token = token
        self._host = host
        self._version = first_version
        self._state: Json | None = None
        self._news = trio.Event()
        self._pace = Pace(RATE, BURST)
        self._log = structlog.get_logger(room="agents")

    def changed(self) -> None:
        """Something that the state tells of may be otherwise now."""
        self._news.set()
        self._news = trio.Event()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Until cancelled; the listener is closed then."""
        places, turn = trio.Semaphore(MAX_CONNECTIONS), trio.Lock()

        async def one(stream: trio.SocketStream) -> None:
            async with stream:
                await Connection(stream, self._admit, self._answer, turn).serve()
            places.release()

        async with listener, trio.open_nursery() as nursery:
            while True:
                await places.acquire()
                await self._pace.turn()
                nursery.start_soon(one, await _accept(listener))

    async def _admit(self, request: Request) -> None:
        await self._pace.turn()
        token = self._token()
        if not token or not hmac.compare_digest(request.token.encode(), token.encode()):
            raise Refusal(401, "Unauthorized", "the bearer token of this pod is expected")

    async def _answer(self, request: Request) -> Response:
        call = parse_call(request.method, request.target, request.body)
        try:
            return await self._carry_out(call)
        except Refusal:
            raise
        except Exception as error:  # whatever it is, it ends this call and not the daemon
            self._log.exception("agent-call-failed", pod=self._uid, call=type(call).__name__)
            raise Refusal(
                500, "InternalError", f"the machine failed at this call: {type(error).__name__}"
            ) from error

    async def _carry_out(self, call: Call) -> Response:
        host, uid = self._host, self._uid
        match call:
            case StateCall(since):
                return _json(await self._wait(since))
            case StatusReport():
                host.report(uid, call)
                return Response(204)
            case PassCall(key):
                return _json(await host.passport(uid, key))
            case RestartCall(container, reason):
                await host.restart(uid, container, reason)
                return Response(204)
            case ExecCall(container, command, timeout_s):
                code, output = await host.execute(uid, container, command, timeout_s)
                return _json({"exit_code": code, "output": output})
            case ServiceCall(namespace, name):
                return _json(await host.service(uid, namespace, name))
            case HealCall(missing, generation):
                return _json({"disposed": await host.heal(uid, missing, generation)})
        raise not_found("there is no such call")

    async def _wait(self, since: int) -> Json:
        """The state and its version, once that is not ``since``, or after a while."""
        with trio.move_on_after(POLL_S):
            while True:
                news = self._news
                if self._look() != since:
                    break
                await news.wait()
                await trio.sleep(GATHER_S)
        return {"version": self._look(), **(self._state or {})}

    def _look(self) -> int:
        state = self._host.state(self._uid)
        if state != self._state:
            self._state = state
            self._version += 1
        return self._version


def _json(value: Json) -> Response:
    return Response(200, json.dumps(value).encode())


async def _accept(listener: trio.SocketListener) -> trio.SocketStream:
    """The next connection; where the machine has no descriptors left, it is waited for."""
    while True:
        try:
            return await listener.accept()
        except OSError:  # EMFILE and the like, which trio passes on
            await trio.sleep(1)
