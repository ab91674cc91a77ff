"""Watches as streams: read piece by piece from the running application."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.lowlevel
from kubeapi_client import DEPLOYMENTS

PODS = "/api/v1/namespaces/default/pods"


class Lines:
    """Events of a response whose pieces come over a channel."""

    def __init__(self, pieces: trio.MemoryReceiveChannel) -> None:
        self.pieces, self.text, self.head = pieces, b"", None

    async def next(self) -> dict:
        with trio.fail_after(5000):
            while b"\n" not in self.text:
                message = await self.pieces.receive()
                if message["type"] == "http.response.start":
                    self.head = message
                self.text += message.get("body", b"")
        line, _, self.text = self.text.partition(b"\n")
        return json.loads(line)

    async def ended(self) -> bool:
        async for message in self.pieces:
            if message.get("body"):
                return False
            if message["type"] == "http.response.body" and not message.get("more_body"):
                return True
        return False


@asynccontextmanager
async def watching(client, path: str, accept: str = "application/json") -> AsyncIterator[Lines]:
    """The raw ASGI conversation; leaving is the client going away."""
    target, _, query = path.partition("?")
    scope = {
        "type": "http", "method": "GET", "path": target, "raw_path": target.encode(), "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), (b"accept", accept.encode())], "http_version": "1.1", "scheme": "http",
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "root_path": "", "extensions": {},
        "asgi": {"version": "3.0"},
    }  # fmt: skip
    to_app, from_client = trio.open_memory_channel(5)
    to_client, from_app = trio.open_memory_channel(100)
    to_app.send_nowait({"type": "http.request", "body": b"", "more_body": False})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.app, scope, from_client.receive, to_client.send)
        try:
            yield Lines(from_app)
        finally:
            to_app.send_nowait({"type": "http.disconnect"})


async def version(client) -> str:
    return (await client("GET", DEPLOYMENTS)).body["metadata"]["resourceVersion"]


async def test_changes_after_a_list_come_once_and_in_order(client):
    since = await version(client)
    async with watching(client, f"{DEPLOYMENTS}?watch=true&resourceVersion={since}") as lines:
        await client.created(name="one")
        await client("DELETE", f"{DEPLOYMENTS}/one")
        seen = [await lines.next() for _ in range(3)]
        assert [event["type"] for event in seen] == ["ADDED", "MODIFIED", "DELETED"]
        assert seen[0]["object"]["kind"] == "Deployment"
        assert (b"content-type", b"application/json") in lines.head["headers"]
    assert client.backend.open_watches == 0


async def test_without_a_version_what_is_there_comes_first(client):
    await client.created()
    async with watching(client, f"{DEPLOYMENTS}?watch=1") as lines:
        assert (await lines.next())["object"]["metadata"]["name"] == "web"
        await client.created(name="later")
        assert (await lines.next())["object"]["metadata"]["name"] == "later"


async def test_initial_events_end_with_a_marked_bookmark(client):
    await client.created()
    options = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    async with watching(client, f"{DEPLOYMENTS}?{options}") as lines:
        assert (await lines.next())["type"] == "ADDED"
        mark = await lines.next()
        assert mark["type"] == "BOOKMARK"
        assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert mark["object"]["metadata"]["resourceVersion"] == await version(client)


async def test_initial_events_need_their_match(client):
    reply = await client("GET", f"{DEPLOYMENTS}?watch=1&sendInitialEvents=true")
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")


async def test_bookmarks_and_the_time_limit(client, autojump_clock):
    since = await version(client)
    query = f"watch=1&resourceVersion={since}&allowWatchBookmarks=true&timeoutSeconds=100"
    async with watching(client, f"{DEPLOYMENTS}?{query}") as lines:
        first, last = await lines.next(), await lines.next()
        assert (first["type"], last["type"]) == ("BOOKMARK", "BOOKMARK")
        assert await lines.ended()
    assert trio.current_time() == 100


async def test_a_selection_is_left_and_entered(client):
    await client.created()
    since = await version(client)
    merge = "application/merge-patch+json"
    async with watching(
        client, f"{DEPLOYMENTS}?watch=1&resourceVersion={since}&labelSelector=tier%3Dx"
    ) as lines:
        for labels in ({"tier": "x"}, {"note": "y"}, {"tier": "z"}):
            await client("PATCH", f"{DEPLOYMENTS}/web", {"metadata": {"labels": labels}}, Content_Type=merge)
        types = []
        while "DELETED" not in types:
            types.append((await lines.next())["type"])
        assert types[0] == "ADDED" and set(types[1:-1]) <= {"MODIFIED"}


async def test_tables_say_their_columns_once(client):
    await client.created()
    async with watching(client, f"{PODS}?watch=1", "application/json;as=Table;v=v1;g=meta.k8s.io") as lines:
        first, second = await lines.next(), await lines.next()
        assert first["object"]["columnDefinitions"] and not second["object"]["columnDefinitions"]
        assert len(second["object"]["rows"]) == 1


async def test_too_old_versions_are_410_before_and_an_error_event_after(client):
    client.backend.forget_history()
    reply = await client("GET", f"{DEPLOYMENTS}?watch=1&resourceVersion=5")
    assert (reply.status, reply.body["reason"]) == (410, "Expired")
    since = await version(client)
    async with watching(client, f"{DEPLOYMENTS}?watch=1&resourceVersion={since}") as lines:
        while not client.backend.open_watches:
            await trio.lowlevel.checkpoint()
        client.backend.forget_history()
        event = await lines.next()
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
        assert await lines.ended()


async def test_a_client_that_goes_away_closes_watch_and_log(client):
    pod = {"metadata": {"name": "lone"}, "spec": {"containers": [{"name": "a", "image": "b"}]}}
    await client("POST", PODS, pod)
    async with watching(client, f"{PODS}/lone/log?follow=true") as lines:
        message = await lines.pieces.receive()
        assert message["status"] == 200
        while message.get("body") != b"three\n":
            message = await lines.pieces.receive()
        assert client.backend.open_logs == 1
    assert client.backend.open_logs == 0
