"""Create, read, list, replace, delete: as a client sees them."""

import pytest
from kubeapi_client import DEPLOYMENTS, deployment

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
PARTIAL = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
PODS = "/api/v1/namespaces/default/pods"
YAML = b"""
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: main, image: nginx, resources: {limits: {cpu: 1}}}]
"""


@pytest.mark.parametrize("media", ["application/yaml", "text/yaml", "application/x-www-form-urlencoded", ""])
async def test_yaml_as_curl_sends_it(client, media):
    reply = await client("POST", DEPLOYMENTS, YAML, Content_Type=media)
    assert reply.status == 201
    assert reply.body["spec"]["template"]["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "1"}}


async def test_defaults_are_those_of_kubernetes(client):
    made = await client.created()
    spec = made["spec"]
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
    }
    pod = spec["template"]["spec"]
    assert (pod["restartPolicy"], pod["dnsPolicy"], pod["securityContext"]) == ("Always", "ClusterFirst", {})
    assert pod["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    assert pod["containers"][0]["ports"] == [{"containerPort": 80, "protocol": "TCP"}]


async def test_identity_is_not_the_clients_to_give(client):
    wanted = deployment()
    wanted["metadata"] |= {"uid": "mine", "creationTimestamp": "2020-01-01T00:00:00Z", "generation": 9}
    wanted["status"] = {"replicas": 99}
    made = (await client("POST", DEPLOYMENTS, wanted)).body
    assert made["metadata"]["uid"] != "mine" and made["metadata"]["generation"] == 1
    assert made["status"].get("replicas") != 99


async def test_missing_and_taken_names(client):
    await client.created()
    taken = await client("POST", DEPLOYMENTS, deployment())
    assert (taken.status, taken.body["reason"]) == (409, "AlreadyExists")
    missing = await client("GET", f"{DEPLOYMENTS}/nope")
    assert missing.status == 404
    assert missing.body["message"] == 'deployments.apps "nope" not found'
    assert missing.body["details"] == {"name": "nope", "group": "apps", "kind": "deployments"}


async def test_generate_name(client):
    pod = {"metadata": {"generateName": "job-"}, "spec": {"containers": [{"name": "a", "image": "b"}]}}
    names = {(await client("POST", PODS, pod)).body["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3 and all(name.startswith("job-") and len(name) == 9 for name in names)


async def test_tables_for_every_kind(client):
    await client.created()
    for path in (
        "/api/v1/pods",
        "/api/v1/nodes",
        "/api/v1/namespaces",
        "/api/v1/events",
        "/apis/apps/v1/replicasets",
    ):
        table = (await client("GET", path, Accept=TABLE)).body
        assert table["kind"] == "Table" and table["rows"], path
        assert {len(row["cells"]) for row in table["rows"]} == {len(table["columnDefinitions"])}, path
        assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    whole = (await client("GET", "/api/v1/pods?includeObject=Object", Accept=TABLE)).body
    assert whole["rows"][0]["object"]["kind"] == "Pod"


async def test_partial_metadata(client):
    await client.created()
    listed = (await client("GET", DEPLOYMENTS, Accept=PARTIAL)).body
    assert listed["kind"] == "PartialObjectMetadataList"
    assert "spec" not in listed["items"][0]


async def test_unreadable_forms_are_refused(client):
    assert (await client("GET", DEPLOYMENTS, Accept="image/png")).status == 406


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("labelSelector=app%3Dweb", 2),
        ("labelSelector=app!%3Dweb", 0),
        ("labelSelector=app in (web,x),!gone", 2),
        ("labelSelector=gone", 0),
        ("fieldSelector=spec.nodeName%3Dm0,status.phase!%3DFailed", 2),
        ("fieldSelector=metadata.namespace%3Dother", 0),
        ("limit=1", 2),
    ],
)
async def test_selectors(client, query, count):
    await client.created()
    reply = await client("GET", f"/api/v1/pods?{query}")
    assert len(reply.body["items"]) == count
    assert reply.body["metadata"]["resourceVersion"] and "continue" not in reply.body["metadata"]


@pytest.mark.parametrize(
    "query",
    ["labelSelector=a==b==c", "fieldSelector=spec.nope%3D1", "limit=x", "resourceVersion=abc", "watch=maybe"],
)
async def test_bad_queries_are_400(client, query):
    assert (await client("GET", f"/api/v1/pods?{query}")).status == 400


async def test_a_stale_put_is_a_conflict_and_a_fresh_one_is_not(client):
    made = await client.created()
    made["spec"]["replicas"] = 5
    first = await client("PUT", f"{DEPLOYMENTS}/web", made)
    assert first.status == 200 and first.body["spec"]["replicas"] == 5
    stale = await client("PUT", f"{DEPLOYMENTS}/web", made)
    assert (stale.status, stale.body["reason"]) == (409, "Conflict")
    made["metadata"].pop("resourceVersion")
    assert (await client("PUT", f"{DEPLOYMENTS}/web", made)).status == 200


async def test_delete_says_what_is_gone(client):
    made = await client.created()
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "other"}}
    assert (await client("DELETE", f"{DEPLOYMENTS}/web", options)).status == 409
    gone = await client("DELETE", f"{DEPLOYMENTS}/web", {"propagationPolicy": "Foreground"})
    assert gone.body["status"] == "Success" and gone.body["details"]["uid"] == made["metadata"]["uid"]
    assert (await client("DELETE", f"{DEPLOYMENTS}/web")).status == 404


async def test_delete_of_a_collection_by_label(client):
    await client.created(name="one")
    await client.created(name="two")
    reply = await client("DELETE", f"{DEPLOYMENTS}?labelSelector=app%3Done")
    assert [item["metadata"]["name"] for item in reply.body["items"]] == ["one"]
    assert len((await client("GET", DEPLOYMENTS)).body["items"]) == 1


async def test_dry_runs_keep_nothing(client):
    assert (await client("POST", f"{DEPLOYMENTS}?dryRun=All", deployment())).status == 201
    assert (await client("GET", f"{DEPLOYMENTS}/web")).status == 404
    await client.created()
    await client("DELETE", f"{DEPLOYMENTS}/web", {"dryRun": ["All"]})
    assert (await client("GET", f"{DEPLOYMENTS}/web")).status == 200
    assert (await client("POST", f"{DEPLOYMENTS}?dryRun=Some", deployment())).status == 400


async def test_scale(client):
    await client.created()
    scale = (await client("GET", f"{DEPLOYMENTS}/web/scale")).body
    assert scale["spec"] == {"replicas": 2} and scale["status"] == {"replicas": 2, "selector": "app=web"}
    scale["spec"]["replicas"] = 4
    assert (await client("PUT", f"{DEPLOYMENTS}/web/scale", scale)).body["spec"] == {"replicas": 4}
    assert (await client("PUT", f"{DEPLOYMENTS}/web/scale", scale)).status == 409
    patch = {"spec": {"replicas": 0}}
    reply = await client(
        "PATCH", f"{DEPLOYMENTS}/web/scale", patch, Content_Type="application/merge-patch+json"
    )
    assert reply.body["spec"] == {"replicas": 0}
    negative = {"spec": {"replicas": -1}}
    reply = await client(
        "PATCH", f"{DEPLOYMENTS}/web/scale", negative, Content_Type="application/merge-patch+json"
    )
    assert (reply.status, reply.body["reason"]) == (422, "Invalid")


async def test_logs(client):
    pod = {"metadata": {"name": "lone"}, "spec": {"containers": [{"name": "a", "image": "b"}]}}
    await client("POST", PODS, pod)
    reply = await client("GET", f"{PODS}/lone/log?tailLines=2")
    assert reply.body == b"two\nthree\n" and reply.headers["content-type"].startswith("text/plain")
    assert (await client("GET", f"{PODS}/lone/log?container=x")).status == 400
    assert (await client("GET", f"{PODS}/lone/log?previous=true")).status == 400
    assert (await client("GET", f"{PODS}/gone/log")).status == 404
    assert client.backend.open_logs == 0


async def test_read_only_kinds_and_streams_asked_for_without_websockets(client):
    assert (await client("POST", "/api/v1/nodes", {"metadata": {"name": "x"}})).status == 405
    assert (await client("POST", "/api/v1/pods", {})).status == 405
    assert (await client("PUT", DEPLOYMENTS, {})).status == 405
    exec_ = await client("POST", f"{PODS}/lone/exec")
    assert exec_.status == 501 and "over WebSockets only" in exec_.body["message"]
