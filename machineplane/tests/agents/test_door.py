"""An agent at its socket: real Unix sockets, and what a hostile one may try."""

import json
import socket

import h11
import pytest
import trio

from machineplane.agents import Door, Refusal, door, http

KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
TOKEN = "the-token-of-this-pod"


class Pod:
    """Stands behind the door, and remembers."""

    def __init__(self):
        self.now = {"containers": {"main": "1"}, "generation": 1}
        self.seen = []

    async def passport(self, uid, key):
        self.seen.append(("pass", uid, str(key)))
        return {"uid": uid}

    def state(self, uid):
        return dict(self.now)

    def report(self, uid, report):
        self.seen.append(("report", uid, report))

    async def restart(self, uid, container, reason):
        self.seen.append(("restart", uid, container, reason))

    async def execute(self, uid, container, command, timeout_s):
        return 3, "no"

    async def service(self, uid, namespace, name):
        if name == "boom":
            raise RuntimeError("a defect")
        raise Refusal(404, "NotFound", "no such Service")

    async def heal(self, uid, missing, generation):
        return True


@pytest.fixture
async def at(tmp_path, nursery):
    """The pod behind the door, the door, and a way to connect."""
    pod = Pod()
    made = Door("uid-1", lambda: TOKEN, pod, first_version=100)
    path = str(tmp_path / "machine.sock")
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(path)
    sock.listen(128)
    nursery.start_soon(made.serve, trio.SocketListener(sock))

    async def connect():
        return await trio.open_unix_socket(path)

    return pod, made, connect


class Client:
    def __init__(self, stream):
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)

    async def ask(self, method, target, body=None, token=TOKEN, **headers):
        raw = b"" if body is None else json.dumps(body).encode()
        head = {"host": "machine", "content-length": str(len(raw)), **headers}
        if token:
            head["authorization"] = f"Bearer {token}"
        data = self.http.send(h11.Request(method=method, target=target, headers=list(head.items())))
        data += self.http.send(h11.Data(data=raw)) + self.http.send(h11.EndOfMessage())
        await self.stream.send_all(data)
        return await self.answer()

    async def answer(self):
        code, content = 0, b""
        with trio.fail_after(20):
            while True:
                event = self.http.next_event()
                if event is h11.NEED_DATA:
                    self.http.receive_data(await self.stream.receive_some(65536))
                elif isinstance(event, h11.Response):
                    code = event.status_code
                elif isinstance(event, h11.Data):
                    content += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif isinstance(event, h11.ConnectionClosed):
                    raise EOFError
        if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
        return code, json.loads(content) if content else None


async def ended(stream):
    with trio.fail_after(20):
        try:
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass


async def test_calls_are_answered_one_after_the_other_on_one_connection(at):
    pod, _, connect = at
    async with await connect() as stream:
        client = Client(stream)
        assert await client.ask("POST", "/v1/pass", {"key": KEY}) == (200, {"uid": "uid-1"})
        assert await client.ask("PUT", "/v1/status", {}) == (204, None)
        assert await client.ask("POST", "/v1/containers/main/restart", {"reason": "dead"}) == (204, None)
        command = {"command": ["x"], "timeout_s": 1}
        assert await client.ask("POST", "/v1/containers/main/exec", command) == (
            200,
            {"exit_code": 3, "output": "no"},
        )
        assert await client.ask("POST", "/v1/heal", {"missing": 1, "generation": 1}) == (
            200,
            {"disposed": True},
        )
        code, status = await client.ask("GET", "/v1/services/default/web")
        assert (code, status["kind"], status["reason"]) == (404, "Status", "NotFound")
    assert [what for what, *_ in pod.seen] == ["pass", "report", "restart"]


@pytest.mark.parametrize("token", ["", "x", TOKEN + "x", TOKEN[:-1], "é"])
async def test_another_token_is_refused_whatever_is_asked(at, token):
    pod, _, connect = at
    for target in ("/v1/pass", "/v1/nothing"):
        async with await connect() as stream:
            shown = f"Bearer {token}".strip().encode("latin-1")
            code, status = await Client(stream).ask(
                "POST", target, {"key": KEY}, token=None, authorization=shown
            )
            assert (code, status["code"]) == (401, 401)
    assert not pod.seen


async def test_a_token_of_another_scheme_is_none(at):
    _, _, connect = at
    async with await connect() as stream:
        answer = await Client(stream).ask("GET", "/v1/state", token=None, authorization=f"Basic {TOKEN}")
    assert answer[0] == 401


async def test_news_is_told_once_and_waited_for(at):
    pod, made, connect = at
    async with await connect() as stream:
        client = Client(stream)
        _, first = await client.ask("GET", "/v1/state?since=0")
        assert first == {"version": 101, "containers": {"main": "1"}, "generation": 1}
        async with trio.open_nursery() as nursery:

            async def change():
                made.changed()  # and nothing is otherwise
                await trio.sleep(0.2)
                pod.now["generation"] = 2
                made.changed()

            nursery.start_soon(change)
            _, second = await client.ask("GET", "/v1/state?since=101")
        assert (second["version"], second["generation"]) == (102, 2)


async def test_without_news_the_same_version_comes_in_the_end(at, monkeypatch):
    monkeypatch.setattr(door, "POLL_S", 0.05)
    _, _, connect = at
    async with await connect() as stream:
        client = Client(stream)
        await client.ask("GET", "/v1/state?since=0")
        assert (await client.ask("GET", "/v1/state?since=101"))[1]["version"] == 101


async def test_a_defect_behind_the_door_ends_the_call_alone(at):
    _, _, connect = at
    async with await connect() as stream:
        client = Client(stream)
        code, status = await client.ask("GET", "/v1/services/default/boom")
        assert code == 500 and "a defect" not in status["message"]
        assert (await client.ask("GET", "/v1/state"))[0] == 200


async def test_a_body_that_is_too_large_is_refused_before_it_is_taken(at):
    _, _, connect = at
    async with await connect() as stream:
        await stream.send_all(
            b"PUT /v1/status HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
            % (TOKEN.encode(), http.MAX_BODY + 1)
        )
        client = Client(stream)
        client.http.send(
            h11.Request(method="PUT", target="/", headers=[("host", "m"), ("content-length", "0")])
        )
        assert (await client.answer())[0] == 413
        await ended(stream)


async def test_a_body_in_chunks_is_bounded_as_well(at):
    _, _, connect = at
    async with await connect() as stream, trio.open_nursery() as nursery:
        await stream.send_all(
            b"PUT /v1/status HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n"
            % TOKEN.encode()
        )

        async def flood():
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

        nursery.start_soon(flood)
        client = Client(stream)
        client.http.send(
            h11.Request(method="PUT", target="/", headers=[("host", "m"), ("content-length", "0")])
        )
        assert (await client.answer())[0] == 413


async def test_a_body_of_the_largest_size_is_taken(at):
    pod, _, connect = at
    async with await connect() as stream:
        text = "x" * (http.MAX_BODY - len('{"reason": ""}'))
        assert await Client(stream).ask("POST", "/v1/containers/main/restart", {"reason": text}) == (
            204,
            None,
        )
    assert pod.seen[0][0] == "restart"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff\x16\x03\x01\r\n\r\n",
        b"GET /v1/state\r\n\r\n",
        b"GET /v1/state HTTP/1.1\r\n\r\n",  # no Host
        b"GET /v1/state HTTP/1.1\r\nHost: m\r\nContent-Length: -1\r\n\r\n",
        b"GET /v1/state HTTP/1.1\r\nHost: m\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /v1/state HTTP/1.1\r\nHost: m\r\nX: " + b"y" * (2 * http.MAX_HEAD) + b"\r\n\r\n",
        b"GET /" + b"y" * (2 * http.MAX_HEAD),
    ],
)
async def test_what_is_not_http_ends_its_connection_alone(at, sent):
    _, _, connect = at
    async with await connect() as stream:
        await stream.send_all(sent)
        with trio.fail_after(20):
            answer = await stream.receive_some(65536)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")) and b'"kind": "Status"' in answer
        await ended(stream)
    async with await connect() as stream:
        assert (await Client(stream).ask("GET", "/v1/state"))[0] == 200


async def test_who_sends_half_a_head_or_body_is_cut_off(at, monkeypatch):
    monkeypatch.setattr(http, "HEAD_S", 0.05)
    monkeypatch.setattr(http, "BODY_S", 0.05)
    monkeypatch.setattr(http, "IDLE_S", 0.05)
    _, _, connect = at
    whole = b"PUT /v1/status HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer %s\r\nContent-Length: 9\r\n\r\n{"
    for sent in (b"", b"GET /v1/st", whole % TOKEN.encode()):
        async with await connect() as stream:
            await stream.send_all(sent)
            await ended(stream)


async def test_more_connections_than_allowed_wait_for_their_turn(at, monkeypatch):
    monkeypatch.setattr(http, "IDLE_S", 0.5)
    _, _, connect = at
    idle = [await connect() for _ in range(door.MAX_CONNECTIONS)]
    async with await connect() as late:
        client = Client(late)
        assert (await client.ask("GET", "/v1/state"))[0] == 200  # once the idle ones were cut off
    for stream in idle:
        await ended(stream)
        await stream.aclose()


async def test_who_asks_too_fast_waits(autojump_clock):
    pace = door.Pace(10, 5)
    for _ in range(5):
        await pace.turn()
    assert trio.current_time() == 0
    await pace.turn()
    await pace.turn()
    assert trio.current_time() == pytest.approx(0.2)
