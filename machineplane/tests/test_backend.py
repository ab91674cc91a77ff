"""The API's backend over a real table, view and guardian; other machines are tables that the test fills."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from fabric_support import FakeMachine, Wall, bare_pod, deployment, mirror, new_foundings, new_view
from trio.testing import wait_all_tasks_blocked

from machineplane.backend import REVISION, FabricBackend
from machineplane.fabric.events import Events
from machineplane.fabric.guardian import Guardian, Outcome
from machineplane.fabric.holdings import Holdings
from machineplane.fabric.manifests import Manifest
from machineplane.kubeapi.backend import Listing, WatchEvent
from machineplane.kubeapi.errors import ApiError
from machineplane.kubeapi.kinds import DEPLOYMENT, NAMESPACE, POD, Kind
from magik_proto.fields import MAX_MANIFEST
from magik_proto.identity import PeerId
from magik_proto.records import Workload
from magik_proto.signing import verify

Obj = dict[str, Any]


class World:
    """A machine with a backend, and another whose table is caught up with at each read."""

    def __init__(self) -> None:
        wall = Wall()
        self.machine, self.other = FakeMachine(1, wall), FakeMachine(2, wall)
        self.view = new_view(self.machine.id, wall)
        self.holdings = Holdings()
        self.spread_to: list[Workload] = []
        self.retired: list[tuple[PeerId, str, int | None]] = []
        self.disposed: list[Workload] = []
        self.problem: str | None = None
        self.warning = ""
        self.guardian = Guardian(
            view=self.view,
            table=self.machine.table,
            holdings=self.holdings,
            events=Events(self.machine.table, wall, "m1"),
            alive=lambda: (self.machine.id, self.other.id),
            settle=self.settle,
            tender=self.tender,
            retire=self.retire,
            dispose=self.dispose,
            roles=lambda peer: frozenset({"run", "submit"}),
            foundings=new_foundings(),
        )
        self.backend = FabricBackend(
            identity=self.machine.identity,
            wall=wall,
            view=self.view,
            outlook=self,  # type: ignore[arg-type]
            guardian=self.guardian,
            remote=self,  # type: ignore[arg-type]
            sessions=self,  # type: ignore[arg-type]
            dispose=self.dispose,
            check=lambda manifest: self.problem,
        )
        self.view.on_change = lambda group: self.backend.view_changed()
        self.machine.table.on_change(lambda entry: mirror(self.view, self.machine))

    async def settle(self) -> None:
        mirror(self.view, self.other)

    async def all_of(self, kind: str, namespace: str | None, name: str | None = None) -> str:
        await self.settle()
        return self.warning

    async def one(self, kind: str, namespace: str | None, name: str) -> None:
        await self.settle()

    async def everything_in(self, namespace: str) -> None:
        await self.settle()

    @contextmanager
    def watching(self, kind: str, namespace: str | None, name: str | None) -> Iterator[None]:
        yield

    async def spread(self, workload: Workload, before: Workload | None = None) -> int:
        self.spread_to.append(workload)
        return 1

    async def retire(self, peer: PeerId, pod: str, grace_s: int | None = None) -> None:
        self.retired.append((peer, pod, grace_s))

    async def dispose(self, workload: Workload) -> None:
        self.disposed.append(workload)
        self.machine.table.remove(("workload", str(workload.uid)))
        self.view.dispose(str(workload.uid))

    async def tender(
        self, manifest: Manifest, replicas: int, taken: dict[PeerId, int], ordinals: tuple[int, ...]
    ) -> Outcome:
        return Outcome({}, replicas, ())

    # -- the backend's calls, short

    async def create(self, obj: Obj, kind: Kind = DEPLOYMENT, *, dry_run: bool = False) -> Obj:
        return await self.backend.create(kind, obj, dry_run=dry_run)

    async def replace(
        self, obj: Obj, kind: Kind = DEPLOYMENT, version: str | None = None, *, dry_run: bool = False
    ) -> Obj:
        return await self.backend.replace(kind, obj, expected_resource_version=version, dry_run=dry_run)

    async def delete(
        self, name: str, kind: Kind = DEPLOYMENT, namespace: str = "default", **given: Any
    ) -> Obj:
        asked: dict[str, Any] = {
            "uid": None,
            "resource_version": None,
            "propagation": "Background",
            "grace_seconds": None,
            "dry_run": False,
        }
        space = namespace if kind.namespaced else None
        return await self.backend.delete(kind, space, name, **{**asked, **given})

    async def names(self, kind: Kind, namespace: str | None = None) -> set[str]:
        listing: Listing = await self.backend.list(kind, namespace)
        return {obj["metadata"]["name"] for obj in listing.objects}


@pytest.fixture
def world() -> World:
    return World()


def reason(caught: pytest.ExceptionInfo[ApiError]) -> str:
    return caught.value.reason


# -- create


async def test_what_is_created_has_an_identity_is_signed_and_guarded(world: World) -> None:
    made = await world.create(deployment())
    metadata = made["metadata"]
    assert metadata["generation"] == 1 and metadata["annotations"][REVISION] == "1"
    assert metadata["creationTimestamp"] == "2027-01-15T08:00:00Z"
    (record,) = world.spread_to
    verify(record)
    assert str(record.uid) == metadata["uid"] and record.replicas == 3
    assert world.holdings.get(record.uid) == record
    assert await world.backend.get(DEPLOYMENT, "default", "web") == made


async def test_a_name_is_taken_once(world: World) -> None:
    await world.create(deployment())
    with pytest.raises(ApiError) as caught:
        await world.create(deployment())
    assert reason(caught) == "AlreadyExists"


async def test_a_name_that_another_machine_took_is_taken_here(world: World) -> None:
    theirs = World()
    await theirs.create(deployment())
    world.other.hold(theirs.spread_to[0])
    with pytest.raises(ApiError) as caught:
        await world.create(deployment())
    assert reason(caught) == "AlreadyExists"


async def test_a_dry_run_checks_all_and_keeps_nothing(world: World) -> None:
    made = await world.create(deployment(), dry_run=True)
    assert made["metadata"]["uid"] and made["metadata"]["resourceVersion"]
    assert await world.backend.get(DEPLOYMENT, "default", "web") is None and not world.spread_to
    world.problem = "needs the moon"
    with pytest.raises(ApiError, match="needs the moon"):
        await world.create(deployment(), dry_run=True)


async def test_what_no_machine_could_run_is_refused(world: World) -> None:
    world.problem = "container c: resources cpu: quantities must match"
    with pytest.raises(ApiError) as caught:
        await world.create(deployment())
    assert reason(caught) == "Invalid" and caught.value.code == 422 and not world.spread_to


async def test_a_manifest_has_a_largest_size(world: World) -> None:
    with pytest.raises(ApiError) as caught:
        await world.create(deployment(annotations={"big": "x" * MAX_MANIFEST}))
    assert caught.value.code == 413


async def test_a_full_machine_says_so(world: World) -> None:
    world.holdings._manifests_max = 1
    await world.create(deployment("a"))
    with pytest.raises(ApiError) as caught:
        await world.create(deployment("b"))
    assert caught.value.code == 503 and "guards 1 manifests" in caught.value.message


# -- namespaces


async def test_namespaces_are_there_before_what_is_in_them(world: World) -> None:
    inside = deployment()
    inside["metadata"]["namespace"] = "team"
    with pytest.raises(ApiError, match='namespaces "team" not found'):
        await world.create(inside)
    await world.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}, NAMESPACE)
    await world.create(inside)
    assert await world.names(DEPLOYMENT, "team") == {"web"}
    assert await world.names(DEPLOYMENT, "default") == set()
    assert {"default", "kube-system", "team"} <= await world.names(NAMESPACE)


async def test_a_namespaces_end_is_the_end_of_what_is_in_it(world: World) -> None:
    await world.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}, NAMESPACE)
    inside = deployment()
    inside["metadata"]["namespace"] = "team"
    await world.create(inside)
    await world.create(deployment("stays"))
    await world.delete("team", NAMESPACE)
    assert {str(w.resource) for w in world.disposed} == {"team/Deployment/web", "team/Namespace/team"}
    assert await world.names(DEPLOYMENT) == {"stays"}


async def test_a_built_in_namespace_stays(world: World) -> None:
    with pytest.raises(ApiError) as caught:
        await world.delete("default", NAMESPACE)
    assert reason(caught) == "Forbidden" and not world.disposed


# -- replace


async def test_a_new_spec_is_a_new_generation_and_a_new_template_a_new_revision(world: World) -> None:
    made = await world.create(deployment())
    scaled = await world.replace({**made, "spec": {**made["spec"], "replicas": 5}})
    assert (scaled["metadata"]["generation"], scaled["metadata"]["annotations"][REVISION]) == (2, "1")
    other = deployment(image="localhost/b:2")["spec"]["template"]
    rolled = await world.replace({**scaled, "spec": {**scaled["spec"], "template": other}})
    assert (rolled["metadata"]["generation"], rolled["metadata"]["annotations"][REVISION]) == (3, "2")
    assert int(rolled["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])


async def test_a_label_changes_no_generation(world: World) -> None:
    made = await world.create(deployment())
    made["metadata"]["labels"] = {"a": "b"}
    labelled = await world.replace(made)
    assert labelled["metadata"]["generation"] == 1 and labelled["metadata"]["labels"] == {"a": "b"}


async def test_what_changes_nothing_is_not_written(world: World) -> None:
    made = await world.create(deployment())
    assert await world.replace(made) == made
    assert len(world.spread_to) == 1


async def test_a_client_cannot_change_who_an_object_is(world: World) -> None:
    made = await world.create(deployment())
    forged = {**made, "metadata": {**made["metadata"], "uid": "0", "creationTimestamp": "x", "generation": 9}}
    forged["metadata"]["annotations"] = {REVISION: "77"}
    forged["spec"] = {**made["spec"], "replicas": 1}
    kept = (await world.replace(forged))["metadata"]
    assert kept["uid"] == made["metadata"]["uid"] and kept["generation"] == 2
    assert kept["creationTimestamp"] == made["metadata"]["creationTimestamp"]
    assert kept["annotations"][REVISION] == "1"


async def test_an_old_version_is_a_conflict_and_the_current_one_is_not(world: World) -> None:
    made = await world.create(deployment())
    old = made["metadata"]["resourceVersion"]
    made["spec"]["replicas"] = 4
    newer = await world.replace(made, version=old)
    made["spec"]["replicas"] = 6
    for version in (old, "", "²", "9" * 5000, "-1"):
        with pytest.raises(ApiError) as caught:
            await world.replace(made, version=version)
        assert reason(caught) == "Conflict"
    await world.replace(made, version=newer["metadata"]["resourceVersion"])


async def test_status_that_moves_on_is_no_conflict(world: World) -> None:
    """Clients read, pods change, clients write: only another manifest is in their way."""
    made = await world.create(deployment())
    world.other.run(world.spread_to[0], "p1")
    await world.settle()
    made["spec"]["replicas"] = 4
    await world.replace(made, version=made["metadata"]["resourceVersion"])


async def test_a_dry_replace_keeps_nothing(world: World) -> None:
    made = await world.create(deployment())
    made["spec"]["replicas"] = 9
    assert (await world.replace(made, dry_run=True))["spec"]["replicas"] == 9
    shown = await world.backend.get(DEPLOYMENT, "default", "web")
    assert shown is not None and shown["spec"]["replicas"] == 3


async def test_what_is_not_there_cannot_be_replaced(world: World) -> None:
    with pytest.raises(ApiError) as caught:
        await world.replace(deployment())
    assert reason(caught) == "NotFound"


async def test_a_pods_spec_stays_and_its_labels_do_not(world: World) -> None:
    made = await world.create(bare_pod(), POD)
    made["metadata"]["labels"] = {"a": "b"}
    assert (await world.replace(made, POD))["metadata"]["labels"]["a"] == "b"
    made["spec"] = {**made["spec"], "restartPolicy": "Never"}
    with pytest.raises(ApiError) as caught:
        await world.replace(made, POD)
    assert reason(caught) == "Invalid"


async def test_a_pod_of_a_deployment_is_not_changed_by_itself(world: World) -> None:
    await world.create(deployment())
    world.other.run(world.spread_to[0], "p1")
    (name,) = await world.names(POD)
    pod = await world.backend.get(POD, "default", name)
    assert pod is not None
    pod["metadata"]["labels"] = {"a": "b"}
    with pytest.raises(ApiError) as caught:
        await world.replace(pod, POD)
    assert reason(caught) == "Forbidden"


# -- delete


async def test_delete_disposes(world: World) -> None:
    await world.create(deployment())
    await world.delete("web")
    assert [str(w.resource) for w in world.disposed] == ["default/Deployment/web"]
    assert await world.backend.get(DEPLOYMENT, "default", "web") is None
    with pytest.raises(ApiError) as caught:
        await world.delete("web")
    assert reason(caught) == "NotFound"


async def test_a_dry_delete_deletes_nothing(world: World) -> None:
    await world.create(deployment())
    await world.delete("web", dry_run=True)
    assert not world.disposed


async def test_preconditions_of_a_delete_are_kept(world: World) -> None:
    made = await world.create(deployment())
    old = made["metadata"]["resourceVersion"]
    made["spec"]["replicas"] = 4
    newer = await world.replace(made)
    for given in ({"uid": "another"}, {"resource_version": old}):
        with pytest.raises(ApiError) as caught:
            await world.delete("web", **given)
        assert reason(caught) == "Conflict"
    assert not world.disposed
    metadata = newer["metadata"]
    await world.delete("web", uid=metadata["uid"], resource_version=metadata["resourceVersion"])
    assert world.disposed


async def test_a_pod_of_a_deployment_is_stopped_and_its_workload_stays(world: World) -> None:
    await world.create(deployment())
    world.other.run(world.spread_to[0], "p1")
    (name,) = await world.names(POD)
    await world.delete(name, POD, grace_seconds=2)
    assert world.retired == [(world.other.id, "p1", 2)] and not world.disposed


# -- watch


async def next_of(watch: Any) -> WatchEvent:
    with trio.fail_after(1):
        event: WatchEvent = await watch.__anext__()
        return event


async def test_a_watch_goes_on_from_a_version(world: World) -> None:
    first = await world.create(deployment("a"))
    await world.create(deployment("b"))
    async with world.backend.watch(DEPLOYMENT, None, first["metadata"]["resourceVersion"]) as watch:
        events = [await next_of(watch) for _ in range(2)]
        # "a" as its Deployment was first rendered may be logged after the version it carries.
        assert ("ADDED", "b") in [(e.type, e.object["metadata"]["name"]) for e in events]


async def test_a_watch_sees_each_change_once_in_order(world: World) -> None:
    async with world.backend.watch(DEPLOYMENT, "default", None) as watch:
        made = await world.create(deployment())
        made["spec"]["replicas"] = 1
        await world.replace(made)
        await world.create(bare_pod(), POD)  # another kind
        await world.delete("web")
        events = [await next_of(watch) for _ in range(3)]
        assert [e.type for e in events] == ["ADDED", "MODIFIED", "DELETED"]
        versions = [int(e.object["metadata"]["resourceVersion"]) for e in events]
        assert versions == sorted(set(versions))
        with pytest.raises(trio.TooSlowError), trio.fail_after(0):
            await watch.__anext__()


async def test_giving_up_the_wait_loses_nothing(world: World) -> None:
    async with world.backend.watch(DEPLOYMENT, "default", None) as watch:
        for _ in range(3):
            with trio.move_on_after(0):
                await watch.__anext__()
        got: list[WatchEvent] = []

        async def wait() -> None:
            got.append(await watch.__anext__())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            await world.create(deployment())
        assert [e.type for e in got] == ["ADDED"]


async def test_a_watch_shows_only_its_namespace(world: World) -> None:
    await world.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}, NAMESPACE)
    async with world.backend.watch(DEPLOYMENT, "team", None) as watch:
        await world.create(deployment("elsewhere"))
        inside = deployment("inside")
        inside["metadata"]["namespace"] = "team"
        await world.create(inside)
        assert (await next_of(watch)).object["metadata"]["name"] == "inside"


@pytest.mark.parametrize("version", ["1", "9" * 20])
async def test_a_version_that_is_not_remembered_or_not_ours_is_expired(world: World, version: str) -> None:
    with pytest.raises(ApiError) as caught:
        async with world.backend.watch(DEPLOYMENT, None, version):
            pass
    assert caught.value.code == 410


async def test_a_watch_that_falls_behind_is_told(world: World) -> None:
    async with world.backend.watch(DEPLOYMENT, None, None) as watch:
        await world.create(deployment())
        world.view.log.clear()
        world.view.log_start = world.view.clock.now()
        with pytest.raises(ApiError) as caught:
            await next_of(watch)
        assert caught.value.code == 410


async def test_a_bookmark_never_runs_ahead_of_what_was_handed_out(world: World) -> None:
    async with world.backend.watch(DEPLOYMENT, None, None) as watch:
        before = int(watch.position())
        made = await world.create(deployment())
        assert (
            int(watch.position()) < int(made["metadata"]["resourceVersion"])
            or int(watch.position()) <= before
        )
        await next_of(watch)
        assert int(watch.position()) >= int(made["metadata"]["resourceVersion"])


async def test_what_is_handed_out_may_be_changed(world: World) -> None:
    made = await world.create(deployment())
    made["spec"]["replicas"] = 99
    made["metadata"]["labels"] = {"evil": "yes"}
    listing = await world.backend.list(DEPLOYMENT, None)
    assert listing.objects[0]["spec"]["replicas"] == 3
    assert "labels" not in listing.objects[0]["metadata"]
