"""A faulty member: whatever stands in its table, the view refuses it by an error of its own or shows something."""

import copy
import json
from contextlib import suppress
from typing import Any
from uuid import uuid4

from fabric_support import FakeMachine, Wall, deployment, mirror, new_view, record, stateful_set
from hypothesis import given, settings
from hypothesis import strategies as st

from machineplane.fabric.guardian import actor
from machineplane.fabric.objects import pod_fact
from machineplane.fabric.table import Delta
from machineplane.scheduling.requirements import RequirementsError, requirements_of
from magik_proto.errors import RemoteProtocolError
from magik_proto.records import canonical_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [here] if here else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths(inner, (*here, key))
    return found


def with_value(obj: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(obj)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def full_deployment() -> dict[str, Any]:
    obj = deployment(labels={"a": "b"}, annotations={"c": "d"}, creationTimestamp="2027-01-15T08:00:00Z")
    obj["spec"]["strategy"] = {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": "25%"},
    }
    spec = obj["spec"]["template"]["spec"]
    spec["nodeSelector"] = {"disk": "ssd"}
    spec["tolerations"] = [{"key": "k", "operator": "Exists"}]
    spec["containers"][0]["resources"] = {"requests": {"cpu": "100m"}, "limits": {"memory": "1Mi"}}
    terms = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    spec["affinity"] = {"nodeAffinity": required}
    return obj


def full_stateful_set() -> dict[str, Any]:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
    return stateful_set(podManagementPolicy="Parallel", ordinals={"start": 1}, updateStrategy=rolling)


@settings(max_examples=400)
@given(
    st.sampled_from([(obj, path) for obj in (full_deployment(), full_stateful_set()) for path in paths(obj)]),
    json_values,
)
def test_a_manifest_with_anything_anywhere(place: tuple[dict[str, Any], tuple[Any, ...]], value: Any) -> None:
    wall = Wall()
    machine = FakeMachine(1, wall)
    view = new_view(FakeMachine(2, wall).id, wall)
    obj, path = place
    good = record(obj, machine.identity)
    bad = with_value(obj, path, value)
    signed = record(obj, machine.identity, uid=good.uid)
    from magik_proto.signing import sign

    machine.hold(sign(signed.evolve(manifest=canonical_json(bad), signature=b""), machine.identity))
    machine.run(good, "p1")
    with suppress(ValueError, RemoteProtocolError):
        mirror(view, machine)
    manifest = view.manifest(str(good.uid))
    if manifest is not None:
        manifest.next_step(pod_fact(p) for p in view.pods_of(str(good.uid)))
        actor(manifest.record, [machine.id])
        with suppress(RequirementsError):
            requirements_of(manifest.template["spec"], manifest.annotations, "crun")


def reported_pod() -> dict[str, Any]:
    machine = FakeMachine(1, Wall())
    workload = record(deployment(), machine.identity)
    machine.run(workload, "p1")
    value = machine.table.get(("pod", "p1"))
    assert value is not None
    obj = json.loads(value["json"])  # type: ignore[arg-type]
    obj["metadata"] |= {"labels": {"a": "b"}, "annotations": {}}
    assert isinstance(obj, dict)
    return obj


@settings(max_examples=400)
@given(st.sampled_from(paths(reported_pod())), json_values)
def test_a_pod_with_anything_anywhere(path: tuple[Any, ...], value: Any) -> None:
    wall = Wall()
    machine = FakeMachine(1, wall)
    view = new_view(FakeMachine(2, wall).id, wall)
    workload = record(deployment(), machine.identity)
    machine.hold(workload)
    bad = with_value(reported_pod(), path, value)
    entry = {"json": canonical_json(bad), "workload": str(workload.uid), "template_hash": "0123456789"}
    machine.table.put(("pod", "p1"), entry)
    with suppress(ValueError, RemoteProtocolError):
        mirror(view, machine)
    for pod in view.pods_of(str(workload.uid)):
        pod_fact(pod)


wire_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(["pod", "node", "event", "workload", "placement", "disposal", "other"]), wire_values)
def test_an_entry_of_any_kind_with_any_value(kind: str, value: Any) -> None:
    wall = Wall()
    view = new_view(FakeMachine(2, wall).id, wall)
    wire = {"epoch": 5, "since": 0, "stamp": 9, "reset": True, "entries": [[kind, str(uuid4()), 9, value]]}
    with suppress(ValueError, RemoteProtocolError):
        view.apply(FakeMachine(1, wall).id, Delta.from_wire(wire))
