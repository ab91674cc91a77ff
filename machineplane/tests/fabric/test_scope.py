"""What a reader wants of a table, and where names lead."""

import pytest
from fabric_support import FakeMachine, Wall, bare_pod, deployment, identity, new_view, record

from machineplane.fabric.reader import part_of
from machineplane.fabric.scope import Scope, resources_of, scope_of_kind, scope_of_names
from machineplane.fabric.view import View

WEB = frozenset({"default/Deployment/web"})


@pytest.mark.parametrize(
    ("kind", "name", "leads_to"),
    [
        ("Deployment", "web", {"default/Deployment/web"}),
        ("ReplicaSet", "web-0123456789", {"default/Deployment/web"}),
        ("Pod", "web-0123456789-bcdf2", {"default/Pod/web-0123456789-bcdf2", "default/Deployment/web"}),
        ("Pod", "db-13", {"default/Pod/db-13", "default/StatefulSet/db"}),
        ("Pod", "once", {"default/Pod/once"}),
        ("ConfigMap", "a.b", {"default/ConfigMap/a.b"}),
        ("Event", "web.1", set()),
        ("Deployment", "No Name", set()),
    ],
)
def test_names_lead_to_resources(kind: str, name: str, leads_to: set[str]) -> None:
    assert set(resources_of(kind, "default", name)) == leads_to


def test_what_has_no_namespace_is_filed_under_its_own_name() -> None:
    assert resources_of("Node", None, "m1") == ("m1/Node/m1",)


@pytest.mark.parametrize(
    ("scope", "resource", "covered"),
    [
        (scope_of_kind("Pod", None), "a/Deployment/x", True),
        (scope_of_kind("Pod", "b"), "a/Deployment/x", False),
        (scope_of_kind("StatefulSet", None), "a/Deployment/x", False),
        (scope_of_names(frozenset({"a/Deployment/x"})), "a/Deployment/x", True),
        (scope_of_names(frozenset({"a/Deployment/x"})), "a/Deployment/xy", False),
    ],
)
def test_a_scope_covers_what_fits_it(scope: Scope, resource: str, *, covered: bool) -> None:
    assert scope.covers(("pod", "u"), {"of": resource}) is covered
    assert Scope.from_wire(scope.to_wire()) == scope
    assert not scope.covers(("event", "u"), {"of": resource})
    assert scope.covers(("disposal", "u"), {}) and not scope.covers(("pod", "u"), {})


def test_that_something_is_gone_concerns_everybody_who_may_know_it() -> None:
    assert scope_of_kind("Pod", "b").covers(("pod", "u"), None)


@pytest.mark.parametrize("wire", [None, {}, {"kinds": "pod"}, {"kinds": [1]}, {"kinds": [], "namespace": 1},
                                  {"kinds": [], "of": ["x" * 401]}, {"kinds": ["a"] * 257}])  # fmt: skip
def test_what_is_no_scope_is_refused(wire: object) -> None:
    with pytest.raises(ValueError, match="scope"):
        Scope.from_wire(wire)


class World:
    """A machine that is read, and the view of who reads."""

    def __init__(self) -> None:
        self.wall = Wall()
        self.machine = FakeMachine(2, self.wall)
        self.view: View = new_view(identity(1).peer_id, self.wall)
        self.web = record(deployment(), identity(1))
        self.machine.hold(self.web)
        for uid in ("p1", "p2"):
            self.machine.run(self.web, uid)
        self.machine.hold(record(bare_pod(), identity(1)))

    def read(self, scope: Scope) -> None:
        epoch, stamp = self.view.position(self.machine.id, scope)
        self.view.apply_read(self.machine.id, scope, part_of(self.machine.table.since(epoch, stamp), scope))

    def shown(self) -> set[tuple[str, str, str]]:
        return set(self.view.rendered)


def test_what_is_read_is_shown_and_other_scopes_stay_as_they_are() -> None:
    world = World()
    world.read(scope_of_names(WEB))
    assert ("Deployment", "default", "web") in world.shown() and (
        "Pod",
        "default",
        "once",
    ) not in world.shown()
    world.read(scope_of_kind("Pod", None))
    assert ("Pod", "default", "once") in world.shown()
    world.machine.table.remove(("pod", "p1"))
    world.read(scope_of_names(WEB))
    assert ("Pod", "default", "once") in world.shown() and ("Pod", "default", "web-p1") not in world.shown()


def test_only_what_changed_is_sent_again() -> None:
    world = World()
    scope = scope_of_names(WEB)
    world.read(scope)
    epoch, stamp = world.view.position(world.machine.id, scope)
    assert part_of(world.machine.table.since(epoch, stamp), scope).entries == ()
    world.machine.run(world.web, "p3")
    assert len(part_of(world.machine.table.since(epoch, stamp), scope).entries) == 1


def test_a_machine_that_has_begun_anew_has_only_what_it_says_now() -> None:
    world = World()
    world.read(scope_of_kind("Pod", None))
    before = world.machine
    world.machine = FakeMachine(2, world.wall)
    assert world.machine.table.epoch != before.table.epoch
    world.machine.hold(world.web)
    world.read(scope_of_names(WEB))
    assert {key[0] for key in world.shown()} == {"Deployment", "ReplicaSet"}


def test_a_delta_that_does_not_join_on_changes_nothing() -> None:
    world = World()
    scope = scope_of_names(WEB)
    world.read(scope)
    world.machine.table.remove(("pod", "p1"))
    later = world.machine.table.version
    world.machine.table.remove(("pod", "p2"))
    world.view.apply_read(
        world.machine.id, scope, world.machine.table.since(world.machine.table.epoch, later)
    )
    assert ("Pod", "default", "web-p2") in world.shown()


def test_what_is_forgotten_to_make_room_is_no_change_and_no_older_watch_begins() -> None:
    world = World()
    world.read(scope_of_kind("Pod", None))
    logged = len(world.view.log)
    world.view.forget(world.machine.id)
    assert world.shown() == set() and len(world.view.log) == logged
    assert world.view.forgotten_at > world.view.log[-1].stamp
    world.read(scope_of_kind("Pod", None))
    assert ("Pod", "default", "once") in world.shown() and len(world.view.log) > logged
