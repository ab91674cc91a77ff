"""PATCH over HTTP: the four kinds, conflicts, retries, ownership."""

import json

from kubeapi_client import DEPLOYMENTS, deployment

WEB = f"{DEPLOYMENTS}/web"
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"


async def patch(client, body, media, query=""):
    return await client("PATCH", WEB + query, json.dumps(body).encode(), Content_Type=media)


async def test_strategic_merge_changes_one_container_of_two(client):
    await client.created()
    two = {"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s:1"}]}}}}
    assert (await patch(client, two, STRATEGIC)).status == 200
    one = {"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "nginx:2"}]}}}}
    containers = (await patch(client, one, STRATEGIC)).body["spec"]["template"]["spec"]["containers"]
    assert {item["name"]: item["image"] for item in containers} == {"main": "nginx:2", "side": "s:1"}


async def test_merge_patch_replaces_lists_and_removes_nulls(client):
    await client.created()
    body = {"metadata": {"labels": {"app": None, "tier": "x"}}}
    assert (await patch(client, body, MERGE)).body["metadata"]["labels"] == {"tier": "x"}


async def test_json_patch(client):
    await client.created()
    good = [
        {"op": "test", "path": "/spec/replicas", "value": 2},
        {"op": "replace", "path": "/spec/replicas", "value": 7},
    ]
    assert (await patch(client, good, JSON_PATCH)).body["spec"]["replicas"] == 7
    assert (await patch(client, good, JSON_PATCH)).status == 422
    assert (await patch(client, [{"op": "remove", "path": "/nope"}], JSON_PATCH)).status == 422
    assert (await patch(client, [{"op": "fly"}], JSON_PATCH)).status in (400, 422)


async def test_a_patch_is_computed_anew_when_the_object_moves(client):
    await client.created()
    client.backend.races = 3
    assert (await patch(client, {"spec": {"replicas": 3}}, MERGE)).status == 200
    client.backend.races = 99
    assert (await patch(client, {"spec": {"replicas": 4}}, MERGE)).body["reason"] == "Conflict"


async def test_a_patch_that_names_a_version_is_not_retried(client):
    made = await client.created()
    await patch(client, {"spec": {"replicas": 3}}, MERGE)
    stale = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "spec": {"replicas": 9}}
    assert (await patch(client, stale, MERGE)).body["reason"] == "Conflict"


async def test_patching_what_is_not_there(client):
    assert (await patch(client, {}, MERGE)).status == 404


def config(**spec):
    wanted = deployment()
    wanted["spec"] |= spec
    return wanted


def managers(obj):
    entries = obj["metadata"].get("managedFields", [])
    return {(entry["manager"], entry["operation"]) for entry in entries}


async def test_apply_creates_and_owns(client):
    made = await patch(client, config(), APPLY, "?fieldManager=me")
    assert made.status == 201 and managers(made.body) == {("me", "Apply")}
    owned = made.body["metadata"]["managedFields"][0]["fieldsV1"]
    assert owned["f:spec"]["f:replicas"] == {}
    containers = owned["f:spec"]["f:template"]["f:spec"]["f:containers"]
    assert 'k:{"containerPort":80,"protocol":"TCP"}' in containers['k:{"name":"main"}']["f:ports"]
    again = await patch(client, config(), APPLY, "?fieldManager=me")
    assert again.status == 200
    assert again.body["metadata"]["resourceVersion"] == made.body["metadata"]["resourceVersion"]


async def test_apply_needs_a_manager(client):
    assert (await patch(client, config(), APPLY)).status == 422


async def test_apply_conflicts_with_who_wrote_since(client):
    await patch(client, config(), APPLY, "?fieldManager=me")
    updated = await patch(client, {"spec": {"replicas": 9}}, MERGE, "?fieldManager=scaler")
    assert managers(updated.body) == {("me", "Apply"), ("scaler", "Update")}
    refused = (await patch(client, config(), APPLY, "?fieldManager=me")).body
    assert refused["code"] == 409
    assert refused["details"]["causes"] == [
        {
            "reason": "FieldManagerConflict",
            "message": 'conflict with "scaler" using apps/v1',
            "field": ".spec.replicas",
        }
    ]
    forced = (await patch(client, config(), APPLY, "?fieldManager=me&force=true")).body
    assert forced["spec"]["replicas"] == 2 and managers(forced) == {("me", "Apply")}


async def test_what_an_applier_no_longer_says_goes_away(client):
    first = config()
    first["metadata"]["labels"]["tier"] = "x"
    first["spec"]["template"]["spec"]["containers"].append({"name": "side", "image": "s"})
    await patch(client, first, APPLY, "?fieldManager=me")
    after = (await patch(client, config(), APPLY, "?fieldManager=me")).body
    assert after["metadata"]["labels"] == {"app": "web"}
    assert [item["name"] for item in after["spec"]["template"]["spec"]["containers"]] == ["main"]


async def test_what_another_owns_too_stays(client):
    await patch(client, config(minReadySeconds=3), APPLY, "?fieldManager=me")
    await patch(client, config(minReadySeconds=3), APPLY, "?fieldManager=you")
    after = (await patch(client, config(), APPLY, "?fieldManager=me")).body
    assert after["spec"]["minReadySeconds"] == 3


async def test_objects_never_applied_are_not_tracked_until_they_are(client):
    assert "managedFields" not in (await client.created())["metadata"]
    changed = await patch(client, {"spec": {"replicas": 5}}, MERGE)
    assert "managedFields" not in changed.body["metadata"]
    refused = (await patch(client, config(), APPLY, "?fieldManager=me")).body
    assert 'conflict with "before-first-apply"' in refused["details"]["causes"][0]["message"]
