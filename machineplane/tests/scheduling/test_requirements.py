"""From a pod's spec to what a tender asks for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machineplane.scheduling.requirements import (
    DEFAULT_CPU_MILLIS,
    DEFAULT_MEMORY_BYTES,
    PRIORITY_MAX,
    RUNTIME_ANNOTATION,
    RequirementsError,
    priority_of,
    requirements_of,
)
from magik_proto.identity import PeerId
from magik_proto.messages import Expression, SelectorTerm, Toleration


def container(requests: Any = None, limits: Any = None) -> dict[str, Any]:
    return {"name": "c", "resources": {"requests": requests, "limits": limits}}


def test_app_containers_add_up_and_init_containers_do_not() -> None:
    spec = {
        "containers": [
            container({"cpu": "100m", "memory": "1Mi"}),
            container({"cpu": "0.2", "memory": "2Mi"}),
        ],
        "initContainers": [container({"cpu": "250m"}), container({"cpu": "50m", "memory": "64Mi"})],
    }
    found = requirements_of(spec, {}, "crun")
    assert (found.cpu_millis, found.memory_bytes) == (300, 64 << 20)


def test_a_limit_stands_for_a_request_that_is_not_there() -> None:
    found = requirements_of({"containers": [container(None, {"cpu": "2", "memory": "1Gi"})]}, {}, "crun")
    assert (found.cpu_millis, found.memory_bytes) == (2000, 1 << 30)


def test_what_names_nothing_still_counts() -> None:
    found = requirements_of({"containers": [{"name": "a"}, {"name": "b"}]}, {}, "crun")
    assert (found.cpu_millis, found.memory_bytes) == (2 * DEFAULT_CPU_MILLIS, 2 * DEFAULT_MEMORY_BYTES)
    assert found.storage_bytes == 0


def test_the_annotation_picks_the_runtime() -> None:
    assert requirements_of({}, {}, "krun").runtime == "krun"
    assert requirements_of({}, {RUNTIME_ANNOTATION: "wasm"}, "krun").runtime == "wasm"
    for name, value in (("run.oci.handler", "wasm"), ("module.wasm.image/variant", "compat-smart")):
        assert requirements_of({}, {name: value}, "krun").runtime == "wasm"
        assert requirements_of({}, {name: value, RUNTIME_ANNOTATION: "crun"}, "krun").runtime == "crun"
        assert requirements_of({}, {name: "other"}, "krun").runtime == "krun"
    with pytest.raises(RequirementsError, match=r"magik.io/runtime: 'docker'"):
        requirements_of({}, {RUNTIME_ANNOTATION: "docker"}, "krun")


def test_where_to_run() -> None:
    terms = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    spec = {
        "nodeSelector": {"kubernetes.io/arch": "arm64", "disk": "ssd"},
        "affinity": {"nodeAffinity": required},
        "tolerations": [
            {"key": "k", "operator": "Exists"},
            {"key": "l", "value": "v", "effect": "NoExecute"},
        ],
    }
    peer = PeerId(bytes(range(32)))
    found = requirements_of(spec, {}, "crun", avoid=[peer])
    assert found.architecture == "arm64" and found.node_selector == {"disk": "ssd"}
    assert found.affinity == (SelectorTerm((Expression("zone", "In", ("a", "b")),)),)
    assert found.tolerations == (
        Toleration("k", "Exists", "", ""),
        Toleration("l", "Equal", "v", "NoExecute"),
    )
    assert found.avoid == (peer,)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"containers": [container({"cpu": "many"})]}, "cpu"),
        ({"containers": [container({"memory": "-1"})]}, "memory"),
        ({"containers": [container({"cpu": "9E"})]}, "cpu_millis"),
        ({"containers": "x"}, "containers"),
        ({"nodeSelector": {"bad key": "v"}}, "node_selector"),
        ({"tolerations": [{"operator": "Sometimes"}]}, "operator"),
        ({"affinity": {"nodeAffinity": 1}}, "nodeAffinity"),
    ],
)
def test_what_cannot_be_read_is_named(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(RequirementsError, match=field):
        requirements_of(spec, {}, "crun")


@pytest.mark.parametrize("priority", [0, None, 5, -5, PRIORITY_MAX, -PRIORITY_MAX])
def test_priorities(priority: int | None) -> None:
    assert priority_of({"priority": priority}) == (priority or 0)


@pytest.mark.parametrize("priority", ["5", 1.5, True, PRIORITY_MAX + 1, -PRIORITY_MAX - 1, [1]])
def test_what_is_no_priority(priority: object) -> None:
    with pytest.raises(RequirementsError, match="priority"):
        priority_of({"priority": priority})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
loose = anything | st.sampled_from(["100m", "1Gi", "In", "Exists", "NoSchedule"])
amounts = st.dictionaries(st.sampled_from(["cpu", "memory", "ephemeral-storage"]), loose) | loose
containers = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": loose,
            "resources": st.fixed_dictionaries({}, optional={"requests": amounts, "limits": amounts}) | loose,
        },
    )
    | loose,
    max_size=2,
)
terms = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "matchExpressions": st.lists(
                st.fixed_dictionaries({}, optional={"key": loose, "operator": loose, "values": loose})
                | loose,
                max_size=2,
            )
            | loose
        },
    )
    | loose,
    max_size=2,
)
affinities = st.fixed_dictionaries(
    {
        "nodeAffinity": st.fixed_dictionaries(
            {
                "requiredDuringSchedulingIgnoredDuringExecution": st.fixed_dictionaries(
                    {"nodeSelectorTerms": terms | loose}
                )
            }
        )
    }
)
specs = st.fixed_dictionaries(
    {},
    optional={
        "containers": containers | loose,
        "initContainers": containers | loose,
        "nodeSelector": loose,
        "affinity": affinities | loose,
        "tolerations": st.lists(
            st.fixed_dictionaries(
                {}, optional={"key": loose, "operator": loose, "value": loose, "effect": loose}
            ),
            max_size=2,
        )
        | loose,
        "priority": loose,
    },
)


@given(specs)
def test_whatever_a_spec_says_it_is_read_or_refused_by_name(spec: dict[str, Any]) -> None:
    for read in (lambda: requirements_of(spec, {}, "crun"), lambda: priority_of(spec)):
        try:
            read()
        except RequirementsError as error:
            assert str(error)
