"""Calls between replicas: who may call, what the leader alone does, and the app's door, asked by an HTTP client."""

from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import trio
from attrs import frozen
from pods_support import Pod, Pods, _identity, stateful

from magik_mesh import RpcFailed
from workplane.rpc import Target
from workplane.rpcwire import RPC, CallFailed, RpcRequest

WEB = "default/StatefulSet/web"


@frozen
class Selects:
    workloads: tuple[str, ...]


async def api(pod: Pod, method: str, path: str, body: Any = None) -> httpx.Response:
    transport = httpx.AsyncHTTPTransport(uds=str(pod.socket))
    async with httpx.AsyncClient(transport=transport, timeout=20) as client:
        return await client.request(method, f"http://agent{path}", json=body)


async def call(caller: Pod, /, **wish: Any) -> tuple[int, dict[str, Any]]:
    answer = await api(caller, "POST", "/v1/call", {"workload": WEB, **wish})
    return answer.status_code, answer.json()


async def stateless(pods: Pods, name: str = "tool-x", **extra: Any) -> Pod:
    return await pods.start(name, kind="Deployment", **extra)


async def test_a_leaders_call_is_proxied_with_its_token(tmp_path: Path) -> None:
    async with stateful(tmp_path) as pods:
        leader = await pods.formed()
        follower = next(p for p in pods.pods.values() if p is not leader)
        await pods.until(lambda: follower.election.view.leader == leader.name)
        status, said = await call(
            follower, pod=follower.name, method="write", leader_only=True, body={"token": "9.9"}
        )
        assert (status, said["ok"], said["pod"]) == (200, True, leader.name)
        assert (
            said["token"]
            == f"{leader.election.standing.token.generation}.{leader.election.standing.token.term}"
        )
        assert leader.app.headers["magik-token"] == said["token"]
        assert leader.app.headers["magik-caller"] == WEB
        assert leader.app.headers["magik-caller-pod"] == follower.name
        assert leader.app.headers["magik-request-id"] == said["id"]
        assert said["body"] == {"echo": {"token": "9.9"}}
        assert follower.app.calls == []
        status, said = await call(follower, pod=leader.name, method="write", body={"token": "1.1"})
        assert (status, said["ok"], said["status"]) == (200, False, 409)
        assert "stale" in said["body"]["message"], (
            "a checking app refuses a token that is lower than one before"
        )


async def test_a_minority_refuses_what_the_leader_alone_may_do(tmp_path: Path) -> None:
    async with stateful(tmp_path) as pods:
        leader = await pods.formed()
        pods.cut = {leader.name}
        await pods.until(lambda: leader.election.view.token is None)
        for _ in range(20):
            status, said = await call(leader, pod=leader.name, method="write", leader_only=True)
            assert (status, said["reason"]) in {(503, "not-leader"), (503, "leader-unknown")}
            await trio.sleep(0.05)
        assert leader.app.calls == []
        status, said = await call(leader, pod=leader.name, method="read")
        assert status == 200 and said["token"] is None


async def test_a_leader_that_cannot_be_reached(tmp_path: Path) -> None:
    async with stateful(tmp_path) as pods:
        leader = await pods.formed()
        follower = next(p for p in pods.pods.values() if p is not leader)
        await pods.until(lambda: follower.election.view.leader == leader.name)
        follower.election.leader_peers = lambda: ()
        status, said = await call(follower, pod=follower.name, method="write", leader_only=True)
        assert (status, said["reason"]) == (502, "leader-unreachable")


async def test_a_call_is_forwarded_once_and_by_replicas_alone(tmp_path: Path) -> None:
    async with stateful(tmp_path) as pods:
        leader = await pods.formed()
        a, b = (p for p in pods.pods.values() if p is not leader)
        forwarded = {"method": "x", "leader_only": True, "forwarded": {"workload": WEB, "pod": "web-9"}}
        with pytest.raises(RpcFailed, match="not-leader"):
            await a.node.call(b.node.id, RPC, forwarded)
        tool = await stateless(pods)
        with pytest.raises(RpcFailed, match="denied"):
            await tool.node.call(leader.node.id, RPC, forwarded)
        namesake = await pods.start("web-7", uid=UUID(int=7 << 64))
        with pytest.raises(RpcFailed, match="denied"):
            await namesake.node.call(leader.node.id, RPC, forwarded)
        assert leader.app.calls == a.app.calls == b.app.calls == []


async def test_the_lease_is_looked_at_when_the_app_has_taken_the_connection(tmp_path: Path) -> None:
    async with stateful(tmp_path, size=1) as pods:
        pod = await pods.leader(20)
        views = [pod.election.view, pod.board.view]
        lost = type(views[0])(pod.name, pod.name, None)

        class Ending:
            """Leads when the call comes, and not any more when it is handed over."""

            looks = 0

            @property
            def view(self) -> Any:
                self.looks += 1
                return views[0] if self.looks == 1 else lost

        pod.rpc._leads = Ending()
        with pytest.raises(CallFailed, match="not-leader"):
            await pod.rpc.call(Target(workloads=(WEB,)), RpcRequest(method="write", leader_only=True))
        assert pod.app.calls == []


async def test_who_is_not_to_be_seen_may_not_call_either(tmp_path: Path) -> None:
    async with stateful(tmp_path, size=1, visibility={"deny": ("*/tool",)}) as pods:
        web = pods.pods["web-0"]
        tool, other = await stateless(pods), await stateless(pods, "other-x")
        for caller, fits in ((tool, (403, "denied")), (other, (200, None))):
            status, said = await call(caller, method="read")
            assert (status, said.get("reason")) == fits
        status, said = await call(web, workload="default/Deployment/tool", method="read")
        assert (status, said["reason"]) == (403, "denied")


async def test_a_stateless_replica_serves_any_call_and_a_service_names_its_workloads(tmp_path: Path) -> None:
    async def service(namespace: str, name: str) -> Selects | None:
        return Selects(("default/Deployment/tool",)) if (namespace, name) == ("default", "tools") else None

    async with stateful(tmp_path, size=1, service=service) as pods:
        web, tool = pods.pods["web-0"], await stateless(pods)
        answer = await api(
            web,
            "POST",
            "/v1/call",
            {"service": "tools", "method": "do", "leader_only": True, "body": {"a": 1}},
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["body"] == {"echo": {"a": 1}} and answer.json()["pod"] == tool.name
        answer = await api(web, "POST", "/v1/call", {"service": "gone", "method": "do"})
        assert (answer.status_code, answer.json()["reason"]) == (404, "NotFound")


async def test_a_record_that_its_signers_pass_does_not_bear_out_is_forgotten(tmp_path: Path) -> None:
    async with stateful(tmp_path, size=1) as pods:
        web, tool = pods.pods["web-0"], await stateless(pods)
        false = type(_identity(tool))(**{
            **{name: getattr(_identity(tool), name) for name in ("peer", "uid", "generation", "pod_uid", "machine")},
            "resource": _identity(web).resource, "pod_name": "web-5", "ordinal": 5,
        })  # fmt: skip
        pods.tell(web, false)
        status, said = await call(web, ordinal=5, method="secret", body={"key": 1})
        assert (status, said["reason"]) == (503, "no-replica")
        assert tool.app.calls == []
        assert web.catalog.of_peer(tool.node.id, WEB) is None


@pytest.mark.parametrize(
    ("extra", "wish", "reason"),
    [
        ({"app_port": None}, {}, "no-app"),
        ({"app_port": 1}, {}, "app-unreachable"),
        ({}, {"method": "slow", "timeout": 0.5}, "deadline"),
        ({}, {"ordinal": 5}, "no-replica"),
    ],
)
async def test_what_goes_wrong_is_told(tmp_path: Path, extra: Any, wish: Any, reason: str) -> None:
    async with stateful(tmp_path, size=1, **extra) as pods:
        for caller in (pods.pods["web-0"], await stateless(pods)):
            _, said = await call(caller, **{"method": "read", **wish})
            assert said["reason"] == reason, said


async def test_built_in_methods_need_no_app(tmp_path: Path) -> None:
    async with stateful(tmp_path, size=1, app_port=None) as pods:
        await pods.leader(20)
        tool = await stateless(pods)
        _, said = await call(tool, method="healthz")
        assert said["body"] == {"ready": True, "healthy": True}
        _, said = await call(tool, method="leader")
        assert said["body"]["leader"] == "web-0"


async def test_the_apps_door(tmp_path: Path) -> None:
    async with stateful(tmp_path, size=1) as pods:
        web, tool = pods.pods["web-0"], await stateless(pods)
        await pods.leader(20)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{web.api_port}", timeout=20) as client:
            peers = (await client.get("/v1/peers?workload=default/Deployment/tool")).json()["peers"]
            assert [(p["pod"], p["ready"], p["peer"]) for p in peers] == [("tool-x", True, str(tool.node.id))]
            assert (await client.get("/v1/peers")).json()["workload"] == WEB
            leader = (await client.get("/v1/leader")).json()
            assert (leader["role"], leader["leader"]) == ("leader", "web-0")
            assert (await client.get("/v1/health")).status_code == 200
            assert (await client.get("/metrics")).text == "workplane_up 1\n"
            assert (await client.get("/v1/secrets")).status_code == 404
            assert (await client.get("/v1/call")).status_code == 405
            for wish in (
                {},
                {"workload": WEB, "service": "x"},
                {"workload": "../x"},
                [],
                {"workload": WEB, "timeout": 99},
            ):
                answer = await client.post("/v1/call", json=wish)
                assert (answer.status_code, answer.json()["kind"]) == (400, "Status"), wish
            answer = await client.post("/v1/call", json={"workload": WEB, "method": "../etc"})
            assert (answer.status_code, answer.json()["reason"]) == (400, "request")
        assert (await api(tool, "GET", "/v1/leader")).status_code == 404


async def test_a_watch_returns_when_the_leader_changes(tmp_path: Path) -> None:
    async with stateful(tmp_path) as pods:
        leader = await pods.formed()
        other = next(p for p in pods.pods.values() if p is not leader)
        await pods.until(lambda: other.election.view.leader == leader.name)
        seen = (await api(other, "GET", "/v1/leader")).json()
        same = (await api(other, "GET", f"/v1/leader?watch={seen['version']}&timeout=1")).json()
        assert same == seen
        await pods.stop(leader.name)
        news = (await api(other, "GET", f"/v1/leader?watch={seen['version']}")).json()
        assert news["version"] > seen["version"] and news["leader"] != leader.name


async def test_the_hook_is_told_until_it_has_heard(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        pods = Pods(nursery, tmp_path)
        ear = await stateless(pods)
        ear.app.failures = 2
        await pods.start("web-0", replicas=1, founder=True, hook=(ear.rpc._app_port, "/hook"))
        await pods.until(lambda: any(said["role"] == "leader" for _, said in ear.app.calls))
        tokens = [said["token"] for path, said in ear.app.calls if path == "/hook"]
        assert tokens[:3] == [None] * 3, "it failed twice, and was told again"
        nursery.cancel_scope.cancel()


async def test_garbage_at_the_door_ends_no_agent(tmp_path: Path) -> None:
    async with stateful(tmp_path, size=1) as pods:
        pod = pods.pods["web-0"]
        for sent in (
            b"\x16\x03\x01garbage\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"POST /v1/call HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab",
            b"POST /v1/call HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n",
        ):
            async with await trio.open_tcp_stream("127.0.0.1", pod.api_port) as stream:
                await stream.send_all(sent)
                await stream.send_eof()
                with trio.fail_after(5):
                    answer = b"".join([part async for part in stream])
                assert answer == b"" or answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413"), answer
        assert (await api(pod, "GET", "/v1/health")).status_code == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_sent() -> None:
    RpcRequest(method="a", body=bytes(1 << 20))
    with pytest.raises(CallFailed, match="too-large"):
        RpcRequest(method="a", body=bytes((1 << 20) + 1))
