"""exec and port-forward as clients see them, over real WebSockets to the API with its backend in memory."""

import json
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from kubeapi_memory import MemoryBackend
from kubeapi_websocket import Refused, websocket
from test_spdy import Kubectl

from machineplane import channels
from machineplane.kubeapi import spdy
from machineplane.kubeapi.backend import AttachOptions, ExecOptions
from machineplane.kubeapi.execs import client_frames
from machineplane.kubeapi.server import ApiConfig, serve_api

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "box", "namespace": "default"},
    "spec": {"containers": [{"name": "main", "image": "busybox"}]},
}
PODS = "/api/v1/namespaces/default/pods"
V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
TUNNEL = "SPDY/3.1+portforward.k8s.io"


@asynccontextmanager
async def serving():
    from machineplane.kubeapi.kinds import POD as KIND

    backend = MemoryBackend()
    backend._run(await backend.create(KIND, json.loads(json.dumps(POD)), dry_run=False))
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_api, ApiConfig(http_port=0), backend)
        with trio.fail_after(10):
            yield backend, addresses.http
        nursery.cancel_scope.cancel()


def path(*command, pod="box", **flags):
    query = [f"command={word}" for word in command] + [f"{k}={v}" for k, v in flags.items()]
    return f"{PODS}/{pod}/exec?{'&'.join(query)}"


async def status_of(socket):
    message = await socket.receive()
    assert message[0] == 3, message
    assert await socket.receive() == b""
    return json.loads(message[1:])


@pytest.mark.parametrize("code", [0, 3])
async def test_exec_by_version_5(code):
    async with serving() as (backend, http):
        backend.exit_code = code
        target = path("cat", "-u", stdin="true", stdout="true", stderr="true", tty="true")
        async with websocket(http, target, V5, V4) as socket:
            assert socket.subprotocol == V5
            await socket.send(b"")  # which clients send to keep a connection alive
            await socket.send(b"\x00")
            await socket.send(b"\x00hello")
            assert await socket.receive() == b"\x01hello"
            await socket.send(b'\x04{"Width":80,"Height":25}')
            assert await socket.receive() == b"\x02(80, 25)"
            await socket.send(b"\xff\x00")
            status = await status_of(socket)
        options = ExecOptions(("cat", "-u"), stdin=True, stdout=True, stderr=True, tty=True)
        assert backend.executed == [("default", "box", "main", options)]
        if code == 0:
            assert status["status"] == "Success"
        else:
            assert (status["reason"], status["details"]["causes"]) == (
                "NonZeroExitCode",
                [{"reason": "ExitCode", "message": "3"}],
            )


async def test_version_4_takes_text_and_cannot_end_stdin():
    async with serving() as (backend, http):
        async with websocket(http, path("cat", stdin="1", stdout="1"), V4) as socket:
            assert socket.subprotocol == V4
            await socket.send("\x00höhö")
            assert await socket.receive() == "\x01höhö".encode()
            await socket.send(b"\xff\x00")
            await socket.send(b"\x00on")
            assert await socket.receive() == b"\x01on"
        await backend.until_sessions(0)


async def test_a_client_that_is_gone_ends_the_session():
    async with serving() as (backend, http):
        async with websocket(http, path("cat", stdin="1"), V5):
            await backend.until_sessions(1)
        await backend.until_sessions(0)


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        (path("nosuch", stdout="1"), 500, "nosuch cannot be run"),
        (path("ls", stdout="1", container="other"), 400, "container other is not valid"),
        (path("ls", stdout="1", pod="none"), 404, '"none" not found'),
        (path(stdout="1"), 400, "at least one command"),
        (path("ls"), 400, "at least one of stdin"),
        (path("ls", stdout="maybe"), 400, "neither true nor false"),
    ],
)
async def test_what_is_wrong_is_said_on_the_result_s_channel(target, code, said):
    async with serving() as (_, http), websocket(http, target, V5) as socket:
        status = await status_of(socket)
        assert (status["code"], said in status["message"]) == (code, True), status


@pytest.mark.parametrize(
    ("target", "subprotocols", "headers", "code"),
    [
        (path("ls", stdout="1"), ("v9.channel.k8s.io",), {}, 400),
        (path("ls", stdout="1"), (), {}, 400),
        (f"{PODS}/box", (V5,), {}, 400),
        ("/nowhere", (V5,), {}, 404),
        (path("ls", stdout="1"), (V5,), {"Origin": "https://evil.example"}, 403),
    ],
)
async def test_a_handshake_is_refused_with_a_status(target, subprotocols, headers, code):
    async with serving() as (backend, http):
        with pytest.raises(Refused) as caught:
            async with websocket(http, target, *subprotocols, **headers):
                pass
        assert caught.value.status == code
        assert json.loads(caught.value.body)["code"] == code
        assert backend.executed == []


async def test_attach():
    async with serving() as (backend, http):
        target = f"{PODS}/box/attach?stdin=true&stdout=true&container=main"
        async with websocket(http, target, V5) as socket:
            await socket.send(b"\x00hello")
            assert await socket.receive() == b"\x01hello"
            await socket.send(b"\xff\x00")
            assert (await status_of(socket))["status"] == "Success"
        assert backend.attached == [("default", "box", "main", AttachOptions(stdin=True, stdout=True))]
        for flags, said in (("tty=1&stdout=1", "no terminals"), ("", "at least one of stdin")):
            async with websocket(http, f"{PODS}/box/attach?{flags}", V5) as socket:
                assert said in (await status_of(socket))["message"]


def test_long_stdin_is_cut_and_nonsense_left_out():
    frames = client_frames(b"\x00" + b"x" * 150_000, can_close=True)
    assert [(channel, len(data)) for channel, data in frames] == [(0, 65536), (0, 65536), (0, 18928)]
    for message in (
        b"",
        b"\x00",
        b"\x01out",
        b"\x07x",
        b"\xff\x01",
        b"\x04{}",
        b"\x04[1,2]",
        b'\x04{"Width":"x","Height":1}',
        b'\x04{"Width":1e999,"Height":1}',
    ):
        assert client_frames(message, can_close=True) == []
    assert client_frames(b'\x04{"Width":70000,"Height":-1}', can_close=False) == [channels.resize(65535, 0)]


# -- port-forward


class Tunnel:
    """kubectl's end of the tunnel; data and ends are gathered by stream."""

    def __init__(self, socket):
        self.socket = socket
        self.client = Kubectl()
        self.replied, self.reset, self.ended, self.data, self.pings = [], [], [], {}, []
        self.buffer = b""

    async def open(self, number, request="0", port="80"):
        for stream, kind in ((number, "error"), (number + 2, "data")):
            headers = {"streamtype": kind, "port": port, "requestid": request}
            await self.socket.send(self.client.open(stream, **headers))

    async def until(self, done):
        while not done():
            self.buffer += await self.socket.receive()
            self._take()

    def _take(self):
        while len(self.buffer) >= 8:
            first = int.from_bytes(self.buffer[:4], "big")
            length = int.from_bytes(self.buffer[5:8], "big")
            flags, body = self.buffer[4], self.buffer[8 : 8 + length]
            self.buffer = self.buffer[8 + length :]
            if first < 1 << 31:
                self.data[first] = self.data.get(first, b"") + body
                self.ended += [first] if flags & 1 else []
                continue
            kinds = {spdy.SYN_REPLY: self.replied, spdy.RST_STREAM: self.reset, spdy.PING: self.pings}
            kinds[first & 0xFFFF].append(int.from_bytes(body[:4], "big"))


@asynccontextmanager
async def tunnelling(**ports):
    async with serving() as (backend, http):
        far_ends = {}
        for name in ports.get("open", ()):
            near, far_ends[name] = trio.testing.memory_stream_pair()
            backend.ports[name] = near
        async with websocket(http, f"{PODS}/box/portforward", TUNNEL) as socket:
            assert socket.subprotocol == TUNNEL
            yield Tunnel(socket), far_ends


async def test_a_connection_both_ways_to_its_end():
    async with tunnelling(open=(80,)) as (tunnel, pods):
        await tunnel.open(1)
        await tunnel.until(lambda: tunnel.replied == [1, 3])
        await tunnel.socket.send(spdy.Encoder().data(3, b"question", end=True))
        assert await pods[80].receive_some() == b"question"
        assert await pods[80].receive_some() == b""
        await pods[80].send_all(b"answer")
        await pods[80].send_eof()
        await tunnel.until(lambda: tunnel.ended == [3, 1])
        assert tunnel.data == {3: b"answer", 1: b""}
        assert tunnel.reset == []


async def test_where_nobody_listens_the_error_stream_says_so_and_others_go_on():
    async with tunnelling(open=(80,)) as (tunnel, pods):
        await tunnel.open(1, "0", "80")
        await tunnel.open(5, "1", "81")
        await tunnel.until(lambda: 5 in tunnel.ended)
        assert tunnel.data[5] == b"port 81 takes no connection"
        await pods[80].send_all(b"still here")
        await tunnel.until(lambda: tunnel.data.get(3) == b"still here")


async def test_a_reset_ends_the_connection():
    async with tunnelling(open=(80,)) as (tunnel, pods):
        await tunnel.open(1)
        await tunnel.until(lambda: tunnel.replied == [1, 3])
        await tunnel.socket.send(spdy.Encoder().reset(3, spdy.CANCEL))
        await tunnel.until(lambda: 1 in tunnel.ended)
        assert await pods[80].receive_some() == b""


async def test_pings_are_answered_and_bad_streams_reset():
    async with tunnelling() as (tunnel, _):
        await tunnel.socket.send(spdy.Encoder().ping(7))
        for stream, kind, port in (
            (1, "data", "80"),
            (3, "error", "0"),
            (5, "error", "x"),
            (7, "other", "80"),
        ):
            await tunnel.socket.send(tunnel.client.open(stream, streamtype=kind, port=port, requestid="0"))
        await tunnel.until(lambda: tunnel.reset == [1, 3, 5, 7] and tunnel.pings == [7])


async def test_frames_that_break_the_protocol_close_the_socket():
    async with tunnelling() as (tunnel, _):
        await tunnel.socket.send(b"\x80\x02\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01")
        assert await tunnel.socket.receive() == b""


@pytest.mark.parametrize("subprotocols", [(V4,), ()])
async def test_port_forward_by_channels(subprotocols):
    async with serving() as (backend, http):
        backend.ports[80], pod = trio.testing.memory_stream_pair()
        async with websocket(http, f"{PODS}/box/portforward?ports=80,81", *subprotocols) as socket:
            assert socket.subprotocol == (subprotocols[0] if subprotocols else None)
            begun = [await socket.receive() for _ in range(4)]
            assert begun == [b"\x00\x50\x00", b"\x01\x50\x00", b"\x02\x51\x00", b"\x03\x51\x00"]
            assert await socket.receive() == b"\x03port 81 takes no connection"
            await socket.send(b"\x02nobody")
            await socket.send(b"\x00question")
            assert await pod.receive_some() == b"question"
            await pod.send_all(b"answer")
            assert await socket.receive() == b"\x00answer"
            await pod.send_eof()
            assert await socket.receive() == b""


@pytest.mark.parametrize(
    "ports", ["", "ports=", "ports=x", "ports=0", "ports=80,70000", "ports=" + "1," * 20]
)
async def test_port_forward_by_channels_wants_ports(ports):
    async with serving() as (_, http), websocket(http, f"{PODS}/box/portforward?{ports}", V4) as socket:
        assert b"port" in await socket.receive()
        assert await socket.receive() == b""
