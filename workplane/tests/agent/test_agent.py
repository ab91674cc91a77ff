"""The real agent process against a machine's API: how it starts, finds others, tells how its pod stands, and ends."""

from __future__ import annotations

from pathlib import Path

import trio
from rig import PodApi, agent, pod

from magik_mesh.testing import until


async def test_a_pod_s_agent_tells_the_machine_and_leaves_no_secret_behind(tmp_path: Path) -> None:
    async with pod(tmp_path) as one:
        await one.said("up")
        await until(one.api.ready, 20)
        assert not one.api.credentials.exists()
        for name in ("environ", "cmdline"):
            shown = await trio.Path(f"/proc/{one.process.pid}/{name}").read_bytes()
            assert shown and one.api.token.encode() not in shown
        one.terminate()
        assert await one.process.wait() == 0


async def test_the_app_s_door_is_there_before_the_machine_is_told_how_the_pod_stands(tmp_path: Path) -> None:
    (tmp_path / "web-1/app").mkdir(parents=True)
    async with pod(tmp_path) as one:
        await until(one.api.ready, 60)
        assert all(one.api.doors)


async def test_agents_find_each_other_and_hear_who_leaves(tmp_path: Path) -> None:
    async with pod(tmp_path, "web-1") as one, pod(tmp_path, "web-2") as two:
        await until(lambda: one.api.ready() and two.api.ready(), 20)
        two.api.change(bootstrap=[one.api.peer])
        await one.said("replica", pod="web-2", ready=True)
        await two.said("replica", pod="web-1", ready=True)
        two.terminate()
        assert await two.process.wait() == 0
        await one.said("replica", pod="web-2", ready=False)


async def test_a_workload_that_is_disposed_of_ends_its_agents(tmp_path: Path) -> None:
    async with pod(tmp_path) as one:
        await one.said("up")
        one.api.change(disposed=True)
        assert await one.process.wait() == 143


async def test_an_agent_ends_before_its_pass_does(tmp_path: Path) -> None:
    """In order, for its machine to start it again."""
    async with pod(tmp_path, life_ms=5_000) as one:
        await one.said("ending", why="the pass is about to end")
        assert await one.process.wait() == 0


async def test_the_machine_may_be_away(tmp_path: Path) -> None:
    """At the start, and later on: a daemon that restarts."""
    api = PodApi("web-1", tmp_path, [{"name": "app"}])
    api.hand_over()
    async with agent(api) as one:
        await one.said("machine-does-not-answer")
        async with trio.open_nursery() as nursery:
            await nursery.start(api.serve)
            await until(api.ready, 20)
            nursery.cancel_scope.cancel()
        await trio.sleep(0.5)
        api.statuses.clear()
        async with trio.open_nursery() as nursery:
            await nursery.start(api.serve)
            await until(api.ready, 30)
            nursery.cancel_scope.cancel()


async def test_a_token_that_was_used_for_another_key_starts_no_agent(tmp_path: Path) -> None:
    async with pod(tmp_path) as one:
        await one.said("up")
        one.api.hand_over()
        async with agent(one.api) as thief:
            line = await thief.said("cannot-start")
            assert "another key" in line["error"]
            assert await thief.process.wait() == 1
        assert one.process.poll() is None


async def test_the_end_comes_at_once_while_it_waits_for_the_machine(tmp_path: Path) -> None:
    api = PodApi("web-1", tmp_path, [{"name": "app"}])
    api.hand_over()
    async with agent(api) as one:
        await one.said("machine-does-not-answer")
        one.terminate()
        assert await one.process.wait() == 0
