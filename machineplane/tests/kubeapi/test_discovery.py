"""What the API says about itself."""

import pytest

from machineplane.kubeapi.discovery import aggregated_form

V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
V2BETA1 = V2.replace("v=v2;", "v=v2beta1;")


async def test_version(client):
    version = (await client("GET", "/version?timeout=5s")).body
    assert (version["major"], version["minor"], version["gitVersion"]) == ("1", "32", "v1.32.0+magik.0.1.0")


@pytest.mark.parametrize("form", [V2, V2BETA1])
async def test_aggregated_discovery_has_its_exact_media_type(client, form):
    reply = await client("GET", "/apis", Accept=f"{form},application/json")
    assert reply.headers["content-type"] == form
    groups = {item["metadata"]["name"]: item["versions"][0]["resources"] for item in reply.body["items"]}
    deployments = next(row for row in groups["apps"] if row["resource"] == "deployments")
    assert deployments["shortNames"] == ["deploy"] and deployments["scope"] == "Namespaced"
    assert {sub["subresource"] for sub in deployments["subresources"]} == {"scale", "status"}
    core = (await client("GET", "/api", Accept=form)).body["items"]
    assert "pods" in {row["resource"] for row in core[0]["versions"][0]["resources"]}


def test_the_first_known_form_is_chosen():
    assert aggregated_form(f"{V2},{V2BETA1},application/json") == "v2"
    assert aggregated_form(f"{V2BETA1},application/json") == "v2beta1"
    assert aggregated_form("application/json") is None


async def test_legacy_discovery(client):
    assert (await client("GET", "/api")).body["versions"] == ["v1"]
    assert "apps" in {group["name"] for group in (await client("GET", "/apis")).body["groups"]}
    assert (await client("GET", "/apis/apps")).body["preferredVersion"]["version"] == "v1"
    rows = {row["name"]: row for row in (await client("GET", "/apis/apps/v1")).body["resources"]}
    assert rows["deployments/scale"]["group"] == "autoscaling"
    assert "create" not in rows["replicasets"]["verbs"]
    assert (await client("GET", "/apis/nope/v1")).status == 404


async def test_openapi(client):
    documents = {}
    for name, path in (await client("GET", "/openapi/v3")).body["paths"].items():
        documents[name] = document = (await client("GET", path["serverRelativeURL"])).body
        schemas = document["components"]["schemas"]
        for item in document["paths"].values():
            assert item
        references = str(document).count("#/components/schemas/")
        assert references and all("properties" in schema for schema in schemas.values())
    assert set(documents) == {"api/v1", "apis/apps/v1", "apis/discovery.k8s.io/v1"}
    patch = documents["apis/apps/v1"]["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"][
        "patch"
    ]
    assert "fieldValidation" in {parameter["name"] for parameter in patch["parameters"]}
    two = await client(
        "GET", "/openapi/v2", Accept="application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
    )
    assert two.body.startswith(b"\x0a\x032.0")


async def test_health_and_what_is_not_there(client):
    assert (await client("GET", "/readyz")).body == b"ok"
    assert (await client("POST", "/version")).status == 405
    assert (await client("GET", "/swagger.json")).status == 404


async def test_reviews(client):
    base = "/apis/authorization.k8s.io/v1"
    asked = {
        "kind": "SelfSubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": {"verb": "get"}},
    }
    reply = await client("POST", f"{base}/selfsubjectaccessreviews", asked)
    assert reply.status == 201 and reply.body["status"]["allowed"] is True
    assert (await client("POST", f"{base}/selfsubjectrulesreviews", {"spec": {}})).status == 201
    assert (await client("POST", f"{base}/selfsubjectaccessreviews", {"kind": "Pod"})).status == 400
    assert (await client("GET", f"{base}/selfsubjectaccessreviews")).status == 405
