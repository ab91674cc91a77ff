"""The view: what is shown of what machines say, and the log that watches read."""

from uuid import UUID

import pytest
from fabric_support import FakeMachine, Wall, bare_pod, deployment, mirror, new_view, record

from machineplane.fabric.manifests import Manifest
from magik_proto.errors import RemoteProtocolError


@pytest.fixture
def wall() -> Wall:
    return Wall()


def test_a_deployment_counts_its_pods_wherever_they_run(wall: Wall) -> None:
    one, two = FakeMachine(1, wall), FakeMachine(2, wall)
    view = new_view(one.id, wall)
    workload = record(deployment(), one.identity)
    one.hold(workload)
    one.run(workload, "p1")
    two.run(workload, "p2", ready=False)
    mirror(view, one)
    mirror(view, two)
    status = view.rendered["Deployment", "default", "web"]["status"]
    assert (status["replicas"], status["readyReplicas"], status["unavailableReplicas"]) == (2, 1, 2)
    assert {key[2] for key in view.rendered if key[0] == "Pod"} == {"web-p1", "web-p2"}
    assert sum(key[0] == "ReplicaSet" for key in view.rendered) == 1


def test_a_machine_that_is_gone_takes_its_pods_along_and_stays_as_not_ready(wall: Wall) -> None:
    one, two = FakeMachine(1, wall), FakeMachine(2, wall)
    view = new_view(one.id, wall)
    workload = record(deployment(), one.identity)
    two.hold(workload)
    two.run(workload, "p2")
    two.table.put(("node", str(two.id)), {"json": b'{"kind":"Node","metadata":{"name":"m2"},"status":{}}'})
    mirror(view, two)
    assert ("Pod", "default", "web-p2") in view.rendered
    view.drop(two.id)
    assert ("Pod", "default", "web-p2") not in view.rendered
    assert ("Deployment", "default", "web") not in view.rendered
    node = view.rendered["Node", "", "m2"]
    assert node["status"]["conditions"][0]["status"] == "Unknown"
    view.forget_lost_nodes(view.clock.now() + 1)
    assert ("Node", "", "m2") not in view.rendered


def test_every_change_is_logged_once_and_in_order(wall: Wall) -> None:
    one = FakeMachine(1, wall)
    view = new_view(one.id, wall)
    workload = record(bare_pod(), one.identity)
    one.hold(workload)
    mirror(view, one)
    one.run(workload, "p1", name="once")
    mirror(view, one)
    one.table.remove(("pod", "p1"))
    one.table.remove(("workload", str(workload.uid)))
    mirror(view, one)
    changes = [(c.type, c.key[2]) for c in view.log if c.key[0] == "Pod"]
    assert changes[0] == ("ADDED", "once")
    assert changes[-1] == ("DELETED", "once")
    assert [c.stamp for c in view.log] == sorted({c.stamp for c in view.log})
    mirror(view, one)
    assert [(c.type, c.key[2]) for c in view.log if c.key[0] == "Pod"] == changes


def test_what_a_client_saw_is_never_ahead_of_the_log(wall: Wall) -> None:
    """A machine whose clock runs ahead: its stamps are observed before the change is logged."""
    ahead = FakeMachine(1, Wall(wall.now + 20_000))
    view = new_view(FakeMachine(2, wall).id, wall)
    workload = record(deployment(), ahead.identity)
    ahead.hold(workload)
    mirror(view, ahead)
    shown = view.rendered["Deployment", "default", "web"]
    assert all(int(shown["metadata"]["resourceVersion"]) <= change.stamp for change in view.log)


def test_of_two_workloads_of_one_name_the_older_is_shown_everywhere(wall: Wall) -> None:
    one, two = FakeMachine(1, wall), FakeMachine(2, wall)
    older = record(deployment(creationTimestamp="2027-01-15T08:00:00Z"), one.identity)
    newer = record(deployment(creationTimestamp="2027-01-15T08:00:01Z", replicas=1), two.identity)
    one.hold(older)
    two.hold(newer)
    for order in ((one, two), (two, one)):
        view = new_view(one.id, wall)
        for machine in order:
            mirror(view, machine)
        assert view.winner(older.resource) == str(older.uid)
        assert view.rendered["Deployment", "default", "web"]["spec"]["replicas"] == 3
    view.dispose(str(older.uid))
    view.refresh([f"workload/{newer.uid}"])
    assert view.rendered["Deployment", "default", "web"]["spec"]["replicas"] == 1


def test_the_newest_generation_that_anybody_holds_counts(wall: Wall) -> None:
    one, two = FakeMachine(1, wall), FakeMachine(2, wall)
    view = new_view(one.id, wall)
    first = record(deployment(), one.identity)
    second = record(deployment(replicas=5), two.identity, uid=first.uid, generation=2)
    two.hold(second)
    one.hold(first)
    mirror(view, two)
    mirror(view, one)
    manifest = view.manifest(str(first.uid))
    assert manifest is not None and manifest.record.replicas == 5
    assert view.holders(str(first.uid)) == {one.id, two.id}


def test_a_forged_manifest_is_refused(wall: Wall) -> None:
    one = FakeMachine(1, wall)
    view = new_view(FakeMachine(2, wall).id, wall)
    workload = record(deployment(), one.identity)
    one.hold(workload.evolve(replicas=9))
    with pytest.raises(RemoteProtocolError, match="signature"):
        mirror(view, one)
    assert not view.rendered


def test_a_manifest_filed_under_another_uid_is_refused(wall: Wall) -> None:
    one = FakeMachine(1, wall)
    view = new_view(FakeMachine(2, wall).id, wall)
    workload = record(deployment(), one.identity)
    one.hold(workload)
    value = one.table.get(("workload", str(workload.uid)))
    assert value is not None
    one.table.put(("workload", str(UUID(int=5, version=4))), value)
    with pytest.raises(ValueError, match="carries the record"):
        mirror(view, one)


def test_a_pod_that_was_not_placed_is_pending_with_the_reason(wall: Wall) -> None:
    one = FakeMachine(1, wall)
    view = new_view(one.id, wall)
    workload = record(bare_pod(), one.identity)
    one.hold(workload)
    one.table.put(("placement", str(workload.uid)), {"unplaced": 1, "reasons": ["no machine made a bid"]})
    mirror(view, one)
    status = view.rendered["Pod", "default", "once"]["status"]
    assert status["phase"] == "Pending"
    assert status["conditions"][0]["reason"] == "Unschedulable"
    assert "no machine made a bid" in status["conditions"][0]["message"]


def test_an_old_template_s_pods_show_as_a_replica_set_of_their_own(wall: Wall) -> None:
    one = FakeMachine(1, wall)
    view = new_view(one.id, wall)
    workload = record(deployment(), one.identity)
    one.hold(workload)
    one.run(workload, "p1")
    one.run(workload, "p0", template_hash="0123456789")
    mirror(view, one)
    names = {key[2] for key in view.rendered if key[0] == "ReplicaSet"}
    assert names == {f"web-{Manifest.of(workload).template_hash}", "web-0123456789"}
    assert view.rendered["Deployment", "default", "web"]["status"]["updatedReplicas"] == 1


def test_nothing_is_kept_of_what_is_gone(wall: Wall) -> None:
    one = FakeMachine(1, wall)
    view = new_view(FakeMachine(2, wall).id, wall)
    for number in range(5):
        workload = record(deployment(f"w{number}"), one.identity)
        one.hold(workload)
        one.run(workload, f"p{number}")
        one.table.put(("placement", str(workload.uid)), {"unplaced": 1, "reasons": ["r"]})
        mirror(view, one)
        for entry in [
            *one.table.entries("pod"),
            *one.table.entries("workload"),
            *one.table.entries("placement"),
        ]:
            one.table.remove(entry.key)
        mirror(view, one)
    kept = (view.pods, view.records, view.touched, view.rendered, view._groups, view._shown_by, view._names)
    assert [len(table) for table in kept] == [0] * len(kept)
    assert not view.mirrors[one.id].entries


def test_one_malformed_entry_does_not_hide_the_others(wall: Wall) -> None:
    one = FakeMachine(1, wall)
    view = new_view(FakeMachine(2, wall).id, wall)
    workload = record(deployment(), one.identity)
    one.table.put(("pod", "bad"), {"json": b"[]"})
    one.hold(workload)
    one.run(workload, "p1")
    with pytest.raises(ValueError, match="not a Kubernetes object"):
        mirror(view, one)
    assert ("Pod", "default", "web-p1") in view.rendered and ("Deployment", "default", "web") in view.rendered
