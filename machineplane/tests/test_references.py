"""What pods refer to: found in specs, kept with pods, looked up."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "fabric"))

from fabric_support import FakeMachine, Wall, mirror, new_view, record

from machineplane.references import References, pack, records_in, references_of

SPEC = {
    "containers": [
        {
            "envFrom": [{"secretRef": {"name": "s1"}}, {"configMapRef": {"name": "c1"}}],
            "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}},
                {"name": "B", "value": "x"},
            ],
        },
        "malformed",
    ],
    "initContainers": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "c2"}}}]}],
    "volumes": [
        {"secret": {"secretName": "s3"}},
        {"projected": {"sources": [{"configMap": {"name": "c3"}}, {"secret": {"name": "s1"}}]}},
        {"configMap": None},
    ],
    "imagePullSecrets": [{"name": "pull"}],
}


def test_everything_that_a_spec_refers_to_is_found_once():
    assert sorted(references_of(SPEC)) == [
        ("ConfigMap", "c1"),
        ("ConfigMap", "c2"),
        ("ConfigMap", "c3"),
        ("Secret", "pull"),
        ("Secret", "s1"),
        ("Secret", "s2"),
        ("Secret", "s3"),
    ]


def secret(value):
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s1", "namespace": "shop"},
        "data": {"k": value},
    }


def test_the_fabric_s_object_counts_before_the_pod_s_own():
    wall = Wall()
    machine = FakeMachine(1, wall)
    kept = pack([record(secret("b2xk"), machine.identity)])
    references = References()
    assert references.lookup(kept, "Secret", "shop", "s1")["data"] == {"k": "b2xk"}
    assert references.lookup(kept, "Secret", "other", "s1") is None
    assert references.lookup(b"damaged", "Secret", "shop", "s1") is None
    view = new_view(machine.id, wall)
    machine.hold(record(secret("bmV3"), machine.identity))
    mirror(view, machine)
    references.known = view
    assert references.lookup(kept, "Secret", "shop", "s1")["data"] == {"k": "bmV3"}
    (collected,) = references.collect("shop", SPEC)
    assert [found.uid for found in records_in(pack([collected]))] == [collected.uid]
    assert references.collect("elsewhere", SPEC) == ()
