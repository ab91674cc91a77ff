"""StatefulSets, as a client sees them."""

import pytest
from kubeapi_client import deployment

STATEFUL_SETS = "/apis/apps/v1/namespaces/default/statefulsets"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


def stateful_set(name="db", **spec):
    return deployment(name, serviceName="dbs", **spec) | {"kind": "StatefulSet"}


async def test_defaults_table_and_scale(client):
    made = await client("POST", STATEFUL_SETS, stateful_set())
    assert made.status == 201
    spec = made.body["spec"]
    assert (spec["podManagementPolicy"], spec["revisionHistoryLimit"]) == ("OrderedReady", 10)
    assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}
    assert spec["template"]["spec"]["restartPolicy"] == "Always"
    table = (await client("GET", STATEFUL_SETS, Accept=TABLE)).body
    assert table["rows"][0]["cells"][:2] == ["db", "0/2"]
    merge = "application/merge-patch+json"
    scaled = await client("PATCH", f"{STATEFUL_SETS}/db/scale", {"spec": {"replicas": 5}}, Content_Type=merge)
    assert scaled.body["spec"] == {"replicas": 5}
    assert (await client("GET", f"{STATEFUL_SETS}/db")).body["spec"]["replicas"] == 5
    assert (await client("DELETE", f"{STATEFUL_SETS}/db")).status == 200


CLAIM = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (stateful_set(volumeClaimTemplates=[CLAIM]), "spec.volumeClaimTemplates"),
        (stateful_set(podManagementPolicy="Random"), "spec.podManagementPolicy"),
        (stateful_set(selector={"matchLabels": {"app": "x"}}), "spec.template.metadata.labels"),
        (stateful_set(ordinals={"start": -1}), "spec.ordinals.start"),
        (stateful_set(updateStrategy={"type": "Sudden"}), "spec.updateStrategy.type"),
        (
            stateful_set(updateStrategy={"rollingUpdate": {"maxUnavailable": 2}}),
            "spec.updateStrategy.rollingUpdate.maxUnavailable",
        ),
        (
            stateful_set(updateStrategy={"rollingUpdate": {"partition": -1}}),
            "spec.updateStrategy.rollingUpdate.partition",
        ),
        (stateful_set("d" * 53), "metadata.name"),
        (stateful_set("d.b"), "metadata.name"),
    ],
)
async def test_what_is_wrong_is_named(client, obj, field):
    answer = await client("POST", STATEFUL_SETS, obj)
    assert answer.status == 422
    assert [cause["field"] for cause in answer.body["details"]["causes"]] == [field]


async def test_what_may_not_change(client):
    await client("POST", STATEFUL_SETS, stateful_set())
    changed = stateful_set(podManagementPolicy="Parallel", replicas=4)
    answer = await client("PUT", f"{STATEFUL_SETS}/db", changed)
    assert answer.status == 422
    assert [c["field"] for c in answer.body["details"]["causes"]] == ["spec.podManagementPolicy"]
    assert (await client("PUT", f"{STATEFUL_SETS}/db", stateful_set(minReadySeconds=3))).status == 200
